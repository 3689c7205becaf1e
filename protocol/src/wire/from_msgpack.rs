//! A cursor over MessagePack.

use std::borrow::Cow;

use serde_json::Value;

use super::{
    WireError, buffers,
    cursor::{Cursor, Event, Head},
};
use crate::{
    args::Args,
    msgpack::{
        MsgpackError, Reader, Token, TranscodeLimits, msgpack_to_json, read_args, read_event,
    },
};

#[derive(Clone)]
pub(super) struct MsgpackCursor<'a> {
    reader: Reader<'a>,
    limits: TranscodeLimits,
}

impl<'a> MsgpackCursor<'a> {
    pub(super) fn new(payload: &'a [u8], limits: TranscodeLimits) -> Self {
        Self {
            reader: Reader::new(payload),
            limits,
        }
    }
}

impl<'a> Cursor<'a> for MsgpackCursor<'a> {
    fn head(&mut self) -> Result<Head<'a>, WireError> {
        Ok(match self.reader.token()? {
            Token::Nil | Token::Undefined => Head::Nothing,
            Token::Bool(value) => Head::Bool(value),
            Token::Uint(value) => Head::Number(value as f64),
            Token::Int(value) => Head::Number(value as f64),
            Token::Float(value) => Head::Number(value),
            Token::Str(bytes) => Head::Text(String::from_utf8_lossy(bytes)),
            Token::Bin(_) | Token::Date(_) | Token::Ext(..) => Head::Other,
            Token::Array(len) => Head::List(len),
            Token::Map(len) => Head::Map(len),
        })
    }

    fn items(
        &mut self,
        len: usize,
        mut f: impl FnMut(&mut Self) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        (0..len).try_for_each(|_| f(self))
    }

    fn members(
        &mut self,
        len: usize,
        mut f: impl FnMut(&mut Self, &str) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        for _ in 0..len {
            let key = match self.reader.token()? {
                Token::Str(bytes) => String::from_utf8_lossy(bytes),
                Token::Array(_) | Token::Map(_) => {
                    return Err(MsgpackError::UnsupportedKey.into());
                }
                _ => Cow::Borrowed(""),
            };
            f(self, &key)?;
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<(), WireError> {
        Ok(self.reader.skip()?)
    }

    fn event(&mut self) -> Result<Event, WireError> {
        let (name, args) = read_event(&mut self.reader, self.limits)?;
        Ok((name.into(), args))
    }

    fn args(&mut self) -> Result<Args, WireError> {
        Ok(read_args(&mut self.reader, self.limits)?)
    }

    fn argument(&mut self) -> Result<Args, WireError> {
        let (value, attachments) = msgpack_to_json(&mut self.reader, self.limits)?;
        Ok(Args::after_event(&(value + "]"), attachments)?)
    }

    fn value(&mut self) -> Result<Value, WireError> {
        let (value, attachments) = msgpack_to_json(&mut self.reader, self.limits)?;
        let mut text = Vec::with_capacity(value.len());
        buffers::lower(&mut text, &value, &attachments)?;
        serde_json::from_slice(&text).map_err(WireError::Value)
    }

    fn finish(self) -> Result<(), WireError> {
        Ok(self.reader.finish()?)
    }
}
