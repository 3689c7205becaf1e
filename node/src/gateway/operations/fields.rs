//! JSON objects whose members are read one by one.
//!
//! A member stays text until it is read, so an error names it, and arguments are not converted
//! to a tree and back. Members of other names are errors, because a misspelt one, such as `room`,
//! would otherwise select other sockets than were meant.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::Problem;

/// The members of an object that were not read yet.
pub(crate) struct Fields<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'a> Fields<'a> {
    /// Reads an object. A map alone would keep the last of two members with one name.
    pub(crate) fn of(json: &'a [u8]) -> Result<Self, Problem> {
        let Members(list) =
            serde_json::from_slice(json).map_err(|error| Problem::new("", error.to_string()))?;
        let mut members = BTreeMap::new();
        for (name, value) in list {
            if members.contains_key(&name) {
                let what = format!("duplicate field `{name}`");
                return Err(Problem::new(format!(".{name}"), what));
            }
            members.insert(name, value);
        }
        Ok(Self(members))
    }

    /// Reads a member that may be absent. `null` is a value like any other.
    pub(crate) fn take<T: Deserialize<'a>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, Problem> {
        let Some(json) = self.0.remove(name) else {
            return Ok(None);
        };
        let mut json = serde_json::Deserializer::from_str(json.get());
        let read = serde_path_to_error::deserialize(&mut json);
        read.map(Some).map_err(|error| {
            let path = error.path().to_string();
            let at = match path.as_str() {
                "." => format!(".{name}"),
                path if path.starts_with('[') => format!(".{name}{path}"),
                path => format!(".{name}.{path}"),
            };
            Problem::new(at, without_position(&error.into_inner().to_string()))
        })
    }

    /// Reads a member that must be there.
    pub(crate) fn require<T: Deserialize<'a>>(&mut self, name: &'static str) -> Result<T, Problem> {
        let value = self.take(name)?;
        value.ok_or_else(|| Problem::new(format!(".{name}"), format!("missing field `{name}`")))
    }

    /// Refuses members of other names. Called first, because one of them may be a misspelt name of
    /// a member that is missing.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        let Some(name) = self.0.keys().find(|name| !known.contains(&&***name)) else {
            return Ok(());
        };
        let known = known.join("`, `");
        let what = format!("unknown field `{name}`, expected one of `{known}`");
        Err(Problem::new(format!(".{name}"), what))
    }
}

/// The position is one within the member or the operation, which misleads.
pub(super) fn without_position(text: &str) -> &str {
    text.rsplit_once(" at line ").map_or(text, |(text, _)| text)
}

/// The members of an object, also those that have one name.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_occurs_twice_is_refused_by_its_name() {
        assert!(Fields::of(br#"{"event":"e","all":true}"#).is_ok());
        let problem = Fields::of(br#"{"event":"e","event":"f"}"#).err().unwrap();
        assert_eq!(problem.to_string(), ".event: duplicate field `event`");
    }

    #[test]
    fn a_list_is_no_object() {
        let what = Fields::of(br#"["e"]"#).err().unwrap().what;
        assert!(what.contains("sequence, expected an object"), "{what}");
    }
}
