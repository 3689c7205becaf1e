//! Event arguments, encoded once.
//!
//! [`Args`] has the one form that arguments have everywhere in a cluster, the *canonical
//! form*: the JSON text of their array, in which each binary value is
//! `{"_placeholder":true,"num":i}`, numbered depth-first, and the binary values as
//! attachments. Forwarding copies bytes and never encodes again. The event's name is not
//! part of it. Limits are enforced by the decoders of each protocol.
//!
//! JavaScript's text is UTF-16 and may contain lone surrogates, which UTF-8 cannot. The
//! rule on every path: the JSON text is forwarded unchanged, so clients receive exactly the sent
//! text; where text becomes UTF-8 (a Rust string, a name of an event or a room, MessagePack), a
//! lone surrogate becomes U+FFFD.

mod decode;
mod encode;
pub mod json;
mod number;
mod plain;
mod scan;
mod survey;

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use rmpv::Value;

use self::json::JsonError;
pub(crate) use self::number::{Number, canonical_numbers};
pub(crate) use self::scan::{First, JsonKind, scan};
pub(crate) use self::survey::{Container, survey};

/// Reads a type from JSON text with the rules of [`Args::decode`].
///
/// # Errors
///
/// The text is not JSON or does not fit the type.
pub fn from_json<T: DeserializeOwned>(json: &str) -> Result<T, serde_json::Error> {
    decode::from_text(json)
}

/// The reason why arguments cannot be encoded, decoded or combined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    /// A value could not be written as JSON, for example a map whose keys are not text.
    #[error("arguments cannot be encoded: {0}")]
    Encode(#[source] serde_json::Error),
    /// The arguments do not fit the receiving type, or are not JSON.
    #[error("arguments cannot be decoded: {0}")]
    Decode(#[source] serde_json::Error),
    /// The JSON text of the arguments is invalid.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The text of the arguments is not UTF-8.
    #[error("arguments are not UTF-8")]
    NotUtf8,
    /// The text of the arguments does not begin and end with the brackets of an array.
    #[error("arguments are not an array")]
    NotAnArray,
    /// A placeholder names no attachment or one that does not exist.
    #[error("placeholder without an attachment")]
    Placeholder,
    /// The data has both attachments and an object that looks like a placeholder.
    /// Receivers could not distinguish them, and most would close the connection.
    #[error("data that looks like a placeholder, with {attachments} attachments")]
    AmbiguousPlaceholder {
        /// How many attachments the arguments have.
        attachments: usize,
    },
}

/// The arguments of an event or an acknowledgement. Cloning copies no data.
///
/// An object of the application that looks like a placeholder is ordinary data as long as there are
/// no attachments. With attachments it could not be distinguished from a placeholder, so
/// [`Args::encode`] refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    json: Arc<str>,
    attachments: Vec<Bytes>,
}

impl Args {
    /// Encodes a value: a tuple is the list of arguments, `()` is no argument, and anything else is
    /// one argument.
    ///
    /// - A fixed-size array is a tuple to serde, so `[1, 2]` is two arguments; a `Vec` or a slice
    ///   is one. Newtypes are transparent, other structs (tuple structs, too) are one argument.
    /// - `Ok(value)` is encoded as `value`, and `Err(error)` as the single argument
    ///   `{"error": error}`. This applies to the outermost `Result` only.
    /// - Values that serialize as bytes (`bytes::Bytes`, the types of `serde_bytes`, binary in a
    ///   [`Value`]) become attachments, at any depth.
    /// - Numbers are those of JavaScript: `1.0` is written as `1` and `-0.0` as `0`, and infinite
    ///   floats and NaN become `null`.
    /// - `None`, [`Value::Nil`] and the null of `serde_json` are one argument, `null`.
    ///
    /// # Errors
    ///
    /// [`ArgsError::Encode`] if serde fails, for example at a map whose keys are not text, and
    /// [`ArgsError::AmbiguousPlaceholder`].
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self, ArgsError> {
        let (json, attachments) = encode::encode(value)?;
        Self::sealed(json, attachments)
    }

    /// Arguments from a JSON array with placeholders for the attachments. Only UTF-8 and
    /// the outer brackets are checked; other errors are reported when they are decoded. Numbers get
    /// the form that they have on every node: `1.0` becomes `1`.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the signature shows that the bytes are taken over"
    )]
    pub fn from_parts(json: Bytes, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        let json = std::str::from_utf8(&json).map_err(|_| ArgsError::NotUtf8)?;
        Self::from_text(json.into(), attachments)
    }

    /// Like [`Args::from_parts`], from text.
    pub fn from_text(json: Arc<str>, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        Self::from_canonical(json, attachments).map(Self::with_canonical_numbers)
    }

    /// Arguments whose numbers have their one form already.
    fn from_canonical(json: Arc<str>, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        if json.len() < 2 || !json.starts_with('[') || !json.ends_with(']') {
            return Err(ArgsError::NotAnArray);
        }
        Ok(Self { json, attachments })
    }

    /// The arguments of an event. `rest` is the part of its payload that follows the name and its
    /// comma, including the closing bracket.
    pub(crate) fn after_event(rest: &str, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        let mut json = String::with_capacity(1 + rest.len());
        json.push('[');
        json.push_str(rest);
        Self::from_text(json.into(), attachments)
    }

    /// The same arguments with all numbers in their one form. Text that this crate has
    /// not written goes through this before it is passed on, because nodes must agree on
    /// one.
    fn with_canonical_numbers(self) -> Self {
        let changed = match canonical_numbers(&self.json) {
            Cow::Borrowed(_) => None,
            Cow::Owned(json) => Some(json),
        };
        match changed {
            Some(json) => Self {
                json: json.into(),
                attachments: self.attachments,
            },
            None => self,
        }
    }

    /// Arguments that this crate has written. Refuses data that receivers would treat as
    /// placeholders.
    pub(crate) fn sealed(json: Arc<str>, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        let args = Self::from_canonical(json, attachments)?;
        check_placeholders(args.json(), args.attachments.len())?;
        Ok(args)
    }

    /// Decodes the arguments: a tuple takes as many as it has fields, `()` takes none, and anything
    /// else takes the first.
    ///
    /// As in JavaScript, missing arguments are `null` and surplus ones are ignored. A
    /// field that asks for bytes (`bytes::Bytes`, `serde_bytes::ByteBuf`, [`Value`])
    /// receives binary. A lone surrogate in a text, which JavaScript's `slice` can cut from an
    /// emoji, becomes U+FFFD. A number that no `f64` can hold is `null`.
    ///
    /// # Errors
    ///
    /// [`ArgsError::Decode`] if the arguments do not fit the type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ArgsError> {
        decode::decode(self.json(), &self.attachments)
    }

    /// The JSON array with placeholders, without the name of the event.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The JSON array with each binary value in its place, as `{"$binary":"<base64>"}`.
    /// Text without binary is not decoded.
    pub fn to_plain_json(&self) -> Result<Cow<'_, str>, ArgsError> {
        if self.attachments.is_empty() {
            return Ok(self.json().into());
        }
        let mut values = Vec::new();
        for arg in self.split()? {
            values.push(arg.decode::<Value>()?);
        }
        plain::to_json(&values)
            .map(Cow::Owned)
            .map_err(ArgsError::Encode)
    }

    /// The binary values in the order of their placeholders.
    pub fn attachments(&self) -> &[Bytes] {
        &self.attachments
    }

    /// Encodes a list of values, one argument each.
    pub fn from_values(values: impl IntoIterator<Item = Value>) -> Result<Self, ArgsError> {
        let values: Vec<_> = values.into_iter().collect();
        // A list of one argument, which is a list. The outer list goes.
        let Self { json, attachments } = Self::encode(&(values,))?;
        Self::from_canonical(json[1..json.len() - 1].into(), attachments)
    }

    /// Splits the arguments: each item is one of them alone. Items keep all attachments.
    pub fn split(&self) -> Result<Vec<Self>, ArgsError> {
        let one = |text| Self::from_canonical(format!("[{text}]").into(), self.attachments.clone());
        self.texts()?.into_iter().map(one).collect()
    }

    /// The same arguments and one more, a text of characters that JSON does not escape.
    #[must_use]
    pub fn with_last(&self, text: &str) -> Self {
        let is_first = self.is_empty();
        let json = &self.json[..self.json.len() - 1];
        let comma = if is_first { "" } else { "," };
        Self {
            json: [json, comma, "\"", text, "\"]"].concat().into(),
            attachments: self.attachments.clone(),
        }
    }

    /// Decodes one argument after the other, all as the same type.
    ///
    /// ```
    /// # use roomcast_protocol::args::{Args, ArgsError};
    /// let args = Args::encode(&(1, 2, 3))?;
    /// let sum: u32 = args.iter::<u32>()?.sum::<Result<_, _>>()?;
    /// assert_eq!(sum, 6);
    /// # Ok::<_, ArgsError>(())
    /// ```
    pub fn iter<T: DeserializeOwned>(
        &self,
    ) -> Result<impl Iterator<Item = Result<T, ArgsError>> + use<T>, ArgsError> {
        Ok(self.split()?.into_iter().map(|one| one.decode()))
    }

    /// The number of arguments.
    pub fn len(&self) -> Result<usize, ArgsError> {
        Ok(self.texts()?.len())
    }

    /// The arguments after the first `count`, none if there are fewer.
    pub fn skip(&self, count: usize) -> Result<Self, ArgsError> {
        let texts = self.texts()?;
        let Some(first) = texts.get(count) else {
            return Ok(Self::default());
        };
        // Each text is a part of this one.
        let start = first.as_ptr() as usize - self.json.as_ptr() as usize;
        let json = format!("[{}", &self.json[start..]);
        Self::from_canonical(json.into(), self.attachments.clone())
    }

    fn texts(&self) -> Result<Vec<&str>, ArgsError> {
        let mut texts = Vec::new();
        let mut tokens = json::Tokens::new(&self.json, json::MAX_DEPTH);
        tokens.token()?;
        if self.is_empty() {
            return Ok(texts);
        }
        loop {
            texts.push(tokens.value_text()?);
            if self.json[tokens.position()..].trim_start_matches(|c: char| c.is_ascii_whitespace())
                == "]"
            {
                return Ok(texts);
            }
        }
    }

    /// Checks that the arguments nest no deeper than `limit`, as nodes count when they
    /// read them: their array is the first level, and binary is none. A sender checks it, because a
    /// node with this limit cannot read deeper nesting.
    ///
    /// # Errors
    ///
    /// [`JsonError::TooDeep`]. Other errors of the text are reported when it is read.
    pub fn check_depth(&self, limit: usize) -> Result<(), JsonError> {
        self.check_depth_with(limit, 0)
    }

    /// The same, where a binary value nests `of_binary` levels in the form that is written.
    pub(crate) fn check_depth_with(&self, limit: usize, of_binary: usize) -> Result<(), JsonError> {
        // Each level has a bracket, so for most texts counting is enough.
        let begins = |byte: &&u8| matches!(**byte, b'[' | b'{');
        if self.json.as_bytes().iter().filter(begins).count() + of_binary <= limit {
            return Ok(());
        }
        let too_deep = JsonError::TooDeep { limit };
        let containers = match survey(&self.json, self.attachments.len(), json::MAX_DEPTH) {
            Ok(containers) => containers,
            Err(ArgsError::Json(JsonError::TooDeep { .. })) => return Err(too_deep),
            Err(_) => return Ok(()),
        };
        let mut containers = containers.into_iter();
        let mut tokens = json::Tokens::new(&self.json, json::MAX_DEPTH);
        while let Some(token) = tokens.token()? {
            if !matches!(token, json::Token::BeginArray | json::Token::BeginObject) {
                continue;
            }
            let is_binary = containers
                .next()
                .is_some_and(|found| found.attachment.is_some());
            let levels = if is_binary { of_binary } else { 1 };
            if tokens.depth() - 1 + levels > limit {
                return Err(too_deep);
            }
        }
        Ok(())
    }

    /// Whether there is no argument.
    pub fn is_empty(&self) -> bool {
        let inner = &self.json[1..self.json.len() - 1];
        inner.bytes().all(json::is_space)
    }
}

/// No arguments.
impl Default for Args {
    fn default() -> Self {
        Self {
            json: "[]".into(),
            attachments: Vec::new(),
        }
    }
}

/// Values that can be sent as arguments: everything that serializes, and [`Args`], which are passed
/// on unchanged with their attachments.
///
/// `Args` does not implement `Serialize`, so it cannot end up inside other arguments by mistake.
pub trait IntoArgs {
    /// Encodes the value as [`Args::encode`] does.
    fn into_args(self) -> Result<Args, ArgsError>;
}

impl<T: Serialize> IntoArgs for T {
    fn into_args(self) -> Result<Args, ArgsError> {
        Args::encode(&self)
    }
}

impl IntoArgs for Args {
    fn into_args(self) -> Result<Args, ArgsError> {
        Ok(self)
    }
}

impl IntoArgs for &Args {
    fn into_args(self) -> Result<Args, ArgsError> {
        Ok(self.clone())
    }
}

/// Types that arguments can be received as: everything that deserializes, and [`Args`].
pub trait FromArgs: Sized {
    /// Decodes the arguments as [`Args::decode`] does.
    fn from_args(args: &Args) -> Result<Self, ArgsError>;

    /// Like [`FromArgs::from_args`], from the payload of an event as it was received.
    fn from_payload(payload: &Payload<'_>) -> Result<Self, ArgsError> {
        Self::from_args(&payload.to_args()?)
    }

    /// The same for the argument at a position, which is null if there are fewer.
    fn from_rest(args: &Args, position: usize) -> Result<Self, ArgsError> {
        Self::from_args(&args.skip(position)?)
    }
}

impl<T: DeserializeOwned> FromArgs for T {
    fn from_args(args: &Args) -> Result<Self, ArgsError> {
        args.decode()
    }

    fn from_payload(payload: &Payload<'_>) -> Result<Self, ArgsError> {
        if payload.attachments.is_empty() {
            decode::decode_payload(payload.json, payload.rest)
        } else {
            payload.to_args()?.decode()
        }
    }

    fn from_rest(args: &Args, position: usize) -> Result<Self, ArgsError> {
        // In a list, so that a tuple is the one argument and not several.
        args.skip(position)?.decode().map(|(value,)| value)
    }
}

impl FromArgs for Args {
    fn from_args(args: &Args) -> Result<Self, ArgsError> {
        Ok(args.clone())
    }
}

/// The payload of an event as it was received: the array of its name and its arguments. The
/// arguments of a handler are decoded from it without a copy.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    json: &'a str,
    rest: usize,
    attachments: &'a [Bytes],
}

impl<'a> Payload<'a> {
    /// `json` is the array; `rest` is the offset in bytes after the name and its comma.
    pub fn new(json: &'a str, rest: usize, attachments: &'a [Bytes]) -> Self {
        Self {
            json,
            rest,
            attachments,
        }
    }

    /// The arguments without the name. This copies the text.
    pub fn to_args(&self) -> Result<Args, ArgsError> {
        let rest = self.json.get(self.rest..).ok_or(ArgsError::NotAnArray)?;
        Args::after_event(rest, self.attachments.to_vec())
    }
}

/// Fails if receivers would take data of a text with `attachments` attachments for placeholders.
pub(crate) fn check_placeholders(json: &str, attachments: usize) -> Result<(), ArgsError> {
    if attachments > 0 && placeholders(json, attachments).ok() != Some(attachments) {
        return Err(ArgsError::AmbiguousPlaceholder { attachments });
    }
    Ok(())
}

/// Counts the placeholders of a JSON text that has `attachments` attachments, and checks that each
/// names one. Several may name the same attachment, and an attachment may have none. Without
/// attachments there are no placeholders.
pub fn placeholders(json: &str, attachments: usize) -> Result<usize, ArgsError> {
    let containers = survey(json, attachments, json::MAX_DEPTH)?;
    Ok(containers
        .iter()
        .filter(|container| container.attachment.is_some())
        .count())
}
