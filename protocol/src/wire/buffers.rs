//! Binary in JSON, as Node's `Buffer` writes itself: `{"type":"Buffer","data":[1,2,3]}`.
//!
//! In the classic dialect requests are JSON, and binary in them has this form, as in
//! broadcasts of a cluster whose parser is JSON. No tree is built; everything but binary
//! is copied unchanged.

use std::borrow::Cow;

use bytes::Bytes;

use super::WireError;
use crate::args::{
    json::{MAX_DEPTH, Token, Tokens},
    survey,
};

/// A JSON text with its attachments in place of their placeholders. Fails if it is not JSON, or
/// nests too deeply.
pub(super) fn lower<'a>(json: &'a str, attachments: &[Bytes]) -> Result<Cow<'a, str>, WireError> {
    if attachments.is_empty() {
        Tokens::new(json, MAX_DEPTH).finish()?;
        return Ok(json.into());
    }
    let containers = survey(json, attachments.len(), MAX_DEPTH)?;
    let mut containers = containers.iter();
    let mut tokens = Tokens::new(json, MAX_DEPTH);
    let (mut text, mut copied) = (String::with_capacity(json.len()), 0);
    while let Some(token) = tokens.token()? {
        if !matches!(token, Token::BeginArray | Token::BeginObject) {
            continue;
        }
        let Some(number) = containers.next().and_then(|found| found.attachment) else {
            continue;
        };
        text.push_str(&json[copied..tokens.start()]);
        push_buffer(&mut text, &attachments[number as usize]);
        let inside = close(&mut tokens)?;
        containers.by_ref().take(inside).for_each(drop);
        copied = tokens.position();
    }
    text.push_str(&json[copied..]);
    Ok(text.into())
}

/// Replaces the buffers in a JSON text by placeholders and returns the text and the buffers; `None`
/// if there are none.
pub(super) fn lift(json: &str, most: usize) -> Result<Option<(String, Vec<Bytes>)>, WireError> {
    if !json.contains("\"Buffer\"") {
        return Ok(None);
    }
    let mut tokens = Tokens::new(json, MAX_DEPTH);
    let (mut text, mut copied) = (String::new(), 0);
    let mut attachments = Vec::new();
    while let Some(token) = tokens.token()? {
        let start = tokens.start();
        let Some(buffer) = (token == Token::BeginObject)
            .then(|| read_buffer(&json[start..]))
            .flatten()
        else {
            continue;
        };
        if attachments.len() == most {
            return Err(WireError::TooManyAttachments { limit: most });
        }
        text.push_str(&json[copied..start]);
        text.push_str(&format!(
            r#"{{"_placeholder":true,"num":{}}}"#,
            attachments.len()
        ));
        attachments.push(buffer);
        close(&mut tokens)?;
        copied = tokens.position();
    }
    if attachments.is_empty() {
        return Ok(None);
    }
    text.push_str(&json[copied..]);
    Ok(Some((text, attachments)))
}

/// Reads to the end of the object that has just begun, and returns the number of containers in it.
fn close(tokens: &mut Tokens<'_>) -> Result<usize, WireError> {
    let outside = tokens.depth() - 1;
    let mut inside = 0;
    while tokens.depth() > outside {
        if let Some(Token::BeginArray | Token::BeginObject) = tokens.token()? {
            inside += 1;
        }
    }
    Ok(inside)
}

fn push_buffer(text: &mut String, bytes: &[u8]) {
    text.push_str(r#"{"type":"Buffer","data":"#);
    text.push_str(&serde_json::to_string(bytes).expect("numbers are JSON"));
    text.push('}');
}

/// The buffer at the start of the text. Only the exact form that Node writes is accepted, so an
/// object is read no further than to the first difference.
fn read_buffer(text: &str) -> Option<Bytes> {
    let mut tokens = Tokens::new(text, 2);
    for expected in [
        Token::BeginObject,
        Token::Key("type"),
        Token::String("Buffer"),
        Token::Key("data"),
        Token::BeginArray,
    ] {
        (tokens.token().ok()?? == expected).then_some(())?;
    }
    let mut bytes = Vec::new();
    loop {
        match tokens.token().ok()?? {
            Token::Number(byte) => bytes.push(byte.parse().ok()?),
            Token::EndArray => break,
            _ => return None,
        }
    }
    (tokens.token().ok()?? == Token::EndObject).then(|| bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_become_attachments_and_buffers_again() {
        let json = r#"[ {"type":"Buffer","data":[1, 2]},{"a":{"type":"Buffer","data":[]}},"x"]"#;
        let (lifted, attachments) = lift(json, 2).unwrap().unwrap();
        assert_eq!(
            lifted,
            r#"[ {"_placeholder":true,"num":0},{"a":{"_placeholder":true,"num":1}},"x"]"#
        );
        assert_eq!(attachments, [&[1, 2][..], &[]]);
        let lowered = lower(&lifted, &attachments).unwrap();
        assert_eq!(lowered, json.replace("1, 2", "1,2"));
        assert!(matches!(
            lift(json, 1),
            Err(WireError::TooManyAttachments { limit: 1 })
        ));
    }

    #[test]
    fn what_only_resembles_a_buffer_is_data() {
        for json in [
            r#"[{"type":"Buffer","data":[256]}]"#,
            r#"[{"type":"Buffer","data":[-1]}]"#,
            r#"[{"type":"Buffer","data":[1.5]}]"#,
            r#"[{"type":"Buffer","data":[[1]]}]"#,
            r#"[{"type":"Buffer","data":"x"}]"#,
            r#"[{"type":"Buffer"}]"#,
            r#"[{"data":[1],"type":"Buffer"}]"#,
            r#"[{"type":"Buffer","data":[1],"more":1}]"#,
            r#"["type","Buffer","data",[1]]"#,
        ] {
            assert!(lift(json, 9).unwrap().is_none(), "{json}");
        }
    }

    #[test]
    fn a_placeholder_with_further_members_gives_way_as_a_whole() {
        let json = r#"[{"x":[{}],"_placeholder":true,"num":0},[1],{"_placeholder":true,"num":1}]"#;
        let attachments = [Bytes::from_static(b"\x07"), Bytes::from_static(b"\x08")];
        let lowered = lower(json, &attachments).unwrap();
        let expected = r#"[{"type":"Buffer","data":[7]},[1],{"type":"Buffer","data":[8]}]"#;
        assert_eq!(lowered, expected);
    }

    #[test]
    fn broken_text_is_refused_with_and_without_attachments() {
        for attachments in [&[][..], &[Bytes::new()]] {
            assert!(lower("[1,]", attachments).is_err());
        }
    }
}
