//! A cursor over JSON text. Arguments stay the text that they are.

use std::borrow::Cow;

use serde_json::Value;

use super::{
    WireError, buffers,
    cursor::{Cursor, Event, Head},
};
use crate::{
    args::{
        Args,
        json::{MAX_DEPTH, Token, Tokens, plain_strings, unescape},
    },
    msgpack::TranscodeLimits,
};

#[derive(Clone)]
pub(super) struct JsonCursor<'a> {
    tokens: Tokens<'a>,
    limits: TranscodeLimits,
    /// Whether what `JSON.stringify` makes of a `Buffer` is binary again. So it is in the classic
    /// dialect; the sharded one never writes binary as JSON.
    has_buffers: bool,
}

impl<'a> JsonCursor<'a> {
    pub(super) fn new(text: &'a str, limits: TranscodeLimits, has_buffers: bool) -> Self {
        Self {
            tokens: Tokens::new(text, limits.depth),
            limits,
            has_buffers,
        }
    }

    fn lifted(&self, args: Args) -> Result<Args, WireError> {
        if !self.has_buffers {
            return Ok(args);
        }
        let Some((json, attachments)) = buffers::lift(args.json(), self.limits.attachments)? else {
            return Ok(args);
        };
        // Beside data that looks like a placeholder, the buffers stay the objects that they are.
        Ok(Args::sealed(json.into(), attachments).unwrap_or(args))
    }
}

impl<'a> Cursor<'a> for JsonCursor<'a> {
    fn head(&mut self) -> Result<Head<'a>, WireError> {
        Ok(match self.tokens.token()? {
            Some(Token::Null) => Head::Nothing,
            Some(Token::Bool(value)) => Head::Bool(value),
            Some(Token::Number(text)) => {
                Head::Number(text.parse().expect("JSON numbers are numbers to Rust"))
            }
            Some(Token::String(raw)) => Head::Text(unescape(raw)),
            Some(Token::BeginArray) => Head::List(0),
            Some(Token::BeginObject) => Head::Map(0),
            Some(Token::Key(_) | Token::EndArray | Token::EndObject) | None => {
                return Err(WireError::Unexpected {
                    expected: "a value",
                });
            }
        })
    }

    fn items(
        &mut self,
        _: usize,
        mut f: impl FnMut(&mut Self) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        while !self.tokens.at_end() {
            f(self)?;
        }
        self.tokens.token()?;
        Ok(())
    }

    fn members(
        &mut self,
        _: usize,
        mut f: impl FnMut(&mut Self, &str) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        while let Some(Token::Key(raw)) = self.tokens.token()? {
            f(self, &unescape(raw))?;
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<(), WireError> {
        self.tokens.value_text()?;
        Ok(())
    }

    fn event(&mut self) -> Result<Event, WireError> {
        let array = self.tokens.value_text()?;
        let (name, rest) = split_event(array).ok_or(WireError::Unexpected {
            expected: "an event",
        })?;
        let args = Args::after_event(&array[rest..], Vec::new())?;
        Ok((name.into(), self.lifted(args)?))
    }

    fn args(&mut self) -> Result<Args, WireError> {
        let args = Args::from_text(self.tokens.value_text()?.into(), Vec::new())?;
        self.lifted(args)
    }

    fn argument(&mut self) -> Result<Args, WireError> {
        let value = format!("[{}]", self.tokens.value_text()?);
        self.lifted(Args::from_text(value.into(), Vec::new())?)
    }

    fn value(&mut self) -> Result<Value, WireError> {
        serde_json::from_str(self.tokens.value_text()?).map_err(WireError::Value)
    }

    fn finish(self) -> Result<(), WireError> {
        Ok(self.tokens.finish()?)
    }
}

/// The name of an event, and where what follows it begins.
fn split_event(array: &str) -> Option<(Cow<'_, str>, usize)> {
    if let Some((name, rest)) = plain_strings(array) {
        return Some((name.into(), rest));
    }
    let mut tokens = Tokens::new(array, MAX_DEPTH);
    if tokens.token().ok()?? != Token::BeginArray {
        return None;
    }
    let name = match tokens.token().ok()?? {
        Token::String(raw) => unescape(raw),
        Token::Number(text) => text.into(),
        _ => return None,
    };
    tokens.token().ok()??;
    Some((name, tokens.start()))
}
