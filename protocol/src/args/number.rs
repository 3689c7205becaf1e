//! Numbers as JavaScript means them.
//!
//! JSON has many texts for one number, and MessagePack has integers and floats.
//! JavaScript has one type: `1.0` is `1`, `-0.0` is written as `0`, and a number beyond the range
//! of a double is `null` in JSON. A node must not pass on another text than its peers, so arguments
//! are brought into one form where they enter a node: integers while 64 bits hold them, otherwise
//! the shortest text of the double. Integers keep every digit up to 64 bits, where JavaScript
//! rounds beyond 2^53.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use super::json::{MAX_DEPTH, Token, Tokens, plain_strings};

/// A number in its one form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl Number {
    /// The number of a JSON text.
    pub(crate) fn parse(text: &str) -> Self {
        if let Ok(value) = text.parse() {
            return Self::Unsigned(value);
        }
        match text.parse() {
            Ok(value) => Self::Signed(value),
            Err(_) => text
                .parse::<f64>()
                .map_or(Self::Float(f64::NAN), Self::from),
        }
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        const TWO_POW_63: f64 = 9_223_372_036_854_775_808.0;
        if value.fract() != 0.0 {
            Self::Float(value)
        } else if (0.0..2.0 * TWO_POW_63).contains(&value) {
            Self::Unsigned(value as u64)
        } else if (-TWO_POW_63..0.0).contains(&value) {
            Self::Signed(value as i64)
        } else {
            Self::Float(value)
        }
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Unsigned(value) => serializer.serialize_u64(value),
            Self::Signed(value) => serializer.serialize_i64(value),
            Self::Float(value) => serializer.serialize_f64(value),
        }
    }
}

/// A valid JSON text with all numbers in their one form. Texts that need no change, which
/// are nearly all, are borrowed.
pub(crate) fn canonical_numbers(json: &str) -> Cow<'_, str> {
    if plain_strings(json).is_some() || !may_have_odd_numbers(json) {
        return json.into();
    }
    let mut tokens = Tokens::new(json, MAX_DEPTH);
    let (mut text, mut copied) = (String::new(), 0);
    while let Ok(Some(token)) = tokens.token() {
        let Token::Number(number) = token else {
            continue;
        };
        let Some(canonical) = canonical(number) else {
            continue;
        };
        text.push_str(&json[copied..tokens.start()]);
        text.push_str(&canonical);
        copied = tokens.position();
    }
    if copied == 0 {
        return json.into();
    }
    text.push_str(&json[copied..]);
    text.into()
}

/// Whether a number may have another form. It may be wrong about text inside strings, which it
/// checks like everything else because that is fastest.
fn may_have_odd_numbers(json: &str) -> bool {
    let bytes = json.as_bytes();
    let mut digits = 0;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' => digits += 1,
            b'.' | b'e' | b'E' if digits > 0 => return true,
            _ => digits = 0,
        }
        if digits > SAFE_DIGITS || (*byte == b'0' && at > 0 && bytes[at - 1] == b'-') {
            return true;
        }
    }
    false
}

/// An integer with this number of digits fits into 64 bits.
const SAFE_DIGITS: usize = 18;

/// The one form of a number, if it is another text.
fn canonical(number: &str) -> Option<String> {
    let is_integer = number
        .bytes()
        .all(|byte| byte == b'-' || byte.is_ascii_digit());
    if is_integer && number.len() <= SAFE_DIGITS && number != "-0" {
        return None;
    }
    let text = serde_json::to_string(&Number::parse(number)).expect("a number is JSON");
    (text != number).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_the_form_that_javascript_means() {
        for (text, expected) in [
            ("[1.0,-0.0,-0,0.0]", "[1,0,0,0]"),
            ("[1.50,2.5,0.1,1e2,1E-7]", "[1.5,2.5,0.1,100,1e-7]"),
            ("[1e400,-1e400]", "[null,null]"),
            (
                "[9007199254740993,18446744073709551615,-9223372036854775808]",
                "[9007199254740993,18446744073709551615,-9223372036854775808]",
            ),
            (
                "[123456789012345678901234567890]",
                "[1.2345678901234568e+29]",
            ),
            (r#"{"1.0":1.0,"a":"-0.0"}"#, r#"{"1.0":1,"a":"-0.0"}"#),
            (r#" [ 1.0 , "x" ] "#, r#" [ 1 , "x" ] "#),
            (r#"["1.0","-0"]"#, r#"["1.0","-0"]"#),
        ] {
            assert_eq!(canonical_numbers(text), expected);
        }
    }

    proptest! {
        #[test]
        fn the_one_form_of_a_number_is_its_own_form(value in any::<f64>(), digits in "-?[1-9][0-9]{0,40}") {
            for text in [format!("[{value:e}]"), format!("[{value}]"), format!("[{digits}]")] {
                let once = canonical_numbers(&text).into_owned();
                prop_assert_eq!(&canonical_numbers(&once), &once);
                let (before, after): (Vec<f64>, Vec<Option<f64>>) = (
                    vec![text[1..text.len() - 1].parse().unwrap()],
                    serde_json::from_str(&once).unwrap(),
                );
                let same = if before[0].is_finite() { Some(before[0]) } else { None };
                prop_assert_eq!(after[0], same);
            }
        }
    }
}
