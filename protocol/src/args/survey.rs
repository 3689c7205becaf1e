//! A first pass over a JSON text before it is written in another form.
//!
//! MessagePack states the length of a container in front of its items, and a placeholder can only
//! be recognized at its end. The survey finds both without a tree. It has one entry for each array
//! and object, in the order in which they begin.

use super::ArgsError;
use super::json::{Token, Tokens, unescape};

/// The result of the survey for one array or object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Container {
    /// The number of elements or members.
    pub(crate) len: u32,
    /// The number of the attachment, if the object is a placeholder.
    pub(crate) attachment: Option<u32>,
}

/// Surveys a text with `attachments` attachments. Without any there are no placeholders.
pub(crate) fn survey(
    json: &str,
    attachments: usize,
    max_depth: usize,
) -> Result<Vec<Container>, ArgsError> {
    let mut tokens = Tokens::new(json, max_depth);
    let mut containers = Vec::new();
    let mut open = Vec::new();
    while let Some(token) = tokens.token()? {
        match token {
            Token::Key(key) => note_key(&mut open, key),
            Token::EndArray | Token::EndObject => {
                let closed: Open = open.pop().expect("the tokens check that brackets match");
                let container: &mut Container = &mut containers[closed.index];
                container.len = closed.len;
                if closed.marked && attachments > 0 {
                    let number = closed
                        .number
                        .filter(|number| (*number as usize) < attachments);
                    container.attachment = Some(number.ok_or(ArgsError::Placeholder)?);
                }
            }
            value => {
                note_value(&mut open, value);
                if matches!(value, Token::BeginArray | Token::BeginObject) {
                    open.push(Open {
                        index: containers.len(),
                        ..Open::default()
                    });
                    containers.push(Container::default());
                }
            }
        }
    }
    Ok(containers)
}

/// A container that is still open.
#[derive(Default)]
struct Open {
    index: usize,
    len: u32,
    member: Member,
    marked: bool,
    number: Option<u32>,
}

/// The member of an object that the next value belongs to.
#[derive(Default)]
enum Member {
    #[default]
    Other,
    Marker,
    Number,
}

fn note_key(open: &mut [Open], key: &str) {
    let Some(object) = open.last_mut() else {
        return;
    };
    object.member = match &*unescape(key) {
        "_placeholder" => Member::Marker,
        "num" => Member::Number,
        _ => Member::Other,
    };
}

/// Counts the value. Of members with the same name the last one counts, as in JavaScript.
fn note_value(open: &mut [Open], value: Token<'_>) {
    let Some(parent) = open.last_mut() else {
        return;
    };
    parent.len += 1;
    match parent.member {
        Member::Marker => parent.marked = value == Token::Bool(true),
        Member::Number => parent.number = attachment_number(value),
        Member::Other => {}
    }
}

/// JavaScript has one type of number, so `1`, `1.0` and `1e0` name the same attachment.
fn attachment_number(value: Token<'_>) -> Option<u32> {
    let Token::Number(text) = value else {
        return None;
    };
    let number: f64 = text.parse().ok()?;
    let whole = number as u32;
    (f64::from(whole) == number).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, attachments: usize) -> Option<Vec<(u32, Option<u32>)>> {
        let containers = survey(json, attachments, 128).ok()?;
        Some(
            containers
                .into_iter()
                .map(|found| (found.len, found.attachment))
                .collect(),
        )
    }

    #[test]
    fn containers_are_counted_in_the_order_of_their_beginning() {
        let json = r#"[1,{"a":[],"b":[1,2,3]},[[]]]"#;
        let expected = [3, 2, 0, 3, 1, 0].map(|len| (len, None));
        assert_eq!(check(json, 0), Some(expected.into()));
    }

    #[test]
    fn placeholders_are_found_however_they_are_written() {
        for json in [
            r#"{"_placeholder":true,"num":1}"#,
            r#"{"num":1.0,"_placeholder":true}"#,
            r#"{"num":1e0,"_placeh\u006flder":true}"#,
            r#"{"num":9,"_placeholder":false,"_placeholder":true,"num":1}"#,
        ] {
            assert_eq!(
                check(json, 2),
                Some(vec![(json.matches(':').count() as u32, Some(1))])
            );
            assert!(check(json, 1).is_none(), "{json}");
            assert_eq!(check(json, 0).map(|found| found[0].1), Some(None), "{json}");
        }
    }

    #[test]
    fn what_only_resembles_a_placeholder_is_data_and_a_bad_number_an_error() {
        for json in [
            r#"{"_placeholder":1,"num":0}"#,
            r#"["_placeholder",true,"num",0]"#,
        ] {
            assert!(
                check(json, 1).is_some_and(|found| found[0].1.is_none()),
                "{json}"
            );
        }
        for num in ["\"0\"", "-1", "0.5", "1", "null", "[0]", "1e400"] {
            assert!(
                check(&format!(r#"{{"_placeholder":true,"num":{num}}}"#), 1).is_none(),
                "{num}"
            );
        }
        assert!(check(r#"{"_placeholder":true}"#, 1).is_none());
        assert!(check(r#"{"_placeholder":true,"num":0,"num":{}}"#, 1).is_none());
    }
}
