//! JSON objects from clients and applications.
//!
//! Serde's derive also accepts a list for a struct, with the members in their order. A list is
//! no object, and its meaning would change with the order of our fields, so it is refused here.

use serde::{Deserialize, Deserializer, de::Visitor, forward_to_deserialize_any};

/// A deserializer that accepts nothing but an object.
pub(crate) struct Object<D>(pub(crate) D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Object<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

/// Reads an object. The error has the path of the field that is wrong, also inside of lists. It is
/// empty if the error is about the whole.
pub(crate) fn read<'a, T: Deserialize<'a>>(
    json: &'a [u8],
) -> Result<T, (String, serde_json::Error)> {
    let mut json = serde_json::Deserializer::from_slice(json);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let read = T::deserialize(Object(tracked));
    let read = read.and_then(|value| json.end().map(|()| value));
    read.map_err(|error| {
        let path = track.path().to_string();
        let is_whole = path == ".";
        (if is_whole { String::new() } else { path }, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(expecting = "an object")]
    struct Form {
        names: Vec<String>,
    }

    fn wrong(json: &str) -> (String, String) {
        let (at, error) = read::<Form>(json.as_bytes()).expect_err(json);
        (at, error.to_string())
    }

    #[test]
    fn a_list_is_no_object() {
        let read = read::<Form>(br#"{"names":["a"]}"#).unwrap();
        assert_eq!(read.names, ["a"]);
        let (at, error) = wrong(r#"[["a"]]"#);
        assert_eq!(at, "");
        assert!(error.contains("sequence, expected an object"), "{error}");
    }

    #[test]
    fn an_error_names_its_field() {
        assert_eq!(wrong(r#"{"names":["a",5]}"#).0, "names[1]");
        assert_eq!(wrong(r#"{"names":5}"#).0, "names");
        assert_eq!(wrong("{}").0, "");
        assert_eq!(wrong(r#"{"names":[]} 1"#).0, "");
    }
}
