//! Reading values one after the other, whatever they are encoded in.
//!
//! Envelopes are read in one pass and without a tree. Every function here consumes exactly one
//! value, also one of another kind than it looks for: peers leave members out, or write `""` or
//! `[]` for an empty map, and mean the same.

use std::borrow::Cow;

use serde_json::Value;

use super::WireError;
use crate::{args::Args, id::NodeId};

/// A scalar, or the beginning of a container. The lengths are for [`Cursor::items`] and
/// [`Cursor::members`] alone: not all encodings have them.
#[derive(Debug)]
pub(super) enum Head<'a> {
    Nothing,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    /// Binary, a date, an extension: nothing that an envelope has.
    Other,
    List(usize),
    Map(usize),
}

/// A place in an encoded message.
pub(super) trait Cursor<'a>: Clone {
    /// Reads a scalar, or enters a container, which has to be left with `items` or `members`.
    fn head(&mut self) -> Result<Head<'a>, WireError>;

    /// Calls `f` at each item of the list that was entered; it has to consume the item.
    fn items(
        &mut self,
        len: usize,
        f: impl FnMut(&mut Self) -> Result<(), WireError>,
    ) -> Result<(), WireError>;

    /// Calls `f` at each value of the map that was entered, with its key; it has to consume the
    /// value. Keys that are no text are empty.
    fn members(
        &mut self,
        len: usize,
        f: impl FnMut(&mut Self, &str) -> Result<(), WireError>,
    ) -> Result<(), WireError>;

    /// Passes over a value.
    fn skip(&mut self) -> Result<(), WireError>;

    /// Reads a list of an event's name and its arguments.
    fn event(&mut self) -> Result<Event, WireError>;

    /// Reads a list of arguments.
    fn args(&mut self) -> Result<Args, WireError>;

    /// Reads any value as a single argument.
    fn argument(&mut self) -> Result<Args, WireError>;

    /// Reads any value as a tree. Binary becomes what Node's `JSON.stringify` makes of it.
    fn value(&mut self) -> Result<Value, WireError>;

    /// Nothing may follow.
    fn finish(self) -> Result<(), WireError>;

    /// Leaves a container that nobody wants.
    fn leave(&mut self, head: &Head<'a>) -> Result<(), WireError> {
        match head {
            Head::List(len) => self.items(*len, Self::skip),
            Head::Map(len) => self.members(*len, |cursor, _| cursor.skip()),
            _ => Ok(()),
        }
    }

    fn text(&mut self) -> Result<Option<Cow<'a, str>>, WireError> {
        match self.head()? {
            Head::Text(text) => Ok(Some(text)),
            other => self.leave(&other).map(|()| None),
        }
    }

    fn owned_text(&mut self) -> Result<Option<Box<str>>, WireError> {
        Ok(self.text()?.map(|text| text.into()))
    }

    fn node(&mut self) -> Result<Option<NodeId>, WireError> {
        Ok(self.text()?.map(|name| NodeId::new(&name)))
    }

    fn number(&mut self) -> Result<Option<f64>, WireError> {
        match self.head()? {
            Head::Number(number) => Ok(Some(number)),
            other => self.leave(&other).map(|()| None),
        }
    }

    /// Reads a number of things.
    fn count(&mut self) -> Result<Option<usize>, WireError> {
        Ok(self.number()?.and_then(whole))
    }

    fn is_true(&mut self) -> Result<bool, WireError> {
        match self.head()? {
            Head::Bool(value) => Ok(value),
            other => self.leave(&other).map(|()| false),
        }
    }
}

/// The name of an event and its arguments.
pub(super) type Event = (Box<str>, Args);

/// A number as a number of things, if it can be one.
pub(super) fn whole(number: f64) -> Option<usize> {
    const SAFE: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && (0.0..=SAFE).contains(&number)).then_some(number as usize)
}
