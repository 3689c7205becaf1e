//! A JSON tokenizer.
//!
//! It is ours because the text of arguments is validated and forwarded, not decoded, and
//! a library would refuse or change some of it: `JSON.parse` accepts numbers of any size
//! and escapes of lone surrogates, and everything that one client sends must reach the others. In
//! addition, nesting must have a limit and no recursion, placeholders must be found in place, and
//! an event of plain strings, the common case, must not be read byte by byte (`serde_json` takes
//! about a thousand instructions for a string of 128 bytes; see [`plain_strings`]).
//!
//! There is no recursion, no byte is read twice, no tree is built, and nothing is allocated up to a
//! depth of 128. The state is which token may come next:
//!
//! ```text
//!            ┌──────────── "," ◀───────────┐
//!            ▼                             │
//!   Value ──scalar, or a container ends──▶ CommaOrEnd ── end of the outermost ──▶ Nothing
//!     │ "["  ▶ ValueOrEnd                  ▲
//!     │ "{"  ▶ KeyOrEnd ──"key":──▶ Value ─┘      ("," in an object ▶ Key ──"key":──▶ Value)
//! ```

use std::borrow::Cow;

/// Maximum depth of arrays and objects, regardless of the requested limit. Typed decoding and the
/// writing of MessagePack recurse, and a thread with a stack of 2 MiB must survive this depth.
pub const MAX_DEPTH: usize = 500;

/// Default of the configurable limit on depth, for clients, nodes and emitters alike. It is far
/// above the depth that applications use and far below [`MAX_DEPTH`].
pub const DEFAULT_DEPTH: usize = 400;

/// Why a text is not accepted as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The text is invalid at this byte, or ends too early.
    #[error("invalid JSON at byte {at}")]
    Syntax {
        /// Offset in bytes.
        at: usize,
    },
    /// Arrays and objects nest deeper than the limit.
    #[error("JSON nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

/// A token. Commas and colons are checked but not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number in its written form.
    Number(&'a str),
    /// A string value: the text between the quotes, with its escapes.
    String(&'a str),
    /// The name of an object's member, with its escapes.
    Key(&'a str),
    /// `[`
    BeginArray,
    /// `]`
    EndArray,
    /// `{`
    BeginObject,
    /// `}`
    EndObject,
}

/// Reads the tokens of one JSON text.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    text: &'a str,
    at: usize,
    start: usize,
    /// Bit 0 is the innermost container: 1 for an object.
    open: u128,
    /// The words of `open` for the containers outside, 128 each. Nearly always empty.
    outer: Vec<u128>,
    depth: usize,
    max_depth: usize,
    expect: Expect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    CommaOrEnd,
    Nothing,
}

impl<'a> Tokens<'a> {
    /// A tokenizer at the beginning of `text`. A `max_depth` above [`MAX_DEPTH`] is [`MAX_DEPTH`].
    pub fn new(text: &'a str, max_depth: usize) -> Self {
        let max_depth = max_depth.min(MAX_DEPTH);
        Self {
            text,
            at: 0,
            start: 0,
            open: 0,
            outer: Vec::new(),
            depth: 0,
            max_depth,
            expect: Expect::Value,
        }
    }

    /// The next token; `None` at the end of a complete text.
    pub fn token(&mut self) -> Result<Option<Token<'a>>, JsonError> {
        let byte = self.pass_comma();
        self.start = self.at;
        let Some(byte) = byte else {
            return if self.expect == Expect::Nothing {
                Ok(None)
            } else {
                Err(self.syntax())
            };
        };
        match (self.expect, byte) {
            (Expect::Value | Expect::ValueOrEnd, _) if byte != b']' => self.value(byte).map(Some),
            (Expect::Key | Expect::KeyOrEnd, b'"') => self.key().map(Some),
            (Expect::ValueOrEnd, b']') => Ok(Some(self.close(Token::EndArray))),
            (Expect::KeyOrEnd, b'}') => Ok(Some(self.close(Token::EndObject))),
            (Expect::CommaOrEnd, b'}') if self.in_object() => {
                Ok(Some(self.close(Token::EndObject)))
            }
            (Expect::CommaOrEnd, b']') if !self.in_object() => {
                Ok(Some(self.close(Token::EndArray)))
            }
            _ => Err(self.syntax()),
        }
    }

    /// Checks the rest of the text.
    pub fn finish(mut self) -> Result<(), JsonError> {
        while self.token()?.is_some() {}
        Ok(())
    }

    /// Skips one value and returns its text. Its depth is counted from the value itself.
    pub(crate) fn value_text(&mut self) -> Result<&'a str, JsonError> {
        let byte = self.pass_comma();
        let is_end = self.expect == Expect::ValueOrEnd && byte == Some(b']');
        if is_end || !matches!(self.expect, Expect::Value | Expect::ValueOrEnd) {
            return Err(self.syntax());
        }
        let start = self.at;
        let mut value = Tokens::new(&self.text[start..], self.max_depth);
        let in_whole = |error| match error {
            JsonError::Syntax { at } => JsonError::Syntax { at: start + at },
            error => error,
        };
        value.token().map_err(in_whole)?;
        while value.depth > 0 {
            value.token().map_err(in_whole)?;
        }
        self.start = start;
        self.at += value.at;
        self.after_value();
        Ok(&self.text[start..self.at])
    }

    /// Offset in bytes of the latest token.
    #[inline]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Offset in bytes of the end of the latest token.
    #[inline]
    pub fn position(&self) -> usize {
        self.at
    }

    /// The number of open arrays and objects.
    #[inline]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The next byte that is not white space, after a comma if there is one.
    #[inline]
    fn pass_comma(&mut self) -> Option<u8> {
        let byte = self.next_visible();
        if self.expect != Expect::CommaOrEnd || byte != Some(b',') {
            return byte;
        }
        self.at += 1;
        self.expect = if self.in_object() {
            Expect::Key
        } else {
            Expect::Value
        };
        self.next_visible()
    }

    #[inline]
    fn value(&mut self, byte: u8) -> Result<Token<'a>, JsonError> {
        let token = match byte {
            b'"' => Token::String(self.string()?),
            b'{' => return self.open(Token::BeginObject),
            b'[' => return self.open(Token::BeginArray),
            b'-' | b'0'..=b'9' => self.number()?,
            b't' => self.literal("true", Token::Bool(true))?,
            b'f' => self.literal("false", Token::Bool(false))?,
            b'n' => self.literal("null", Token::Null)?,
            _ => return Err(self.syntax()),
        };
        self.after_value();
        Ok(token)
    }

    fn key(&mut self) -> Result<Token<'a>, JsonError> {
        let key = self.string()?;
        if self.next_visible() != Some(b':') {
            return Err(self.syntax());
        }
        self.at += 1;
        self.expect = Expect::Value;
        Ok(Token::Key(key))
    }

    fn string(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at + 1;
        let end = string_end(self.text.as_bytes(), start).map_err(|at| JsonError::Syntax { at })?;
        self.at = end + 1;
        Ok(&self.text[start..end])
    }

    fn number(&mut self) -> Result<Token<'a>, JsonError> {
        let start = self.at;
        let end = number_end(self.text.as_bytes(), start).map_err(|at| JsonError::Syntax { at })?;
        self.at = end;
        Ok(Token::Number(&self.text[start..end]))
    }

    fn literal(&mut self, literal: &str, token: Token<'a>) -> Result<Token<'a>, JsonError> {
        if !self.text.as_bytes()[self.at..].starts_with(literal.as_bytes()) {
            return Err(self.syntax());
        }
        self.at += literal.len();
        Ok(token)
    }

    fn open(&mut self, token: Token<'a>) -> Result<Token<'a>, JsonError> {
        if self.depth == self.max_depth {
            return Err(JsonError::TooDeep {
                limit: self.max_depth,
            });
        }
        let object = token == Token::BeginObject;
        if self.depth > 0 && self.depth.is_multiple_of(u128::BITS as usize) {
            self.outer.push(self.open);
        }
        self.open = self.open << 1 | u128::from(object);
        self.depth += 1;
        self.at += 1;
        self.expect = if object {
            Expect::KeyOrEnd
        } else {
            Expect::ValueOrEnd
        };
        Ok(token)
    }

    fn close(&mut self, token: Token<'a>) -> Token<'a> {
        self.open >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(u128::BITS as usize) {
            self.open = self.outer.pop().expect("each 128 levels were stored");
        }
        self.at += 1;
        self.after_value();
        token
    }

    fn after_value(&mut self) {
        self.expect = if self.depth == 0 {
            Expect::Nothing
        } else {
            Expect::CommaOrEnd
        };
    }

    fn in_object(&self) -> bool {
        self.open & 1 == 1
    }

    #[inline]
    fn next_visible(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            if !is_space(byte) {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    fn syntax(&self) -> JsonError {
        JsonError::Syntax { at: self.at }
    }
}

/// Whether `byte` is white space between tokens.
#[inline]
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Resolves the escapes of a string token. Lone surrogates, which JavaScript's strings may contain
/// and Rust's cannot, become U+FFFD.
pub(crate) fn unescape(raw: &str) -> Cow<'_, str> {
    let Some(first) = raw.find('\\') else {
        return Cow::Borrowed(raw);
    };
    let mut text = String::with_capacity(raw.len());
    text.push_str(&raw[..first]);
    let mut rest = &raw[first..];
    while let Some(escape) = rest.strip_prefix('\\') {
        rest = unescape_one(escape, &mut text);
        let plain = rest.find('\\').unwrap_or(rest.len());
        text.push_str(&rest[..plain]);
        rest = &rest[plain..];
    }
    Cow::Owned(text)
}

/// Appends the character of the escape at the start of `escape`, whose backslash was removed, and
/// returns the rest.
fn unescape_one<'a>(escape: &'a str, text: &mut String) -> &'a str {
    let mut chars = escape.chars();
    let plain = match chars.next() {
        Some('b') => '\u{8}',
        Some('f') => '\u{c}',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('u') => return unescape_unicode(chars.as_str(), text),
        Some(other) => other,
        None => return "",
    };
    text.push(plain);
    chars.as_str()
}

fn unescape_unicode<'a>(digits: &'a str, text: &mut String) -> &'a str {
    let Some((unit, rest)) = hex_unit(digits) else {
        text.push(char::REPLACEMENT_CHARACTER);
        return digits;
    };
    if let Some((low, after)) = rest.strip_prefix("\\u").and_then(hex_unit)
        && let Some(Ok(pair)) = char::decode_utf16([unit, low]).next()
        && u32::from(pair) > 0xffff
    {
        text.push(pair);
        return after;
    }
    text.push(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER));
    rest
}

/// A JSON text in which each lone surrogate is an escape of U+FFFD; borrowed if there is none.
///
/// JavaScript's strings may contain half of a surrogate pair (`"😀".slice(0, 1)`), and
/// JSON writes it as an escape. There is no such text in UTF-8.
pub(super) fn replace_lone_surrogates(json: &str) -> Cow<'_, str> {
    let (mut text, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(found) = json[at..].find('\\') {
        let escape = at + found;
        let Some((unit, rest)) = json[escape + 1..].strip_prefix('u').and_then(hex_unit) else {
            // The character after the backslash may be a backslash, which escapes nothing.
            let skipped = json[escape + 1..].chars().next().map_or(0, char::len_utf8);
            at = escape + 1 + skipped;
            continue;
        };
        at = escape + 6;
        if !(0xd800..0xe000).contains(&unit) {
            continue;
        }
        let low = rest.strip_prefix("\\u").and_then(hex_unit);
        let is_pair = unit < 0xdc00 && low.is_some_and(|(low, _)| (0xdc00..0xe000).contains(&low));
        if is_pair {
            at += 6;
            continue;
        }
        text.push_str(&json[copied..escape]);
        text.push_str("\\ufffd");
        copied = at;
    }
    if copied == 0 {
        return json.into();
    }
    text.push_str(&json[copied..]);
    text.into()
}

fn hex_unit(digits: &str) -> Option<(u16, &str)> {
    let (head, rest) = digits.split_at_checked(4)?;
    Some((u16::from_str_radix(head, 16).ok()?, rest))
}

/// Finds the closing quote of the string whose first character is at `at`. Fails with the offset of
/// the invalid byte.
fn string_end(bytes: &[u8], mut at: usize) -> Result<usize, usize> {
    loop {
        at += plain_prefix(&bytes[at..]);
        while let Some(chunk) = bytes[at..].first_chunk::<8>() {
            let special = special_bytes(u64::from_le_bytes(*chunk));
            if special != 0 {
                at += special.trailing_zeros() as usize / 8;
                break;
            }
            at += 8;
        }
        match bytes.get(at) {
            Some(b'"') => return Ok(at),
            Some(b'\\') => at = escape_end(bytes, at)?,
            Some(0x20..) => at += 1,
            _ => return Err(at),
        }
    }
}

/// Whether a text needs no escapes as a JSON string.
pub(super) fn is_plain(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes[plain_prefix(bytes)..]
        .iter()
        .all(|&byte| !is_special(byte))
}

/// The string whose opening quote is at `at`, if it has no escapes.
pub(super) fn plain_string(text: &str, at: usize) -> Option<&str> {
    let bytes = text.as_bytes();
    (bytes.get(at) == Some(&b'"')).then_some(())?;
    plain_end(bytes, at + 1).map(|end| &text[at + 1..end])
}

/// Validates an array of strings without escapes and without white space. Returns the
/// first string and the offset in bytes of the second one, or of the closing bracket if
/// there is none; `None` for any other text. Many events are such arrays, and this is
/// several times faster than [`Tokens`].
pub fn plain_strings(array: &str) -> Option<(&str, usize)> {
    let bytes = array.as_bytes();
    let mut first = None;
    let mut at = 1;
    if bytes.first() != Some(&b'[') {
        return None;
    }
    loop {
        let start = at + 1;
        if bytes.get(at) != Some(&b'"') {
            return None;
        }
        let end = plain_end(bytes, start)?;
        let (is_last, rest) = match bytes.get(end + 1)? {
            b',' => (false, end + 2),
            b']' => (true, end + 1),
            _ => return None,
        };
        let found = *first.get_or_insert_with(|| (&array[start..end], rest));
        if is_last {
            return (end + 2 == bytes.len()).then_some(found);
        }
        at = rest;
    }
}

/// The offset of the closing quote of a string that begins at `at`, if it has no escapes.
fn plain_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = at + plain_prefix(&bytes[at..]);
    if let Some(word) = bytes[at..].first_chunk::<8>() {
        at += special_bytes(u64::from_le_bytes(*word)).trailing_zeros() as usize / 8;
    }
    let end = at + bytes[at..].iter().position(|&byte| is_special(byte))?;
    (bytes[end] == b'"').then_some(end)
}

/// The length in bytes of the whole blocks at the start that have no special byte. It is written so
/// that the compiler uses vector instructions.
fn plain_prefix(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let is_plain = |block: &&[u8; BLOCK]| {
        let found = block.iter().fold(false, |any, &b| any | is_special(b));
        !found
    };
    BLOCK * blocks.iter().take_while(is_plain).count()
}

const BLOCK: usize = 16;

fn is_special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

/// Marks the first special byte of `word` (a quote, a backslash or a control character)
/// with the high bit of that byte. Marks above the first may be wrong, because
/// subtraction borrows.
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = ONES << 7;
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word & HIGH;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    below(word, 0x20) | equal(b'"') | equal(b'\\')
}

fn escape_end(bytes: &[u8], at: usize) -> Result<usize, usize> {
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => match bytes.get(at + 2..at + 6) {
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => Ok(at + 6),
            _ => Err(at),
        },
        _ => Err(at),
    }
}

fn number_end(bytes: &[u8], mut at: usize) -> Result<usize, usize> {
    if bytes.get(at) == Some(&b'-') {
        at += 1;
    }
    at = match bytes.get(at) {
        Some(b'0') => at + 1,
        _ => digits_end(bytes, at)?,
    };
    if bytes.get(at) == Some(&b'.') {
        at = digits_end(bytes, at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
        at = digits_end(bytes, at + 1 + usize::from(signed))?;
    }
    Ok(at)
}

/// The offset after the digits at `at`; at least one digit is required.
fn digits_end(bytes: &[u8], at: usize) -> Result<usize, usize> {
    let digits = bytes[at..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    if digits == 0 {
        Err(at)
    } else {
        Ok(at + digits)
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    fn tokens(text: &str) -> Result<Vec<Token<'_>>, JsonError> {
        let mut tokens = Tokens::new(text, MAX_DEPTH);
        iter::from_fn(|| tokens.token().transpose()).collect()
    }

    #[test]
    fn tokens_come_in_the_order_of_the_text() {
        use Token::*;
        let text = " [1 , {\"a\" : null,\"b\":[]} ,\"x\\n\",true,{}] ";
        let expected = vec![
            BeginArray,
            Number("1"),
            BeginObject,
            Key("a"),
            Null,
            Key("b"),
            BeginArray,
            EndArray,
            EndObject,
            String("x\\n"),
            Bool(true),
            BeginObject,
            EndObject,
            EndArray,
        ];
        assert_eq!(tokens(text), Ok(expected));
    }

    #[test]
    fn a_value_is_passed_over_wherever_one_may_stand() {
        let text = r#"{"a" : [1,{}] ,"b":[ "x\"]" , 2 ,[]]}"#;
        let mut tokens = Tokens::new(text, 2);
        assert_eq!(tokens.token(), Ok(Some(Token::BeginObject)));
        assert!(tokens.value_text().is_err(), "a key is no value");
        assert_eq!(tokens.token(), Ok(Some(Token::Key("a"))));
        assert_eq!(tokens.value_text(), Ok("[1,{}]"));
        assert_eq!(tokens.token(), Ok(Some(Token::Key("b"))));
        assert_eq!(tokens.token(), Ok(Some(Token::BeginArray)));
        for value in [r#""x\"]""#, "2", "[]"] {
            assert_eq!(tokens.value_text(), Ok(value));
        }
        assert!(tokens.value_text().is_err());
        assert_eq!(tokens.token(), Ok(Some(Token::EndArray)));
        assert_eq!(tokens.token(), Ok(Some(Token::EndObject)));
        assert_eq!(tokens.token(), Ok(None));

        for broken in ["", "[1", "[1,]", "x", "]", "{\"a\""] {
            assert!(Tokens::new(broken, 9).value_text().is_err(), "{broken}");
        }
        assert_eq!(
            Tokens::new("[[1]]", 1).value_text(),
            Err(JsonError::TooDeep { limit: 1 })
        );
    }

    #[test]
    fn what_json_parse_accepts_is_accepted() {
        for text in [
            "0",
            "-0",
            "-0.0e+00",
            "1e999999",
            "123456789012345678901234567890",
            "\"\\ud800\"",
            "\"\\u0000\\/\"",
            "\"\u{7f}\u{2028}\"",
            "\t\r\n []",
            "{\"\":0,\"\":1}",
        ] {
            assert!(tokens(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_json_parse_refuses_is_refused() {
        for text in [
            "",
            " ",
            "[",
            "]",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "{1:1}",
            "[1}",
            "{\"a\":1]",
            "01",
            "-",
            "+1",
            ".5",
            "1.",
            "1e",
            "1e+",
            "--1",
            "\"",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u123",
            "\"\n\"",
            "\"\\",
            "nul",
            "truex",
            "NaN",
            "'a'",
            "\u{a0}1",
            "1 1",
            "[]]",
            "\u{feff}[]",
            "{,}",
            "[:]",
            "{\"a\",1}",
        ] {
            assert!(tokens(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_special_byte_is_found_at_every_place_of_a_word() {
        for at in 0..20 {
            for special in ["\"", "\u{1f}", "\\"] {
                let text = format!("\"{}{special}\"", "x".repeat(at));
                assert!(tokens(&text).is_err(), "{text:?}");
            }
            let text = format!("\"{}\"", "x".repeat(at));
            assert_eq!(tokens(&text), Ok(vec![Token::String(&text[1..=at])]));
        }
        assert!(tokens("\"ééééééééé\\\"é\"").is_ok());
    }

    #[test]
    fn the_depth_limit_is_exact() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let check = |depth, limit| Tokens::new(&nested(depth), limit).finish();
        assert_eq!(check(3, 3), Ok(()));
        assert_eq!(check(4, 3), Err(JsonError::TooDeep { limit: 3 }));
        for depth in [127, 128, 129, 255, 256, 257, MAX_DEPTH] {
            assert_eq!(check(depth, usize::MAX), Ok(()));
        }
        assert_eq!(
            check(MAX_DEPTH + 1, usize::MAX),
            Err(JsonError::TooDeep { limit: MAX_DEPTH })
        );
    }

    #[test]
    fn lone_surrogates_are_replaced_and_pairs_are_kept() {
        for (json, expected) in [
            (r#"["\ud83d"]"#, r#"["\ufffd"]"#),
            (r#"["a\uDC00b\ud83d\ude00"]"#, r#"["a\ufffdb\ud83d\ude00"]"#),
            (r#"["\ud83d\ud83d\ude00"]"#, r#"["\ufffd\ud83d\ude00"]"#),
            (r#"["\ud83d\u0041"]"#, r#"["\ufffd\u0041"]"#),
            (r#"{"\ud83dk":"\ud83d\n"}"#, r#"{"\ufffdk":"\ufffd\n"}"#),
            (r#"["\\ud83d","\\\ud83d"]"#, r#"["\\ud83d","\\\ufffd"]"#),
            (r#"["\u00e9\""]"#, r#"["\u00e9\""]"#),
            (r#"["\"#, r#"["\"#),
        ] {
            assert_eq!(replace_lone_surrogates(json), expected, "{json}");
        }
    }

    #[test]
    fn brackets_must_match_at_every_depth() {
        for depth in [1, 127, 128, 129, 300] {
            let open: String = (0..depth)
                .map(|at| if at % 3 == 0 { "{\"a\":" } else { "[" })
                .collect();
            let close: String = (0..depth)
                .rev()
                .map(|at| if at % 3 == 0 { '}' } else { ']' })
                .collect();
            let text = format!("{open}0{close}");
            assert!(tokens(&text).is_ok(), "{depth}");
            for at in 0..depth {
                let mut wrong = text.clone().into_bytes();
                let at = wrong.len() - 1 - at;
                wrong[at] = if wrong[at] == b'}' { b']' } else { b'}' };
                assert!(
                    tokens(std::str::from_utf8(&wrong).unwrap()).is_err(),
                    "{depth} {at}"
                );
            }
        }
    }

    #[test]
    fn escapes_are_resolved_and_lone_surrogates_replaced() {
        for (raw, text) in [
            ("plain", "plain"),
            (r#"a\"\\\/\b\f\n\r\tz"#, "a\"\\/\u{8}\u{c}\n\r\tz"),
            (r"\u00e9\u20AC", "é€"),
            (r"\ud83d\ude00!", "😀!"),
            (r"\ud800", "\u{fffd}"),
            (r"a\ud800b\udc00", "a\u{fffd}b\u{fffd}"),
            (r"\ud800\u0041", "\u{fffd}A"),
            (r"\ud800\ud83d\ude00", "\u{fffd}😀"),
        ] {
            assert_eq!(unescape(raw), text, "{raw}");
        }
    }
}
