//! Event arguments, encoded once.
//!
//! [`Args`] is the one form that arguments have everywhere in a cluster: the JSON text of their
//! array, in which binary stands as `{"_placeholder":true,"num":i}` numbered depth-first, and the
//! binary attachments beside it. Whoever sends them on copies bytes and never encodes again. The
//! event's name is not part of them, and no limits are enforced here: those belong to the edges.

mod decode;
mod encode;
pub mod json;
mod survey;

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use rmpv::Value;

use self::json::JsonError;
pub(crate) use self::survey::{Container, survey};

/// Why arguments could not be encoded, decoded or put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    /// A value could not be written as JSON, for example a map whose keys are not text.
    #[error("arguments cannot be encoded: {0}")]
    Encode(#[source] serde_json::Error),
    /// The arguments are not what the receiving type asks for, or not JSON at all.
    #[error("arguments cannot be decoded: {0}")]
    Decode(#[source] serde_json::Error),
    /// The JSON text of the arguments is broken.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The text of the arguments is not UTF-8.
    #[error("arguments are not UTF-8")]
    NotUtf8,
    /// The text of the arguments does not stand in the brackets of an array.
    #[error("arguments are not an array")]
    NotAnArray,
    /// A placeholder names an attachment that is not there, or none at all.
    #[error("placeholder without an attachment")]
    Placeholder,
    /// Beside real binary, the data holds an object of its own that reads as a placeholder.
    /// Receivers could not tell them apart, and most of them would close the connection.
    #[error("data that looks like a placeholder beside {attachments} attachments")]
    AmbiguousPlaceholder {
        /// How many attachments the arguments have.
        attachments: usize,
    },
}

/// The arguments of an event or an acknowledgement. Cloning copies no data.
///
/// An object of the application that looks like a placeholder is ordinary data as long as there
/// are no attachments. Together with attachments it cannot be told from a real placeholder, so
/// [`Args::encode`] refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    json: Arc<str>,
    attachments: Vec<Bytes>,
}

impl Args {
    /// Encodes a value: a tuple is the list of arguments, `()` is no argument, anything else is
    /// one argument.
    ///
    /// - A fixed-size array is a tuple to serde, so `[1, 2]` is two arguments; a `Vec` or a slice
    ///   is one. Newtypes are transparent, other structs (tuple structs, too) are one argument.
    /// - `Ok(value)` encodes as `value` would; `Err(error)` is the single argument
    ///   `{"error": error}`. This holds for the outermost `Result` alone.
    /// - What serializes as bytes (`bytes::Bytes`, the types of `serde_bytes`, binary in a
    ///   [`Value`]) becomes an attachment, at any depth.
    /// - Floats that JSON has no number for become `null`, as in JavaScript.
    /// - [`Value::Nil`] is a unit: no argument. `None` is one argument, `null`.
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self, ArgsError> {
        let (json, attachments) = encode::encode(value)?;
        Self::sealed(json, attachments)
    }

    /// Puts arguments together that are encoded already. Only UTF-8 and the outer brackets are
    /// checked; the rest shows when they are decoded.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "says that the bytes are taken over"
    )]
    pub fn from_parts(json: Bytes, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        let json = std::str::from_utf8(&json).map_err(|_| ArgsError::NotUtf8)?;
        Self::from_text(json.into(), attachments)
    }

    /// The same for what is text already.
    pub fn from_text(json: Arc<str>, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        if json.len() < 2 || !json.starts_with('[') || !json.ends_with(']') {
            return Err(ArgsError::NotAnArray);
        }
        Ok(Self { json, attachments })
    }

    /// The arguments of an event: `rest` is what follows the event's name in its payload, up to and
    /// with the closing bracket.
    pub fn after_event(rest: &str, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        let mut json = String::with_capacity(1 + rest.len());
        json.push('[');
        json.push_str(rest);
        Self::from_text(json.into(), attachments)
    }

    /// Puts arguments together that were written by this crate; refuses data that receivers would
    /// take for placeholders.
    pub(crate) fn sealed(json: Arc<str>, attachments: Vec<Bytes>) -> Result<Self, ArgsError> {
        let args = Self::from_text(json, attachments)?;
        let attachments = args.attachments.len();
        if attachments > 0 && placeholders(args.json(), attachments).ok() != Some(attachments) {
            return Err(ArgsError::AmbiguousPlaceholder { attachments });
        }
        Ok(args)
    }

    /// Decodes the arguments: a tuple takes as many as it has fields, `()` takes none, anything
    /// else takes the first.
    ///
    /// As in JavaScript, missing arguments are null and surplus ones are ignored. Binary arrives
    /// wherever a field asks for bytes (`bytes::Bytes`, `serde_bytes::ByteBuf`, [`Value`]). Text
    /// with half a surrogate pair and numbers beyond `f64` are errors here, though they may travel.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ArgsError> {
        decode::decode(self.json(), &self.attachments)
    }

    /// The JSON array, binary as placeholders, without the name of the event.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The binary values, in the order of their placeholders.
    pub fn attachments(&self) -> &[Bytes] {
        &self.attachments
    }

    /// Whether there is no argument at all.
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

/// What can be sent as arguments: whatever serializes, and [`Args`] themselves, which pass
/// unchanged with their attachments.
///
/// `Args` do not implement `Serialize`, so they cannot end up inside other arguments by mistake.
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

/// What arguments can be received as: whatever deserializes, and [`Args`] themselves.
pub trait FromArgs: Sized {
    /// Decodes the arguments as [`Args::decode`] does.
    fn from_args(args: &Args) -> Result<Self, ArgsError>;

    /// The same for the payload of an event as it was received.
    fn from_payload(payload: &Payload<'_>) -> Result<Self, ArgsError> {
        Self::from_args(&payload.to_args()?)
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
}

impl FromArgs for Args {
    fn from_args(args: &Args) -> Result<Self, ArgsError> {
        Ok(args.clone())
    }
}

/// The payload of an event as it was received: the array of its name and its arguments. What a
/// handler takes is decoded from it without a copy in between.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    json: &'a str,
    rest: usize,
    attachments: &'a [Bytes],
}

impl<'a> Payload<'a> {
    /// `json` is the array; at `rest` begins what follows the name and its comma.
    pub fn new(json: &'a str, rest: usize, attachments: &'a [Bytes]) -> Self {
        Self {
            json,
            rest,
            attachments,
        }
    }

    /// The arguments by themselves.
    pub fn to_args(&self) -> Result<Args, ArgsError> {
        let rest = self.json.get(self.rest..).ok_or(ArgsError::NotAnArray)?;
        Args::after_event(rest, self.attachments.to_vec())
    }
}

/// Counts the placeholders of a JSON text that came with `attachments` attachments, and checks
/// that each of them names one. Several may name the same one, and one may stay unnamed. Without
/// attachments nothing is a placeholder.
pub fn placeholders(json: &str, attachments: usize) -> Result<usize, ArgsError> {
    let containers = survey(json, attachments, json::MAX_DEPTH)?;
    Ok(containers
        .iter()
        .filter(|container| container.attachment.is_some())
        .count())
}
