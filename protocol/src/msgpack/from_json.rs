//! From the canonical form to MessagePack, as a value that `rmp_serde` writes.
//!
//! There are two passes over the text: a survey that counts (see `args::survey`), then the
//! writing. No tree is built. The recursion is as deep as the text nests, which [`MAX_DEPTH`]
//! bounds.
//!
//! [`MAX_DEPTH`]: crate::args::json::MAX_DEPTH

use std::{cell::RefCell, slice::Iter};

use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::MsgpackError;
use crate::args::json::{Token, Tokens, unescape};
use crate::args::{ArgsError, Container, Number, survey};

/// Appends a JSON text as MessagePack, with the attachments in place of their placeholders. If there
/// is the name of an event, the text is an array, and the name becomes its first element.
///
/// It intentionally differs from notepack's output for the same data. Integers beyond 64 bits
/// are floats, where notepack writes 0. Integers up to 64 bits keep every digit, where JavaScript
/// rounds them to a double. A lone surrogate becomes U+FFFD, where notepack joins it with the code
/// unit that follows.
pub fn json_to_msgpack(
    out: &mut Vec<u8>,
    event: Option<&str>,
    json: &str,
    attachments: &[Bytes],
    depth: usize,
) -> Result<(), MsgpackError> {
    write(out, &Packed::new(event, json, attachments, depth)?);
    Ok(())
}

/// Appends any value as MessagePack; structs are maps.
pub(crate) fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
    value
        .serialize(&mut serializer)
        .expect("every value of this crate has a form in MessagePack, and memory takes it");
}

/// A JSON text that was surveyed and can be written.
pub(crate) struct Packed<'a> {
    event: Option<&'a str>,
    json: &'a str,
    attachments: &'a [Bytes],
    containers: Vec<Container>,
}

impl<'a> Packed<'a> {
    /// Surveys the text. With an event's name it must be an array, and the name goes in front.
    pub(crate) fn new(
        event: Option<&'a str>,
        json: &'a str,
        attachments: &'a [Bytes],
        depth: usize,
    ) -> Result<Self, ArgsError> {
        let containers = survey(json, attachments.len(), depth)?;
        if event.is_some() && !json.trim_ascii_start().starts_with('[') {
            return Err(ArgsError::NotAnArray);
        }
        Ok(Self {
            event,
            json,
            attachments,
            containers,
        })
    }
}

impl Serialize for Packed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let walk = Walk {
            tokens: RefCell::new(Tokens::new(self.json, usize::MAX)),
            containers: RefCell::new(self.containers.iter()),
            attachments: self.attachments,
        };
        let token = walk.token();
        match self.event {
            Some(event) => walk.array(Some(event), serializer),
            None => walk.item(token).serialize(serializer),
        }
    }
}

/// Where the writing is. Serde serializes through shared references, hence the cells.
struct Walk<'a> {
    tokens: RefCell<Tokens<'a>>,
    containers: RefCell<Iter<'a, Container>>,
    attachments: &'a [Bytes],
}

impl<'a> Walk<'a> {
    fn token(&self) -> Token<'a> {
        let token = self.tokens.borrow_mut().token();
        token
            .ok()
            .flatten()
            .expect("the survey has read the same text")
    }

    fn container(&self) -> Container {
        *self
            .containers
            .borrow_mut()
            .next()
            .expect("the survey has an entry for each container")
    }

    fn item<'w>(&'w self, token: Token<'a>) -> Item<'w, 'a> {
        Item { walk: self, token }
    }

    fn next_item(&self) -> Item<'_, 'a> {
        self.item(self.token())
    }

    fn array<S: Serializer>(&self, first: Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
        let len = self.container().len as usize;
        let mut array = serializer.serialize_seq(Some(len + usize::from(first.is_some())))?;
        if let Some(first) = first {
            array.serialize_element(first)?;
        }
        for _ in 0..len {
            array.serialize_element(&self.next_item())?;
        }
        self.token();
        array.end()
    }

    fn object<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let object = self.container();
        if let Some(number) = object.attachment {
            self.skip_members();
            return serializer.serialize_bytes(&self.attachments[number as usize]);
        }
        let mut map = serializer.serialize_map(Some(object.len as usize))?;
        for _ in 0..object.len {
            map.serialize_key(&self.next_item())?;
            map.serialize_value(&self.next_item())?;
        }
        self.token();
        map.end()
    }

    /// Skips the other content of a placeholder, and its survey.
    fn skip_members(&self) {
        let outside = self.tokens.borrow().depth() - 1;
        while self.tokens.borrow().depth() > outside {
            if matches!(self.token(), Token::BeginArray | Token::BeginObject) {
                self.container();
            }
        }
    }
}

/// One value, whose first token has been read.
struct Item<'w, 'a> {
    walk: &'w Walk<'a>,
    token: Token<'a>,
}

impl Serialize for Item<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.token {
            Token::Bool(value) => serializer.serialize_bool(value),
            Token::Number(text) => Number::parse(text).serialize(serializer),
            Token::String(raw) | Token::Key(raw) => serializer.serialize_str(&unescape(raw)),
            Token::BeginArray => self.walk.array(None, serializer),
            Token::BeginObject => self.walk.object(serializer),
            Token::Null | Token::EndArray | Token::EndObject => serializer.serialize_unit(),
        }
    }
}
