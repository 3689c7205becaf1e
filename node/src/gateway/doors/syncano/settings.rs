//! The table `[doors.syncano]` of the settings.
//!
//! Secrets are never part of the file: keys are hashes, or names of files and
//! variables. Only a key that is known as text can be returned for a password, so users
//! and accounts with a password need one of the latter.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use roomcast::HistoryLimits;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::channel::{self, Kind, Permission};
use crate::gateway::{
    api::Hash,
    hooks::{self, Target},
    values::{self, Span, read},
};

/// The door is open if it has an instance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The namespace of an instance is this, a slash, and its name.
    #[serde(deserialize_with = "namespace")]
    pub(crate) namespace: String,
    /// How long a poll waits. The SDKs must give up first, which they do after 300 s.
    pub(crate) poll_timeout: Span,
    /// The refused polls per second of one address. Further ones get the status 429, because
    /// the JavaScript SDK repeats a refused poll at once and for ever.
    pub(crate) refused_polls: u32,
    /// The polls, and the other requests, per second and instance; 0 means no limit.
    pub(crate) polls_per_second: u32,
    pub(crate) requests_per_second: u32,
    /// The limits of the history of each room.
    pub(crate) history: History,
    /// People who get an account key for their password.
    pub(crate) accounts: Vec<AccountSettings>,
    pub(crate) instances: BTreeMap<String, InstanceSettings>,
}

/// The limits of the history of each room.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct History {
    pub(crate) messages: usize,
    pub(crate) bytes: values::ByteSize,
    /// How long a notification is listed. By its id, it can be read for an hour more.
    pub(crate) age: Span,
}

/// How long a notification can be read by its id after it has left the lists.
const GRACE: Duration = Duration::from_secs(60 * 60);

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct InstanceSettings {
    pub(crate) keys: Vec<KeySettings>,
    pub(crate) users: Vec<UserSettings>,
    pub(crate) channels: BTreeMap<String, ChannelSettings>,
    pub(crate) classes: BTreeMap<String, ClassSettings>,
    /// The application that keeps the objects. Without one, the door does.
    pub(crate) hook: Option<HookSettings>,
}

/// The application that keeps the objects of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HookSettings {
    pub(crate) url: Target,
    #[serde(default = "hooks::default_timeout", deserialize_with = "read::span")]
    pub(crate) timeout: Duration,
    #[serde(default = "hooks::default_concurrency")]
    pub(crate) concurrency: usize,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) secret_env: Option<String>,
}

impl HookSettings {
    pub(super) fn backend(&self) -> hooks::Settings {
        hooks::Settings {
            timeout: self.timeout,
            concurrency: self.concurrency,
            secret_file: self.secret_file.clone(),
            secret_env: self.secret_env.clone(),
            ..hooks::Settings::of(self.url.clone())
        }
    }
}

/// A person who gets an account key for a password.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccountSettings {
    pub(crate) id: u64,
    pub(crate) email: String,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) key_env: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) password_env: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyKind {
    /// May do everything in the instance.
    Account,
    Api,
}

/// A key of the SDKs. The settings have only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeySettings {
    /// Notifications name their author by it.
    pub(crate) id: u64,
    pub(crate) kind: KeyKind,
    pub(crate) hash: Hash,
    /// May do everything with channels and objects, without a user.
    #[serde(default)]
    pub(crate) ignore_acl: bool,
    /// May poll and read public channels without a user.
    #[serde(default)]
    pub(crate) allow_anonymous_read: bool,
}

/// A user of an instance. Requests state it with a user key in addition to the API key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserSettings {
    pub(crate) id: u64,
    /// The key, or its hash. Only a key that is known can be the response to a password.
    pub(crate) hash: Option<Hash>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) key_env: Option<String>,
    /// The ids of groups.
    #[serde(default)]
    pub(crate) groups: Vec<u64>,
    /// With a password, the user can request the key.
    pub(crate) username: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) password_env: Option<String>,
}

/// A channel, with the fields and the defaults of the original.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ChannelSettings {
    pub(crate) description: String,
    pub(crate) r#type: Kind,
    pub(crate) group: Option<u64>,
    pub(crate) group_permissions: Permission,
    pub(crate) other_permissions: Permission,
    pub(crate) custom_publish: bool,
}

/// A class of objects. Without settings for it, it does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClassSettings {
    pub(crate) description: String,
    pub(crate) schema: Vec<Field>,
    /// The rights of users outside of the class's group.
    pub(crate) other_permissions: ClassPermission,
    pub(crate) group: Option<u64>,
    pub(crate) group_permissions: ClassPermission,
    /// The most objects that are stored.
    pub(crate) max_objects: Option<usize>,
}

/// A field of a class. The server uses only its name and type. It returns the other keys to
/// the SDKs unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) r#type: String,
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClassPermission {
    None,
    Read,
    #[default]
    CreateObjects,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "/syncano".to_owned(),
            poll_timeout: Span(Duration::from_secs(310)),
            refused_polls: 2,
            polls_per_second: 0,
            requests_per_second: 0,
            history: History::default(),
            accounts: Vec::new(),
            instances: BTreeMap::new(),
        }
    }
}

impl Default for History {
    fn default() -> Self {
        Self {
            messages: 1000,
            bytes: values::ByteSize(1 << 20),
            age: Span(Duration::from_secs(24 * 60 * 60)),
        }
    }
}

impl Settings {
    /// The namespaces of the instances.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = String> {
        let names = self.instances.keys();
        names.map(|name| self.namespace_of(name))
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        let instance = namespace.strip_prefix(&*self.namespace);
        let instance = instance.and_then(|rest| rest.strip_prefix('/'));
        instance.is_some_and(|name| self.instances.contains_key(name))
    }

    /// The limits of the logs of a namespace, if it is that of an instance.
    pub(crate) fn history_of(&self, namespace: &str) -> Option<HistoryLimits> {
        self.has_namespace(namespace).then(|| HistoryLimits {
            messages: self.history.messages,
            bytes: self.history.bytes.0,
            age: self.history.age.0.saturating_add(GRACE),
            ..HistoryLimits::default()
        })
    }

    pub(super) fn namespace_of(&self, instance: &str) -> String {
        format!("{}/{instance}", self.namespace)
    }

    /// Checks the rules that serde does not know.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.refused_polls == 0 {
            return Err("[doors.syncano]: refused_polls is at least 1".to_owned());
        }
        for (index, account) in self.accounts.iter().enumerate() {
            let problem = |what: &str| Err(format!("doors.syncano.accounts[{index}]: {what}"));
            if account.key_file.is_some() == account.key_env.is_some() {
                return problem("set one of key_file and key_env");
            }
            if account.password_file.is_some() == account.password_env.is_some() {
                return problem("set one of password_file and password_env");
            }
            // The email is how an account is found, in any case of its letters.
            let mut others = self.accounts[..index].iter();
            if others.any(|other| other.email.to_lowercase() == account.email.to_lowercase()) {
                return problem("another account has the same email");
            }
        }
        for (name, instance) in &self.instances {
            let problem = |what: String| format!("doors.syncano.instances.{name}: {what}");
            if !channel::is_name(name) {
                return Err(problem(format!("an instance has {}", channel::NAME_RULE)));
            }
            instance.check().map_err(problem)?;
        }
        Ok(())
    }
}

impl InstanceSettings {
    /// Mistakes that would show only at a request, such as a key that can never be
    /// found, are errors at the start.
    fn check(&self) -> Result<(), String> {
        let channels = self.channels.keys();
        let channels = channels.map(|name| (name, "channels", "a channel"));
        let classes = self.classes.keys();
        let classes = classes.map(|name| (name, "classes", "a class"));
        let mut names = channels.chain(classes);
        if let Some((name, table, kind)) = names.find(|(name, ..)| !channel::is_name(name)) {
            let rule = channel::NAME_RULE;
            return Err(format!("{table}.{name}: {kind} has {rule}"));
        }
        for (index, key) in self.keys.iter().enumerate() {
            if key.kind == KeyKind::Account && (key.ignore_acl || key.allow_anonymous_read) {
                return Err(format!(
                    "keys[{index}]: an account key has no flags, because it may do everything"
                ));
            }
            let mut others = self.keys[..index].iter();
            if others.any(|other| other.hash == key.hash) {
                return Err(format!("keys[{index}]: another key has the same hash"));
            }
        }
        for (index, user) in self.users.iter().enumerate() {
            let problem = |what: &str| Err(format!("users[{index}]: {what}"));
            let keys = [
                user.hash.is_some(),
                user.key_file.is_some(),
                user.key_env.is_some(),
            ];
            if keys.into_iter().filter(|is_set| *is_set).count() != 1 {
                return problem("set one of hash, key_file and key_env");
            }
            if user.password_file.is_some() && user.password_env.is_some() {
                return problem("set one of password_file and password_env");
            }
            let has_password = user.password_file.is_some() || user.password_env.is_some();
            if has_password && (user.username.is_none() || user.hash.is_some()) {
                return problem(
                    "a user with a password needs username, and key_file or key_env, because the \
                     response to a password is the key",
                );
            }
            if self.users[..index].iter().any(|other| other.id == user.id) {
                return problem("another user has the same id");
            }
        }
        Ok(())
    }
}

/// Reads the beginning of the namespaces. A slash at its end is dropped, because one
/// follows.
fn namespace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    values::namespace(text.trim_end_matches('/')).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str) -> Result<(), String> {
        let settings: Settings = toml::from_str(toml).map_err(|error| error.to_string())?;
        settings.check()
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let hash = format!("sha256:{}", "0".repeat(64));
        let key = "id = 1\nkind = 'account'\nignore_acl = true";
        let key = format!("[[instances.shop.keys]]\nhash = '{hash}'\n{key}");
        let user = "id = 1\nusername = 'a'\npassword_env = 'A'";
        let user = format!("[[instances.shop.users]]\nhash = '{hash}'\n{user}");
        let account = "[[accounts]]\nid = 1\nemail = 'a@b'\n";
        let [no_key, no_password] =
            ["password", "key"].map(|one| format!("{account}{one}_env = 'A'"));
        let hook = "[instances.shop.hook]\nurl = '/objects'";
        let rows = [
            ("instances.Shop: an instance has", "[instances.Shop]"),
            ("channels.a b", "[instances.shop.channels.'a b']"),
            ("classes.-", "[instances.shop.classes.-]"),
            ("keys[0]: an account key has no flags", &key),
            ("users[0]: set one of", "[[instances.shop.users]]\nid = 1"),
            ("users[0]: a user with a password", &user),
            ("refused_polls", "refused_polls = 0"),
            ("accounts[0]: set one of key_file", &no_key),
            ("accounts[0]: set one of password_file", &no_password),
            ("not an absolute URL", hook),
        ];
        for (problem, toml) in rows {
            let error = check(toml).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn the_defaults_keep_as_much_as_the_original_and_hold_polls_longer_than_its_clients() {
        let mut settings = Settings::default();
        assert_eq!(settings.poll_timeout.0, Duration::from_secs(310));
        let instance = InstanceSettings::default();
        settings.instances.insert("shop".to_owned(), instance);
        let kept = settings.history_of("/syncano/shop").unwrap();
        assert_eq!((kept.messages, settings.history.age.0), (1000, 24 * GRACE));
        assert_eq!(kept.age, 25 * GRACE, "an hour more by id than in lists");
        assert_eq!(settings.history_of("/syncano/other"), None);
    }

    #[test]
    fn a_key_of_the_table_is_known_by_its_name_only() {
        for toml in ["namespace = \"x\"", "x = 1"] {
            assert!(check(toml).is_err(), "{toml}");
        }
        check("namespace = \"/door/\"").unwrap();
    }
}
