//! Keys of the API: hashed, named, and limited to namespaces and verbs.
//!
//! A key has to be random and long, so a plain SHA-256 protects it: trying all keys is impossible.
//! For the same reason, the table may be searched by hash without hiding how long that takes.

use std::{collections::HashMap, fmt, str::FromStr, sync::Arc};

use hex::FromHex;
use ring::digest;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IntoDeserializer},
};

use super::settings::KeySettings;
use crate::gateway::values::deserialize_from_text;

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Hash([u8; 32]);

impl Hash {
    pub(crate) fn of(key: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, key);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:…")
    }
}

impl FromStr for Hash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || {
            "expected sha256: and 64 hexadecimal digits, the SHA-256 of the key: \
             printf %s \"$KEY\" | sha256sum"
                .to_owned()
        };
        let digits = text.strip_prefix("sha256:").ok_or_else(problem)?;
        let hash = FromHex::from_hex(digits).map_err(|_| problem())?;
        Ok(Self(hash))
    }
}

deserialize_from_text!(Hash);

/// A namespace, or all that begin with the text before a final `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamespacePattern(String);

impl NamespacePattern {
    pub(crate) fn all() -> Self {
        Self("*".to_owned())
    }

    fn matches(&self, namespace: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(start) => namespace.starts_with(start),
            None => namespace == self.0,
        }
    }
}

impl<'de> Deserialize<'de> for NamespacePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let start = text.strip_suffix('*').unwrap_or(&text);
        let is_valid = (start.is_empty() && text == "*") || start.starts_with('/');
        if !is_valid || start.contains('*') {
            return Err(D::Error::custom(format!(
                "`{text}` is no namespace: expected a name that begins with /, with * at its end or not"
            )));
        }
        Ok(Self(text))
    }
}

/// The rights of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verb {
    Emit,
    Join,
    Leave,
    Disconnect,
    Revoke,
    ServerSideEmit,
    Sockets,
    Rooms,
    Users,
    Presence,
    /// Receiving the events of rooms, through a door.
    Subscribe,
    /// Reading the events that are kept of a room, through a door.
    History,
    Node,
    /// The admin page: seeing everything, and acting with the other verbs.
    Admin,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Emit => "emit",
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Disconnect => "disconnect",
            Self::Revoke => "revoke",
            Self::ServerSideEmit => "server-side-emit",
            Self::Sockets => "sockets",
            Self::Rooms => "rooms",
            Self::Users => "users",
            Self::Presence => "presence",
            Self::Subscribe => "subscribe",
            Self::History => "history",
            Self::Node => "node",
            Self::Admin => "admin",
        }
    }
}

/// One verb, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Verb(Verb),
}

impl<'de> Deserialize<'de> for Scope {
    /// By hand, because the error of an untagged enum names neither the value nor the verbs.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "*" {
            return Ok(Self::All);
        }
        let verb = IntoDeserializer::<D::Error>::into_deserializer(text.as_str());
        Verb::deserialize(verb).map(Self::Verb)
    }
}

/// A key that was recognized.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    namespaces: Vec<NamespacePattern>,
    verbs: Vec<Scope>,
}

impl Key {
    pub(crate) fn may(&self, verb: Verb) -> bool {
        let allows = |scope: &Scope| *scope == Scope::All || *scope == Scope::Verb(verb);
        self.verbs.iter().any(allows)
    }

    pub(crate) fn may_in(&self, namespace: &str) -> bool {
        let mut patterns = self.namespaces.iter();
        patterns.any(|pattern| pattern.matches(namespace))
    }
}

/// All keys. A reload replaces them as a whole.
#[derive(Debug, Default)]
pub(crate) struct Keys(HashMap<Hash, Arc<Key>>);

impl Keys {
    pub(crate) fn new(settings: &[KeySettings]) -> Self {
        let keys = settings.iter().map(|key| {
            let known = Key {
                name: key.name.clone(),
                namespaces: key.namespaces.clone(),
                verbs: key.verbs.clone(),
            };
            // Several hashes may have one name, so that a key can be rotated.
            (key.hash, Arc::new(known))
        });
        Self(keys.collect())
    }

    pub(crate) fn find(&self, key: &[u8]) -> Option<Arc<Key>> {
        self.0.get(&Hash::of(key)).cloned()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
