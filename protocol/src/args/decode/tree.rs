//! A JSON tree and its attachments, read as one value.
//!
//! It behaves like `serde_json`'s own trees (enums, keys that are numbers, missing values), except
//! that a placeholder is the bytes of its attachment. The depth was limited when the text was
//! parsed.

use bytes::Bytes;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

pub(super) struct Tree<'a> {
    value: Value,
    attachments: &'a [Bytes],
}

impl<'a> Tree<'a> {
    pub(super) fn new(value: Value, attachments: &'a [Bytes]) -> Self {
        Self { value, attachments }
    }

    fn visit_array<'de, V: Visitor<'de>>(
        values: Vec<Value>,
        attachments: &'a [Bytes],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let trees = values.into_iter().map(|value| Self { value, attachments });
        let mut elements = SeqDeserializer::new(trees);
        let result = visitor.visit_seq(&mut elements)?;
        elements.end()?;
        Ok(result)
    }

    fn visit_object<'de, V: Visitor<'de>>(
        object: Map<String, Value>,
        attachments: &'a [Bytes],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let members = object
            .into_iter()
            .map(|(key, value)| (Key(key), Self { value, attachments }));
        let mut members = MapDeserializer::new(members);
        let result = visitor.visit_map(&mut members)?;
        members.end()?;
        Ok(result)
    }
}

/// The attachment of an object that is a placeholder.
fn attachment<'a>(
    object: &Map<String, Value>,
    attachments: &'a [Bytes],
) -> Result<Option<&'a Bytes>, Error> {
    if object.get("_placeholder") != Some(&Value::Bool(true)) {
        return Ok(None);
    }
    let number = object.get("num").and_then(Value::as_f64);
    let index = number.filter(|number| *number >= 0.0 && number.fract() == 0.0);
    match index.and_then(|index| attachments.get(index as usize)) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(Error::custom("placeholder without an attachment")),
    }
}

impl<'de> Deserializer<'de> for Tree<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Array(values) => Self::visit_array(values, self.attachments, visitor),
            Value::Object(object) => match attachment(&object, self.attachments)? {
                Some(bytes) => visitor.visit_bytes(bytes),
                None => Self::visit_object(object, self.attachments, visitor),
            },
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Value::Object(object) if object.len() == 1 => {
                let (variant, value) = object.into_iter().next().expect("there is one member");
                let content = Self {
                    value,
                    attachments: self.attachments,
                };
                visitor.visit_enum(Variant { variant, content })
            }
            // A name alone, or an error that states what was expected.
            plain => plain.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Tree<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The only member of an object that represents an enum.
struct Variant<'a> {
    variant: String,
    content: Tree<'a>,
}

impl<'a, 'de> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Tree<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Tree<'a>), Error> {
        Ok((
            seed.deserialize(self.variant.into_deserializer())?,
            self.content,
        ))
    }
}

impl<'de> VariantAccess<'de> for Tree<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }
}

/// The name of a member. It is a number or a boolean if that is requested and the name
/// parses as one.
struct Key(String);

macro_rules! key_that_reads_as {
    ($($method:ident $visit:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0.parse() {
                Ok(value) => visitor.$visit(value),
                Err(_) => visitor.visit_string(self.0),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Key {
    type Error = Error;

    key_that_reads_as! {
        deserialize_bool visit_bool
        deserialize_i8 visit_i8 deserialize_i16 visit_i16 deserialize_i32 visit_i32
        deserialize_i64 visit_i64 deserialize_i128 visit_i128
        deserialize_u8 visit_u8 deserialize_u16 visit_u16 deserialize_u32 visit_u32
        deserialize_u64 visit_u64 deserialize_u128 visit_u128
        deserialize_f32 visit_f32 deserialize_f64 visit_f64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Key {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
