//! From the canonical form to MessagePack.
//!
//! Two passes over the text: a survey that counts (see `args::survey`), then the writing. No tree.

use bytes::Bytes;

use super::{
    MsgpackError, write_array_len, write_bin, write_bool, write_int, write_map_len, write_nil,
    write_number, write_str, write_uint,
};
use crate::args::json::{Token, Tokens, unescape};
use crate::args::{Args, ArgsError, Container, survey};

/// Writes a JSON text as MessagePack, with the attachments in the places of their placeholders.
///
/// Differs from what notepack would write for the same data in three points, on purpose: whole
/// numbers beyond 64 bits are floats (see [`write_number`]); integers up to 64 bits keep every
/// digit, where JavaScript would have rounded them to a double; half a surrogate pair becomes
/// U+FFFD, where notepack pairs it with whatever follows.
pub fn json_to_msgpack(
    out: &mut Vec<u8>,
    json: &str,
    attachments: &[Bytes],
    depth: usize,
) -> Result<(), MsgpackError> {
    let containers = survey(json, attachments.len(), depth)?;
    Writer::new(out, json, attachments, &containers).write()
}

/// Writes arguments as one array, behind the name of the event if there is one.
pub fn write_args(
    out: &mut Vec<u8>,
    event: Option<&str>,
    args: &Args,
    depth: usize,
) -> Result<(), MsgpackError> {
    let containers = survey(args.json(), args.attachments().len(), depth)?;
    let mut writer = Writer::new(out, args.json(), args.attachments(), &containers);
    if let Some(event) = event {
        writer.write_named_list(event)?;
    }
    writer.write()
}

struct Writer<'a, 'out> {
    out: &'out mut Vec<u8>,
    tokens: Tokens<'a>,
    attachments: &'a [Bytes],
    containers: std::slice::Iter<'a, Container>,
}

impl<'a, 'out> Writer<'a, 'out> {
    fn new(
        out: &'out mut Vec<u8>,
        json: &'a str,
        attachments: &'a [Bytes],
        containers: &'a [Container],
    ) -> Self {
        let tokens = Tokens::new(json, usize::MAX);
        Self {
            out,
            tokens,
            attachments,
            containers: containers.iter(),
        }
    }

    fn write_named_list(&mut self, event: &str) -> Result<(), MsgpackError> {
        if self.tokens.token().map_err(ArgsError::from)? != Some(Token::BeginArray) {
            return Err(ArgsError::NotAnArray.into());
        }
        let len = self.container().len as usize;
        write_array_len(self.out, len + 1);
        write_str(self.out, event);
        Ok(())
    }

    fn write(&mut self) -> Result<(), MsgpackError> {
        while let Some(token) = self.tokens.token().map_err(ArgsError::from)? {
            match token {
                Token::Null => write_nil(self.out),
                Token::Bool(value) => write_bool(self.out, value),
                Token::Number(text) => write_json_number(self.out, text),
                Token::String(raw) | Token::Key(raw) => write_str(self.out, &unescape(raw)),
                Token::BeginArray => {
                    let len = self.container().len as usize;
                    write_array_len(self.out, len);
                }
                Token::BeginObject => self.write_object()?,
                Token::EndArray | Token::EndObject => {}
            }
        }
        Ok(())
    }

    fn write_object(&mut self) -> Result<(), MsgpackError> {
        let object = self.container();
        let Some(number) = object.attachment else {
            write_map_len(self.out, object.len as usize);
            return Ok(());
        };
        write_bin(self.out, &self.attachments[number as usize]);
        self.skip_members()
    }

    /// Passes over what else a placeholder holds, and over the survey of it.
    fn skip_members(&mut self) -> Result<(), MsgpackError> {
        let outside = self.tokens.depth() - 1;
        while self.tokens.depth() > outside {
            let token = self.tokens.token().map_err(ArgsError::from)?;
            if let Some(Token::BeginArray | Token::BeginObject) = token {
                self.container();
            }
        }
        Ok(())
    }

    fn container(&mut self) -> Container {
        *self
            .containers
            .next()
            .expect("the survey has an entry for each container")
    }
}

fn write_json_number(out: &mut Vec<u8>, text: &str) {
    if let Ok(value) = text.parse() {
        write_uint(out, value);
    } else if let Ok(value) = text.parse() {
        write_int(out, value);
    } else {
        write_number(out, text.parse().expect("JSON numbers are numbers to Rust"));
    }
}
