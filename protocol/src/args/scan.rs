//! Validates a JSON text in one pass: what kind of value is it, and where is its first
//! element, which in the payload of an event is the name?
//!
//! There is neither recursion nor a tree. It accepts everything that `JSON.parse` accepts; callers
//! check the content.

use super::json::{JsonError, Token, Tokens, is_space, plain_strings};

/// The result of a scan of a valid JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scan<'a> {
    /// The kind of the outermost value.
    pub(crate) kind: JsonKind,
    /// The first element of an array that is not empty.
    pub(crate) first: Option<First<'a>>,
}

/// The kind of a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JsonKind {
    /// An object.
    Object,
    /// An array.
    Array,
    /// A string.
    String,
    /// A number, a boolean or `null`.
    Other,
}

/// The first element of an array, and where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct First<'a> {
    /// The first token of the element.
    pub(crate) token: Token<'a>,
    /// Offset in bytes after the comma, or of the closing bracket if there is no comma.
    pub(crate) rest: usize,
}

/// Validates all of `text`. Fails if it is not JSON or nests deeper than `max_depth`.
pub(crate) fn scan(text: &str, max_depth: usize) -> Result<Scan<'_>, JsonError> {
    if let (Some((first, rest)), true) = (plain_strings(text), max_depth > 0) {
        let token = Token::String(first);
        return Ok(Scan {
            kind: JsonKind::Array,
            first: Some(First { token, rest }),
        });
    }
    let mut tokens = Tokens::new(text, max_depth);
    let mut first = None;
    let kind = match tokens.token()? {
        Some(Token::BeginObject) => JsonKind::Object,
        Some(Token::BeginArray) => {
            first = scan_first(text, &mut tokens)?;
            JsonKind::Array
        }
        Some(Token::String(_)) => JsonKind::String,
        _ => JsonKind::Other,
    };
    tokens.finish()?;
    Ok(Scan { kind, first })
}

fn scan_first<'a>(text: &str, tokens: &mut Tokens<'a>) -> Result<Option<First<'a>>, JsonError> {
    let token = match tokens.token()? {
        None | Some(Token::EndArray) => return Ok(None),
        Some(token) => token,
    };
    while tokens.depth() > 1 {
        tokens.token()?;
    }
    let behind = &text.as_bytes()[tokens.position()..];
    let space = behind.iter().take_while(|&&byte| is_space(byte)).count();
    let comma = behind.get(space) == Some(&b',');
    Ok(Some(First {
        token,
        rest: tokens.position() + space + usize::from(comma),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEPTH: usize = 100;

    #[test]
    fn the_first_element_is_found_whatever_it_is() {
        for (text, token, rest) in [
            (r#"["a"]"#, Token::String("a"), "]"),
            (r#" [ "a" , 1 ] "#, Token::String("a"), " 1 ] "),
            (r#"["a","b"]"#, Token::String("a"), r#""b"]"#),
            ("[1]", Token::Number("1"), "]"),
            ("[[[\"]\",2],3],4]", Token::BeginArray, "4]"),
            (r#"[{"a":[1]}  ]"#, Token::BeginObject, "]"),
        ] {
            let scan = scan(text, DEPTH).unwrap();
            assert_eq!(scan.kind, JsonKind::Array);
            let first = scan.first.unwrap();
            assert_eq!((first.token, &text[first.rest..]), (token, rest), "{text}");
        }
    }

    #[test]
    fn the_outer_kind_is_told() {
        for (text, kind) in [
            ("{}", JsonKind::Object),
            (" []", JsonKind::Array),
            ("\"x\"", JsonKind::String),
            ("null", JsonKind::Other),
            ("-1e5", JsonKind::Other),
        ] {
            assert_eq!(scan(text, DEPTH), Ok(Scan { kind, first: None }), "{text}");
        }
    }

    /// Text that `JSON.parse` accepts and `serde_json` refuses: numbers beyond `f64`, and half
    /// surrogate pairs. Neither occurs in texts of this alphabet.
    fn nearly_json() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("["),
            Just("]"),
            Just("{"),
            Just("}"),
            Just(","),
            Just(":"),
            Just("\""),
            Just("a"),
            Just("\"k\""),
            Just("\"k\":"),
            Just("1"),
            Just("0"),
            Just("-"),
            Just("."),
            Just("e"),
            Just("E+"),
            Just("true"),
            Just("null"),
            Just("false"),
            Just(" "),
            Just("\n"),
            Just("é"),
            Just("\\n"),
            Just("\\u00e9"),
            Just("\\"),
            Just("\u{1}"),
            Just("\u{7f}"),
        ];
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn serde_json_agrees_on_what_is_json(text in nearly_json()) {
            let reference = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(scan(&text, DEPTH).is_ok(), reference, "{}", text);
        }

        #[test]
        fn all_json_is_accepted_and_no_beginning_of_an_array(
            value in any_json(),
            pretty in any::<bool>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let array = serde_json::json!([value]);
            let text = if pretty {
                serde_json::to_string_pretty(&array).unwrap()
            } else {
                array.to_string()
            };
            prop_assert!(scan(&text, DEPTH).is_ok());
            let mut end = cut.index(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            prop_assert!(scan(&text[..end], DEPTH).is_err());
        }
    }
}
