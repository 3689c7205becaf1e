//! The settings: a TOML file, below the environment, below the flags.
//!
//! ```text
//!  file ──► flat keys ──► become the defaults of the options ──► clap: default < environment < flag
//!       └─► sections  ──► Settings, which only the file can set
//! ```
//!
//! A flat key has the name of its flag, with underscores. The same parsers check its value, because
//! clap takes it as the option's default. So an option is declared once, in `config`.
//! A section is a struct of the module that uses it, and a field of [`Settings`].

mod file;
mod show;

use std::collections::BTreeMap;

use roomcast::{HistoryLimits, JournalLimits, Recovery};
use serde::{Deserialize, Deserializer, de::Error as _};

pub(crate) use file::{Compared, File, FileError, placed};
pub(crate) use show::{default_file, show};

use super::{
    access::Access,
    api, auth, doors, hooks,
    policy::RoomPolicy,
    presence,
    values::{self, ByteSize, Span},
};

/// The sections of the file. A module adds its section here as a field with its own struct, which
/// derives `Deserialize` with `deny_unknown_fields`, and as a row of [`SECTIONS`].
/// Unknown keys are errors everywhere, because a misspelt one would silently leave a
/// default in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) namespaces: BTreeMap<NamespaceName, NamespaceSettings>,
    pub(crate) jwt: auth::Settings,
    /// By name, which logs and metrics show.
    pub(crate) hooks: BTreeMap<String, hooks::Settings>,
    pub(crate) api: api::Settings,
    pub(crate) doors: doors::Settings,
    pub(crate) presence: presence::Settings,
}

impl Settings {
    /// The section of a namespace, if it has one.
    pub(crate) fn namespace(&self, name: &str) -> Option<&NamespaceSettings> {
        self.namespaces.get(&NamespaceName(name.to_owned()))
    }
}

/// The names of the sections, which errors suggest, each with its part of the commented
/// default file.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("namespaces", NAMESPACES),
    ("jwt", auth::TEMPLATE),
    ("hooks", hooks::TEMPLATE),
    ("api", api::TEMPLATE),
    ("doors", doors::TEMPLATE),
    ("presence", presence::TEMPLATE),
];

const NAMESPACES: &str = r#"
# Settings of single namespaces. Every namespace with a section is served.
[namespaces."/chat"]
# Access of clients: closed, open, jwt, hook or jwt+hook. Without this key, --access applies.
access = "jwt"
# Let clients manage rooms. Without this key, --client-rooms applies.
client_rooms = true

# Rooms that clients may join or send to, and whose members they may list. `*` stands for one or more
# characters, {sub} for the claim `sub` of the client's token. Without this table, clients may use
# all rooms where the access is open, and none otherwise.
[namespaces."/chat".rooms]
join = ["room:*", "team:{team}"]
send = ["room:*", "team:{team}"]
history = []
presence = ["room:*"]

# Limits of the log of events published to each room of the namespace. Without this table, namespaces with
# channels keep the log with these values.
[namespaces."/chat".history]
messages = 1000
bytes = "1MiB"
age = "24h"
# All rooms of the namespace together, on a node without Redis.
memory = "64MiB"

# Keep all broadcasts of the namespace, so that a node that misses some can read them. Without this table,
# the namespace has a journal, with these values, only if it has a table recovery.
[namespaces."/chat".journal]
messages = 10000
bytes = "16MiB"
age = "10m"

# Let Socket.IO clients resume their session after a lost connection. Without this table they get a new
# one.
[namespaces."/chat".recovery]
max_disconnection = "2m"
# Keep events to a single client as well. Each of them then costs Redis as much as a broadcast.
unicasts = false
# Allow broadcasts with delivery at least once. The sessions of all sockets are then written every half of
# max_disconnection, and the journal must keep broadcasts that much longer.
at_least_once = false
# Call the connect hook again for a client that comes back. If false, the client keeps the user and the data that
# the hook has set, even if the application has blocked the user meanwhile. Tokens are always checked again.
connect_hook = true
"#;

/// The settings of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NamespaceSettings {
    /// Takes precedence over `--access`.
    pub(crate) access: Option<Access>,
    /// Takes precedence over `--client-rooms`.
    pub(crate) client_rooms: Option<bool>,
    /// The room policy, if `client_rooms` is on or a door leads here.
    pub(crate) rooms: Option<RoomPolicy>,
    /// The limits of the log of events that are published into rooms.
    pub(crate) history: Option<HistorySettings>,
    /// The limits of the journal of all broadcasts.
    pub(crate) journal: Option<JournalSettings>,
    /// How clients can come back to their session.
    pub(crate) recovery: Option<RecoverySettings>,
}

/// The limits of the journal of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct JournalSettings {
    #[serde(deserialize_with = "at_least_one")]
    messages: usize,
    bytes: ByteSize,
    age: Span,
}

impl Default for JournalSettings {
    fn default() -> Self {
        let limits = JournalLimits::default();
        Self {
            messages: limits.messages,
            bytes: ByteSize(limits.bytes),
            age: Span(limits.age),
        }
    }
}

impl JournalSettings {
    pub(crate) fn limits(&self) -> JournalLimits {
        JournalLimits {
            messages: self.messages,
            bytes: self.bytes.0,
            age: self.age.0,
        }
    }
}

/// How clients of a namespace can come back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RecoverySettings {
    max_disconnection: Span,
    unicasts: bool,
    at_least_once: bool,
    /// Whether the connect hook is asked again.
    pub(crate) connect_hook: bool,
}

impl Default for RecoverySettings {
    fn default() -> Self {
        let recovery = Recovery::default();
        Self {
            max_disconnection: Span(recovery.max_disconnection),
            unicasts: recovery.unicasts,
            at_least_once: recovery.at_least_once,
            connect_hook: true,
        }
    }
}

impl RecoverySettings {
    /// Tokens may be revoked and users be locked out meanwhile, so the access is checked again.
    pub(crate) fn recovery(&self) -> Recovery {
        Recovery {
            max_disconnection: self.max_disconnection.0,
            authorizes_again: true,
            unicasts: self.unicasts,
            at_least_once: self.at_least_once,
        }
    }
}

/// The limits of the log of each room of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HistorySettings {
    #[serde(deserialize_with = "at_least_one")]
    messages: usize,
    bytes: ByteSize,
    age: Span,
    memory: ByteSize,
}

impl Default for HistorySettings {
    fn default() -> Self {
        let limits = HistoryLimits::default();
        Self {
            messages: limits.messages,
            bytes: ByteSize(limits.bytes),
            age: Span(limits.age),
            memory: ByteSize(limits.memory_bytes),
        }
    }
}

impl HistorySettings {
    pub(crate) fn limits(&self) -> HistoryLimits {
        HistoryLimits {
            messages: self.messages,
            bytes: self.bytes.0,
            age: self.age.0,
            memory_bytes: self.memory.0,
        }
    }
}

/// A log always keeps its last message, so a limit of none would be exceeded.
fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match usize::deserialize(deserializer)? {
        0 => Err(D::Error::custom("invalid value `0`: expected 1 or more")),
        number => Ok(number),
    }
}

/// The name of a namespace as a key of the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NamespaceName(pub(crate) String);

impl<'de> Deserialize<'de> for NamespaceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        values::namespace(&text).map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_each_section_is_valid() {
        for (name, template) in SECTIONS {
            let table: toml::de::Deserializer<'_> =
                toml::de::Deserializer::parse(template).unwrap();
            let settings = Settings::deserialize(table);
            assert!(settings.is_ok(), "{name}: {settings:?}");
            assert!(settings.unwrap() != Settings::default(), "{name} is shown");
        }
    }
}
