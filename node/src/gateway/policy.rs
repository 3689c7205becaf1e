//! The rights of clients in rooms: to join, send, read the history, and list the members.
//!
//! A policy is data: lists of patterns, which may contain claims of the user. A claim's value is
//! compared, never inserted into the pattern, so nothing in a token can act as a wildcard.
//!
//! ```text
//! pattern   room:*          user:{sub}            \*literal
//! parts     "room:" Any     "user:" Claim(sub)    "*literal"
//! ```
//!
//! Two users must not meet in a room because their ids differ by a separator: with
//! `dm:{sub}:*`, the user `a` would reach `dm:a:b:…`, which belongs to the user `a:b`.
//! Therefore a value ends where the text after its claim begins, and a value that
//! contains the first character of that text matches no room.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value};

/// The claims of a user's token.
pub(crate) type Claims = Map<String, Value>;

/// Rooms of users begin with it. A pattern reaches them only if it begins with the same text, so
/// `*` alone opens no user's room.
pub(crate) const USER_ROOMS: &str = "user:";

/// The patterns of one list. More make each check slow.
const MAX_PATTERNS: usize = 100;

/// The wildcards of one pattern. Each multiplies the places at which a name is tried.
const MAX_WILDCARDS: usize = 2;

/// The intended use of a room by a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Join,
    Send,
    History,
    Presence,
}

/// The rooms that clients of a namespace may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RoomPolicy {
    /// Rooms that a client may join.
    pub(crate) join: Patterns,
    /// Rooms that a client may send to.
    pub(crate) send: Patterns,
    /// Rooms whose history a client may read.
    pub(crate) history: Patterns,
    /// Rooms whose members a client may list.
    pub(crate) presence: Patterns,
}

impl RoomPolicy {
    /// All rooms for everybody, as in the demo. Rooms of users and sockets stay closed.
    pub(crate) fn open() -> Self {
        let all = || {
            Patterns(vec![Pattern {
                parts: vec![Part::Any],
            }])
        };
        Self {
            join: all(),
            send: all(),
            history: all(),
            presence: all(),
        }
    }

    /// Whether the claims allow the action in this room.
    pub(crate) fn may(&self, action: Action, room: &str, claims: &Claims) -> bool {
        let patterns = match action {
            Action::Join => &self.join,
            Action::Send => &self.send,
            Action::History => &self.history,
            Action::Presence => &self.presence,
        };
        patterns.matches(room, claims)
    }
}

/// A list of patterns. One of them has to match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patterns(Vec<Pattern>);

impl Patterns {
    /// Whether one of the patterns matches the name of a room.
    pub(crate) fn matches(&self, room: &str, claims: &Claims) -> bool {
        self.0.iter().any(|pattern| pattern.matches(room, claims))
    }

    /// Reads patterns from a list of texts.
    pub(crate) fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, PatternError> {
        if texts.len() > MAX_PATTERNS {
            return Err(PatternError::TooMany);
        }
        let patterns = texts.iter().map(|text| text.as_ref().parse());
        patterns.collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        Self::parse(&texts).map_err(D::Error::custom)
    }
}

/// A pattern for names of rooms. `*` stands for one or more characters, `{claim}` for the
/// value of a claim, and a backslash makes the next character literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Never empty; wildcards and claims are separated by text.
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Any,
    Claim(Box<str>),
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternError {
    #[error("a list has at most {MAX_PATTERNS} patterns")]
    TooMany,
    #[error("a pattern cannot be empty")]
    Empty,
    #[error("the pattern `{0}` has more than {MAX_WILDCARDS} wildcards")]
    Wildcards(Box<str>),
    #[error("the pattern `{0}` has a claim without a name or without `}}`")]
    Claim(Box<str>),
    #[error("the pattern `{0}` ends with a backslash, which must be followed by a character")]
    Escape(Box<str>),
    #[error(
        "the pattern `{0}` needs text between its claims and wildcards, because users could meet in \
         one room otherwise"
    )]
    Adjacent(Box<str>),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(pattern: &str) -> Result<Self, PatternError> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = pattern.chars();
        while let Some(char) = rest.next() {
            let part = match char {
                '\\' => {
                    let escaped = rest.next();
                    text.push(escaped.ok_or_else(|| PatternError::Escape(pattern.into()))?);
                    continue;
                }
                '*' => Part::Any,
                '{' => {
                    let (name, after) = rest
                        .as_str()
                        .split_once('}')
                        .filter(|(name, _)| !name.is_empty())
                        .ok_or_else(|| PatternError::Claim(pattern.into()))?;
                    rest = after.chars();
                    Part::Claim(name.into())
                }
                char => {
                    text.push(char);
                    continue;
                }
            };
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text).into()));
            } else if !parts.is_empty() {
                return Err(PatternError::Adjacent(pattern.into()));
            }
            parts.push(part);
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        if parts.is_empty() {
            return Err(PatternError::Empty);
        }
        if parts.iter().filter(|part| **part == Part::Any).count() > MAX_WILDCARDS {
            return Err(PatternError::Wildcards(pattern.into()));
        }
        Ok(Self { parts })
    }
}

impl Pattern {
    fn matches(&self, room: &str, claims: &Claims) -> bool {
        let names_users =
            matches!(self.parts.first(), Some(Part::Text(text)) if text.starts_with(USER_ROOMS));
        if room.starts_with(USER_ROOMS) && !names_users {
            return false;
        }
        matches(&self.parts, room, claims, None)
    }
}

/// Matches the parts with the rest of a name. `barrier` is the last character of a text after a
/// wildcard: a value with that character could be the end of a longer value of somebody else.
///
/// Each wildcard is tried at each occurrence of the text after it, so the work grows with
/// the length of the name to the power of the wildcards. [`MAX_WILDCARDS`] bounds it.
fn matches(parts: &[Part], rest: &str, claims: &Claims, barrier: Option<char>) -> bool {
    let Some((part, after)) = parts.split_first() else {
        return rest.is_empty();
    };
    match part {
        Part::Text(text) => rest.strip_prefix(&**text).is_some_and(|rest| {
            let barrier = barrier.and_then(|_| text.chars().next_back());
            matches(after, rest, claims, barrier)
        }),
        Part::Any => match after.first() {
            None => !rest.is_empty(),
            Some(Part::Text(next)) => {
                let mut at = rest.match_indices(&**next).map(|(at, _)| at);
                // At least one character, so that `room:*` does not open `room:`.
                at.any(|at| at > 0 && matches(after, &rest[at..], claims, Some('\0')))
            }
            Some(_) => false,
        },
        Part::Claim(name) => {
            let stop = match after.first() {
                Some(Part::Text(text)) => text.chars().next(),
                _ => None,
            };
            let is_bounded = |value: &str| {
                let has = |char: Option<char>| char.is_some_and(|char| value.contains(char));
                !value.is_empty() && !has(stop) && !has(barrier)
            };
            let mut values = values(claims, name).into_iter();
            values.any(|value| {
                is_bounded(&value)
                    && rest
                        .strip_prefix(&*value)
                        .is_some_and(|rest| matches(after, rest, claims, None))
            })
        }
    }
}

/// Returns the values of a claim as strings. A list has one value for each element. A name with
/// dots is first taken as the name of a claim, because that can be a URL, and then as a path.
fn values(claims: &Claims, name: &str) -> Vec<String> {
    let found = claims.get(name).or_else(|| {
        let (first, path) = name.split_once('.')?;
        let mut path = path.split('.');
        path.try_fold(claims.get(first)?, |value, key| value.get(key))
    });
    match found {
        Some(Value::Array(items)) => items.iter().filter_map(text_of).collect(),
        Some(value) => text_of(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// A text or an integer as text. Other values have no unambiguous form.
pub(crate) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn claims(value: Value) -> Claims {
        match value {
            Value::Object(claims) => claims,
            other => panic!("{other}"),
        }
    }

    fn may(pattern: &str, room: &str, of: Value) -> bool {
        pattern
            .parse::<Pattern>()
            .unwrap()
            .matches(room, &claims(of))
    }

    #[test]
    fn a_wildcard_stands_for_one_or_more_characters() {
        assert!(may("room:*", "room:a", json!({})));
        assert!(may("room:*", "room:a:b/c", json!({})));
        assert!(!may("room:*", "room:", json!({})));
        assert!(!may("room:*", "lobby", json!({})));
        assert!(may("*:chat:*", "a:chat:chat:b", json!({})));
        assert!(!may("*:chat", "a:chat:b", json!({})));
        assert!(may("*", "Ünïcode 😀", json!({})));
    }

    #[test]
    fn a_claim_is_compared_and_cannot_act_as_a_wildcard() {
        assert!(may("team:{team}", "team:red", json!({ "team": "red" })));
        assert!(!may("team:{team}", "team:red", json!({ "team": "*" })));
        assert!(may("team:{team}", "team:*", json!({ "team": "*" })));
        assert!(!may(
            "team:{team}",
            "team:red",
            json!({ "team": "{team}", "x": "red" })
        ));
        assert!(!may("team:{team}", "team:", json!({ "team": "" })));
        assert!(!may("team:{team}", "team:red", json!({})));
        assert!(may("team:{team}", "team:7", json!({ "team": 7 })));
        assert!(!may("team:{team}", "team:true", json!({ "team": true })));
    }

    #[test]
    fn a_claim_may_be_a_list_a_path_or_a_url() {
        assert!(may(
            "team:{teams}",
            "team:b",
            json!({ "teams": ["a", "b"] })
        ));
        assert!(!may(
            "team:{teams}",
            "team:c",
            json!({ "teams": ["a", "b"] })
        ));
        assert!(may(
            "r:{realm.role}",
            "r:x",
            json!({ "realm": { "role": "x" } })
        ));
        assert!(may(
            "r:{https://a.b/r}",
            "r:x",
            json!({ "https://a.b/r": "x" })
        ));
    }

    #[test]
    fn users_do_not_meet_because_of_a_separator() {
        assert!(may("dm:{sub}:*", "dm:a:x", json!({ "sub": "a" })));
        assert!(!may("dm:{sub}:*", "dm:a:b:x", json!({ "sub": "a:b" })));
        assert!(!may("*:{sub}", "x:a:b", json!({ "sub": "a:b" })));
        for pattern in ["{a}{b}", "{a}*", "*{a}", "**"] {
            let error = pattern.parse::<Pattern>().unwrap_err();
            assert_eq!(error, PatternError::Adjacent(pattern.into()));
        }
    }

    #[test]
    fn rooms_of_users_open_only_to_patterns_that_name_them() {
        assert!(!may("*", "user:ada", json!({})));
        assert!(!may("u*", "user:ada", json!({})));
        assert!(may("user:*", "user:ada", json!({})));
        assert!(may("user:{sub}", "user:ada", json!({ "sub": "ada" })));
        assert!(!may("user:{sub}", "user:ada", json!({ "sub": "bob" })));
        assert!(!may("{any}", "user:ada", json!({ "any": "user:ada" })));
    }

    #[test]
    fn a_backslash_makes_the_next_character_literal() {
        assert!(may(r"a\*\{b\\", r"a*{b\", json!({})));
        assert!(!may(r"a\*", "ab", json!({})));
        let error = r"a\".parse::<Pattern>().unwrap_err();
        assert!(error.to_string().contains("ends with a backslash"));
    }

    #[test]
    fn a_wrong_pattern_is_named() {
        for (text, error) in [
            ("", PatternError::Empty),
            ("a{b", PatternError::Claim("a{b".into())),
            ("a{}", PatternError::Claim("a{}".into())),
            ("*a*a*", PatternError::Wildcards("*a*a*".into())),
        ] {
            assert_eq!(text.parse::<Pattern>().unwrap_err(), error);
        }
        assert_eq!(Patterns::parse(&vec!["a"; 101]), Err(PatternError::TooMany));
        let policy: Result<RoomPolicy, _> = serde_json::from_value(json!({ "join": ["a{"] }));
        assert!(policy.unwrap_err().to_string().contains("`a{`"));
    }

    #[test]
    fn each_action_has_its_own_list() {
        let policy: RoomPolicy =
            serde_json::from_value(json!({ "join": ["a"], "presence": ["b"] })).unwrap();
        let none = Claims::new();
        assert!(policy.may(Action::Join, "a", &none));
        assert!(!policy.may(Action::Send, "a", &none));
        assert!(policy.may(Action::Presence, "b", &none));
        assert!(RoomPolicy::open().may(Action::Send, "anything", &none));
        assert!(!RoomPolicy::open().may(Action::Join, "user:ada", &none));
    }

    /// A pattern with one claim somewhere between texts and wildcards.
    fn one_claim() -> impl Strategy<Value = String> {
        let text = "[a-c:]{1,3}";
        prop_oneof![
            text.prop_map(|text| format!("{text}{{sub}}")),
            (text, text).prop_map(|(a, b)| format!("{a}{{sub}}{b}")),
            (text, text).prop_map(|(a, b)| format!("{a}{{sub}}{b}*")),
            text.prop_map(|text| format!("*{text}{{sub}}")),
            (text, text).prop_map(|(a, b)| format!("*{a}{{sub}}{b}*")),
        ]
    }

    proptest! {
        #[test]
        fn two_users_share_no_room_of_a_pattern_without_a_wildcard_before_the_claim(
            a in "[a-c:*]{1,3}", b in "[a-c:*]{1,3}", head in "[a-c:]{1,3}", tail in "[a-c:]{1,2}\\*?",
            room in "[a-c:*]{1,10}",
        ) {
            prop_assume!(a != b);
            let pattern = format!("{head}{{sub}}{tail}");
            let matches = |user: &str| may(&pattern, &room, json!({ "sub": user }));
            prop_assert!(!(matches(&a) && matches(&b)), "{pattern} {room} {a} {b}");
        }

        #[test]
        fn a_name_that_matches_contains_the_value(
            pattern in one_claim(), sub in "[a-c:*{}]{1,3}", room in "[a-c:*{}]{1,10}",
        ) {
            if may(&pattern, &room, json!({ "sub": &sub })) {
                prop_assert!(room.contains(&sub), "{pattern} {room} {sub}");
            }
        }

        #[test]
        fn an_escaped_text_matches_itself_alone(text in "[a*{\\\\]{1,6}", room in "[a*{\\\\]{1,6}") {
            let escaped: String = text.chars().flat_map(|char| ['\\', char]).collect();
            prop_assert!(may(&escaped, &text, Value::Object(Map::new())));
            prop_assert_eq!(may(&escaped, &room, Value::Object(Map::new())), room == text);
        }
    }
}
