//! From the canonical form of arguments to a value.
//!
//! The requested type decides: a tuple takes the list, `()` nothing, and anything else
//! the first argument. Without attachments the values are read directly from the text;
//! with attachments from a tree in which placeholders are binary (see `tree`).

mod tree;

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Display};
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny,
    SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Value, de::StrRead};

use self::tree::Tree;
use super::{
    ArgsError, canonical_numbers,
    json::{MAX_DEPTH, Tokens, plain_string, replace_lone_surrogates},
};

pub(super) fn decode<T: DeserializeOwned>(
    json: &str,
    attachments: &[Bytes],
) -> Result<T, ArgsError> {
    let read = || {
        if Shape::of::<T>() == Shape::Text
            && let Some(text) = plain_string(json, 1)
        {
            return T::deserialize(BorrowedStrDeserializer::new(text));
        }
        if attachments.is_empty() {
            read_text(json, |text| arguments(text))
        } else {
            let tree = read_text(json, |text| Value::deserialize(text))?;
            arguments(Tree::new(tree, attachments))
        }
    };
    read().map_err(ArgsError::Decode)
}

/// Decodes the arguments of an event from its whole payload, in which they begin at `rest`.
pub(super) fn decode_payload<T: DeserializeOwned>(json: &str, rest: usize) -> Result<T, ArgsError> {
    let read = || {
        if Shape::of::<T>() == Shape::Text
            && let Some(text) = plain_string(json, rest)
        {
            return T::deserialize(BorrowedStrDeserializer::new(text));
        }
        read_text(json, |text| arguments(Tail(text)))
    };
    read().map_err(ArgsError::Decode)
}

/// Reads a type from JSON text with the rules of this crate: nesting may be as deep as
/// [`MAX_DEPTH`], lone surrogates become U+FFFD, and numbers are those of JavaScript.
pub(super) fn from_text<T: DeserializeOwned>(json: &str) -> Result<T, serde_json::Error> {
    read_text(json, |text| T::deserialize(text))
}

type Text<'a> = serde_json::Deserializer<StrRead<'a>>;

/// `serde_json` refuses lone surrogates and numbers beyond a double, takes `1.0` for no
/// integer, and stops at a depth of 128. Only a text that it refuses is examined and read again, so
/// that common texts are read once.
fn read_text<T>(
    json: &str,
    read: impl Fn(&mut Text<'_>) -> Result<T, serde_json::Error>,
) -> Result<T, serde_json::Error> {
    let whole = |text: &mut Text<'_>| {
        let value = read(text)?;
        text.end()?;
        Ok(value)
    };
    whole(&mut Text::from_str(json)).or_else(|error: serde_json::Error| {
        let is_deep = error.to_string().starts_with("recursion limit exceeded");
        let valid = replace_lone_surrogates(json);
        let canonical = canonical_numbers(&valid);
        let is_changed = [&valid, &canonical]
            .into_iter()
            .any(|text| matches!(text, Cow::Owned(_)));
        if !(is_deep || is_changed) || Tokens::new(json, MAX_DEPTH).finish().is_err() {
            return Err(error);
        }
        let mut text = Text::from_str(&canonical);
        text.disable_recursion_limit();
        whole(&mut text)
    })
}

/// Passes on all elements of an array except the first.
struct Tail<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Tail<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_seq(SkipFirst(visitor))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct SkipFirst<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for SkipFirst<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(formatter)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<V::Value, A::Error> {
        seq.next_element::<IgnoredAny>()?;
        self.0.visit_seq(seq)
    }
}

/// Reads `T` from a deserializer of the whole array.
fn arguments<'de, T: DeserializeOwned, D: Deserializer<'de>>(array: D) -> Result<T, D::Error> {
    match Shape::of::<T>() {
        Shape::None => {
            IgnoredAny::deserialize(array)?;
            null()
        }
        Shape::List => T::deserialize(List(array)),
        Shape::One | Shape::Text => array.deserialize_seq(First(PhantomData)),
    }
}

/// The value of a missing argument.
fn null<T: DeserializeOwned, E: serde::de::Error>() -> Result<T, E> {
    T::deserialize(Value::Null).map_err(E::custom)
}

/// How many arguments a type takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    None,
    One,
    /// One, which is text.
    Text,
    List,
}

impl Shape {
    /// Lets the type make its first request to a deserializer, which then fails. Optimized builds
    /// compute the result at compile time.
    fn of<T: DeserializeOwned>() -> Self {
        let shape = Cell::new(Self::One);
        drop(T::deserialize(Probe(&shape)));
        shape.get()
    }
}

struct Probe<'a>(&'a Cell<Shape>);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Probed;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Probed> {
        Err(Probed)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Probed> {
        self.0.set(Shape::None);
        Err(Probed)
    }

    fn deserialize_str<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Probed> {
        self.0.set(Shape::Text);
        Err(Probed)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Probed> {
        self.deserialize_str(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Probed> {
        self.0.set(Shape::List);
        Err(Probed)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Probed> {
        let shape = self.0;
        let probed = visitor.visit_newtype_struct(self);
        if shape.get() == Shape::Text {
            // `BorrowedStrDeserializer` does not support newtypes.
            shape.set(Shape::One);
        }
        probed
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf option
        unit_struct seq tuple_struct map struct enum identifier ignored_any
    }
}

/// The error that ends the probe.
#[derive(Debug)]
struct Probed;

impl Display for Probed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("probed")
    }
}

impl std::error::Error for Probed {}

impl serde::de::Error for Probed {
    fn custom<T: Display>(_: T) -> Self {
        Self
    }
}

/// Passes the elements of the array to a tuple, through any number of newtypes.
struct List<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for List<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_seq(Spread { visitor, len })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct seq tuple_struct map struct enum identifier ignored_any
    }
}

struct Spread<V> {
    visitor: V,
    len: usize,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Spread<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of arguments")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<V::Value, A::Error> {
        let value = self.visitor.visit_seq(Padded {
            seq: &mut seq,
            missing: self.len,
        })?;
        ignore_surplus(seq)?;
        Ok(value)
    }
}

/// Exactly as many elements as are requested: those of the array, then nulls.
struct Padded<'a, A> {
    seq: &'a mut A,
    missing: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Padded<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let Some(missing) = self.missing.checked_sub(1) else {
            return Ok(None);
        };
        self.missing = missing;
        let mut seed = Some(seed);
        if let Some(value) = self.seq.next_element_seed(Lent(&mut seed))? {
            return Ok(Some(value));
        }
        let seed = seed
            .take()
            .expect("a sequence at its end has not used the seed");
        seed.deserialize(Value::Null)
            .map(Some)
            .map_err(A::Error::custom)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.missing)
    }
}

/// A seed that its owner keeps if there is no element for it.
struct Lent<'a, S>(&'a mut Option<S>);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Lent<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let seed = self.0.take().expect("a seed is used once");
        seed.deserialize(deserializer)
    }
}

/// Takes the first element.
struct First<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for First<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of arguments")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<T, A::Error> {
        let Some(first) = seq.next_element()? else {
            return null();
        };
        ignore_surplus(seq)?;
        Ok(first)
    }
}

fn ignore_surplus<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}
