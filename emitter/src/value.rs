//! A reply of Redis that outlives the buffer it was read from.

use crate::resp::Reply;

/// A reply of Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The missing string or the missing list.
    Nil,
    /// A number.
    Integer(i64),
    /// A string or a status such as `OK`.
    Bytes(Box<[u8]>),
    /// An error, with its code in front.
    Error(Box<str>),
    /// A list.
    List(Vec<Self>),
}

impl Value {
    /// The text of a string or status, if it is text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The number, also where Redis sends one as text.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => self.text()?.parse().ok(),
        }
    }

    /// The elements of a list.
    pub fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(elements) => Some(elements),
            _ => None,
        }
    }
}

impl From<&Reply<'_>> for Value {
    fn from(reply: &Reply<'_>) -> Self {
        match reply {
            Reply::Nil => Self::Nil,
            Reply::Integer(number) => Self::Integer(*number),
            Reply::Simple(bytes) | Reply::Bulk(bytes) => Self::Bytes((*bytes).into()),
            Reply::Error(text) => Self::Error(String::from_utf8_lossy(text).into()),
            Reply::Array(elements) => Self::List(elements.iter().map(Self::from).collect()),
        }
    }
}
