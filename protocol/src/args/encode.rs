//! From a value to the canonical form of arguments.
//!
//! `serde_json` writes the values, and its formatter turns bytes into attachments. A thin
//! serializer around it examines only the outermost value: is it a list of arguments, none, or one?

use std::cell::Cell;
use std::fmt::Display;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Error;
use serde_json::ser::{Compound, Formatter};

use super::{ArgsError, Number, canonical_numbers, json::is_plain};

/// The JSON array of the arguments, and their attachments.
pub(super) fn encode<T: Serialize + ?Sized>(
    value: &T,
) -> Result<(Arc<str>, Vec<Bytes>), ArgsError> {
    // Taken and put back, because a value may encode others while it is being encoded itself.
    let mut scratch = SCRATCH.take();
    scratch.json.clear();
    scratch.plain.clear();
    let encoded = encode_into(&mut scratch, value);
    if scratch.json.capacity() + scratch.plain.capacity() <= SCRATCH_BYTES {
        SCRATCH.set(scratch);
    }
    encoded
}

/// Buffers in which arguments grow before they are copied to their final size.
#[derive(Default)]
struct Scratch {
    json: Vec<u8>,
    /// The whole array, if it is one string without escapes.
    plain: String,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = const {
        Cell::new(Scratch {
            json: Vec::new(),
            plain: String::new(),
        })
    };
}

/// A scratch buffer that has grown beyond this is not kept.
const SCRATCH_BYTES: usize = 64 * 1024;

fn encode_into<T: Serialize + ?Sized>(
    scratch: &mut Scratch,
    value: &T,
) -> Result<(Arc<str>, Vec<Bytes>), ArgsError> {
    let Scratch { json, plain } = scratch;
    // One bracket is written ahead. A list has its own, and then the first byte is left out.
    json.push(b'[');
    let mut attachments = Vec::new();
    let mut shape = Shape::One;
    let formatter = Placeholders {
        attachments: &mut attachments,
    };
    let mut serializer = serde_json::Serializer::with_formatter(&mut *json, formatter);
    value
        .serialize(Outermost {
            json: &mut serializer,
            shape: &mut shape,
            plain,
            is_nothing: size_of_val(value) == 0,
        })
        .map_err(ArgsError::Encode)?;
    if !plain.is_empty() {
        return Ok((plain.as_str().into(), attachments));
    }
    if shape != Shape::List {
        json.push(b']');
    }
    let text = &json[usize::from(shape == Shape::List)..];
    let text = std::str::from_utf8(text).map_err(|_| ArgsError::NotUtf8)?;
    Ok((text.into(), attachments))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
}

/// JSON as `serde_json` writes it, with bytes as attachments.
struct Placeholders<'a> {
    attachments: &'a mut Vec<Bytes>,
}

impl Placeholders<'_> {
    fn write_number<W: ?Sized + io::Write>(writer: &mut W, value: f64) -> io::Result<()> {
        Ok(serde_json::to_writer(writer, &Number::from(value))?)
    }
}

impl Formatter for Placeholders<'_> {
    fn write_f32<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        if value.fract() == 0.0 {
            return Self::write_number(writer, value.into());
        }
        // The shortest text of a 32-bit float: 0.1 stays 0.1.
        Ok(serde_json::to_writer(writer, &value)?)
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        Self::write_number(writer, value)
    }

    fn write_u128<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: u128) -> io::Result<()> {
        match u64::try_from(value) {
            Ok(value) => self.write_u64(writer, value),
            Err(_) => Self::write_number(writer, value as f64),
        }
    }

    fn write_i128<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: i128) -> io::Result<()> {
        match (i64::try_from(value), u64::try_from(value)) {
            (Ok(value), _) => self.write_i64(writer, value),
            (_, Ok(value)) => self.write_u64(writer, value),
            _ => Self::write_number(writer, value as f64),
        }
    }

    /// Text of the application, which may have numbers in another form.
    fn write_raw_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(canonical_numbers(fragment).as_bytes())
    }

    fn write_byte_array<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        value: &[u8],
    ) -> io::Result<()> {
        write!(
            writer,
            r#"{{"_placeholder":true,"num":{}}}"#,
            self.attachments.len()
        )?;
        self.attachments.push(Bytes::copy_from_slice(value));
        Ok(())
    }
}

/// Notes the shape of the outermost value and passes it on.
struct Outermost<'a, W, F> {
    json: &'a mut serde_json::Serializer<W, F>,
    shape: &'a mut Shape,
    plain: &'a mut String,
    /// The value is of a type without values such as `()`, and not one that can be null.
    is_nothing: bool,
}

/// Methods that pass on what they are given.
macro_rules! one_argument {
    ($($method:ident($($name:ident: $type:ty),*) -> $ok:ty;)*) => {
        $(fn $method(self, $($name: $type),*) -> Result<$ok, Error> {
            self.json.$method($($name),*)
        })*
    };
}

impl<W, F> Outermost<'_, W, F> {
    /// The same for the content of the outermost value.
    fn around<T: ?Sized>(self, inner: &T) -> Self {
        Self {
            is_nothing: size_of_val(inner) == 0,
            ..self
        }
    }
}

impl<'a, W: io::Write, F: Formatter> Serializer for Outermost<'a, W, F> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Compound<'a, W, F>;
    type SerializeTuple = Compound<'a, W, F>;
    type SerializeTupleStruct = Compound<'a, W, F>;
    type SerializeTupleVariant = Compound<'a, W, F>;
    type SerializeMap = Compound<'a, W, F>;
    type SerializeStruct = Compound<'a, W, F>;
    type SerializeStructVariant = Compound<'a, W, F>;

    one_argument! {
        serialize_bool(v: bool) -> ();
        serialize_i8(v: i8) -> (); serialize_i16(v: i16) -> (); serialize_i32(v: i32) -> ();
        serialize_i64(v: i64) -> (); serialize_i128(v: i128) -> ();
        serialize_u8(v: u8) -> (); serialize_u16(v: u16) -> (); serialize_u32(v: u32) -> ();
        serialize_u64(v: u64) -> (); serialize_u128(v: u128) -> ();
        serialize_f32(v: f32) -> (); serialize_f64(v: f64) -> ();
        serialize_char(v: char) -> (); serialize_bytes(v: &[u8]) -> ();
        serialize_none() -> (); serialize_unit_struct(name: &'static str) -> ();
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str) -> ();
        serialize_seq(len: Option<usize>) -> Self::SerializeSeq;
        serialize_map(len: Option<usize>) -> Self::SerializeMap;
        serialize_struct(name: &'static str, len: usize) -> Self::SerializeStruct;
        serialize_tuple_struct(name: &'static str, len: usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(
            name: &'static str, index: u32, variant: &'static str, len: usize
        ) -> Self::SerializeTupleVariant;
        serialize_struct_variant(
            name: &'static str, index: u32, variant: &'static str, len: usize
        ) -> Self::SerializeStructVariant;
    }

    /// A single text is common, and `serde_json` would check its bytes one by one.
    fn serialize_str(self, value: &str) -> Result<(), Error> {
        if !is_plain(value) {
            return self.json.serialize_str(value);
        }
        self.plain.reserve(value.len() + 4);
        self.plain.push_str("[\"");
        self.plain.push_str(value);
        self.plain.push_str("\"]");
        Ok(())
    }

    /// `()` is no argument. The null of a JSON value is one.
    fn serialize_unit(self) -> Result<(), Error> {
        if self.is_nothing {
            Ok(())
        } else {
            self.json.serialize_unit()
        }
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, Error> {
        *self.shape = Shape::List;
        self.json.serialize_tuple(len)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        // `Value` can be an extension of MessagePack, which is one value with two parts.
        if name == "_ExtStruct" {
            value.serialize(self.json)
        } else {
            value.serialize(self.around(value))
        }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        match (name, variant) {
            ("Result", "Ok") => value.serialize(self.around(value)),
            ("Result", "Err") => {
                let mut object = self.json.serialize_map(Some(1))?;
                object.serialize_entry("error", value)?;
                object.end()
            }
            _ => self
                .json
                .serialize_newtype_variant(name, index, variant, value),
        }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.json.serialize_some(value)
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.json.collect_str(value)
    }
}
