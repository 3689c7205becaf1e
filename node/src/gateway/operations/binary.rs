//! Arguments of events as plain JSON, for applications that speak HTTP.
//!
//! A binary value is `{"$binary": "<base64>"}` in its place. [`Args::to_plain_json`]
//! writes it. Arguments without binary are passed on as text in both directions and never
//! decoded.

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use roomcast::{Args, Value};
use serde_json::{Value as Json, value::RawValue};

/// The only key of an object that stands for binary.
const MARK: &str = "$binary";

/// Standard base64, with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads arguments from a JSON array.
pub(crate) fn from_json(json: &RawValue) -> Result<Args, String> {
    let text = json.get();
    // An encoder may write the dollar sign as an escape. No encoder escapes letters.
    if !text.contains(MARK) && !text.contains("\\u0024") {
        let args = Args::from_text(text.into(), Vec::new()).map_err(|error| error.to_string())?;
        // Reads over the text once, which limits its depth.
        args.len().map_err(|error| error.to_string())?;
        return Ok(args);
    }
    let values: Vec<Json> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let values: Vec<_> = values.into_iter().map(unmark).collect::<Result<_, _>>()?;
    Args::from_values(values).map_err(|error| error.to_string())
}

/// The value with binary in the place of marks.
fn unmark(json: Json) -> Result<Value, String> {
    Ok(match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => value.into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::String(text) => text.into(),
        Json::Array(items) => {
            Value::Array(items.into_iter().map(unmark).collect::<Result<_, _>>()?)
        }
        Json::Object(members) => {
            if let (1, Some(Json::String(base64))) = (members.len(), members.get(MARK)) {
                let bytes = LENIENT.decode(base64);
                return bytes
                    .map(Value::Binary)
                    .map_err(|error| format!("the text of `$binary` is not base64: {error}"));
            }
            let member = |(key, value): (String, Json)| Ok((key.into(), unmark(value)?));
            let members: Result<_, String> = members.into_iter().map(member).collect();
            Value::Map(members?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Args, String> {
        let raw: Box<RawValue> = serde_json::from_str(json).expect("JSON");
        from_json(&raw)
    }

    #[test]
    fn binary_keeps_its_place_in_both_directions() {
        let json = r#"["before",{"b":1,"a":[{"$binary":"AAEC/w=="}]},{"$binary":""},-1.5,null]"#;
        let args = read(json).unwrap();
        assert_eq!(
            args.attachments(),
            [&[0, 1, 2, 255][..], &[][..]].map(bytes::Bytes::from)
        );
        let placeholders = r#"["before",{"b":1,"a":[{"_placeholder":true,"num":0}]},{"_placeholder":true,"num":1},-1.5,null]"#;
        assert_eq!(args.json(), placeholders);
        assert_eq!(args.to_plain_json().unwrap(), json);
    }

    #[test]
    fn arguments_without_binary_are_the_same_text() {
        // A lone surrogate does not survive decoding.
        let json = r#"[ 1.5, "\ud800", {"_placeholder":true,"num":0} ]"#;
        let args = read(json).unwrap();
        assert_eq!(args.json(), json);
        assert_eq!(args.to_plain_json().unwrap(), json);
    }

    #[test]
    fn a_mark_may_be_escaped_and_its_base64_unpadded() {
        let args = read(r#"[{"\u0024binary":"AAE"}]"#).unwrap();
        assert_eq!(args.attachments(), [bytes::Bytes::from_static(&[0, 1])]);
    }

    #[test]
    fn an_object_with_more_than_the_mark_is_an_object() {
        let args = read(r#"[{"$binary":"AAE=","more":1},{"$binary":7}]"#).unwrap();
        assert!(args.attachments().is_empty());
    }

    #[test]
    fn what_is_not_base64_or_too_deep_is_refused() {
        let error = read(r#"[{"$binary":"?"}]"#).unwrap_err();
        assert!(error.contains("not base64"), "{error}");
        let deep = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
        assert!(read(&deep).is_err());
        assert!(read("{}").is_err());
    }
}
