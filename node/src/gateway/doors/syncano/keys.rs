//! The credentials of a request, and the keys and users of an instance.
//!
//! ```text
//!  X-API-KEY ─ else ?api_key, ?apikey ─ else Authorization: WORD KEY ─ else body _api_key ──► key
//!  X-USER-KEY ─ else ?user_key, ?userkey ─ else body _user_key ──► user, if the key is an API key
//! ```
//!
//! Keys and passwords are compared as hashes in a table. As long as keys are random, the duration
//! of a search by hash reveals nothing about the key.

use std::{collections::HashMap, sync::Arc};

use http::{HeaderMap, StatusCode, header};
use roomcast::syncano::Query;
use serde_json::{Map, Value, json};

use super::{
    body::required,
    failure::Failure,
    settings::{InstanceSettings, KeyKind, KeySettings, UserSettings},
};
use crate::gateway::{api::Hash, values::secret};

/// The caller of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Administrates the instance.
    Account { id: u64 },
    Api {
        id: u64,
        ignore_acl: bool,
        allow_anonymous_read: bool,
        user: Option<Arc<User>>,
    },
}

/// Permissions depend on nothing else of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) id: u64,
    pub(super) groups: Vec<u64>,
}

impl User {
    pub(super) fn is_in(&self, group: Option<u64>) -> bool {
        group.is_some_and(|group| self.groups.contains(&group))
    }
}

impl Caller {
    pub(super) fn is_account(&self) -> bool {
        matches!(self, Self::Account { .. })
    }

    /// Whether no permissions are asked: an account key, or one that ignores them.
    pub(super) fn has_all_rights(&self) -> bool {
        match self {
            Self::Account { .. } => true,
            Self::Api { ignore_acl, .. } => *ignore_acl,
        }
    }

    pub(super) fn user(&self) -> Option<&User> {
        match self {
            Self::Account { .. } => None,
            Self::Api { user, .. } => user.as_deref(),
        }
    }

    /// The author of a notification.
    /// All recipients of the notification see it, so it has ids and no keys.
    pub(super) fn author(&self) -> Value {
        match self {
            Self::Account { id } => json!({ "admin": id }),
            Self::Api { id, user: None, .. } => json!({ "api_key": id }),
            Self::Api {
                id,
                user: Some(user),
                ..
            } => json!({ "api_key": id, "user": user.id }),
        }
    }

    /// Names whose requests are counted together.
    /// A user counts by itself, because all users of an application share its key.
    pub(super) fn holder(&self) -> String {
        match self {
            Self::Account { id } => format!("account:{id}"),
            Self::Api {
                user: Some(user), ..
            } => format!("user:{}", user.id),
            Self::Api { id, .. } => format!("key:{id}"),
        }
    }
}

/// The credentials of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    key: Option<String>,
    user_key: Option<String>,
}

impl Credentials {
    pub(super) fn of(headers: &HeaderMap, query: &Query, body: &Map<String, Value>) -> Self {
        let header = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok())?;
            Some(value.trim()).filter(|value| !value.is_empty())
        };
        let in_query = |names: [&str; 2]| names.into_iter().find_map(|name| query.get(name));
        let in_body = |name: &str| {
            let text = body.get(name).and_then(Value::as_str)?;
            Some(text).filter(|text| !text.is_empty())
        };
        let authorization = || {
            let value = header(header::AUTHORIZATION.as_str())?;
            let (_, key) = value.split_once(' ')?;
            Some(key.trim())
        };
        let key = header("x-api-key")
            .or_else(|| in_query(["api_key", "apikey"]))
            .or_else(authorization)
            .or_else(|| in_body("_api_key"));
        let user_key = header("x-user-key")
            .or_else(|| in_query(["user_key", "userkey"]))
            .or_else(|| in_body("_user_key"));
        Self {
            key: key.map(str::to_owned),
            user_key: user_key.map(str::to_owned),
        }
    }
}

/// A key that is returned for a password.
pub(super) struct Login {
    password: Hash,
    pub(super) id: u64,
    pub(super) key: String,
}

impl Login {
    pub(super) fn new(id: u64, key: Option<String>, password: Option<String>) -> Option<Self> {
        let password = Hash::of(password?.as_bytes());
        Some(Self {
            password,
            id,
            key: key?,
        })
    }

    pub(super) fn has_password(&self, password: &str) -> bool {
        self.password == Hash::of(password.as_bytes())
    }
}

/// The keys and users of an instance.
pub(super) struct Keys {
    keys: HashMap<Hash, KeySettings>,
    users: HashMap<Hash, Arc<User>>,
    logins: HashMap<String, Login>,
}

impl Keys {
    /// Reads the keys and passwords that the settings keep elsewhere.
    pub(super) fn new(settings: &InstanceSettings) -> Result<Self, String> {
        let keys = settings.keys.iter().map(|key| (key.hash, key.clone()));
        let mut all = Self {
            keys: keys.collect(),
            users: HashMap::new(),
            logins: HashMap::new(),
        };
        for user in &settings.users {
            all.add(user)
                .map_err(|problem| format!("user {}: {problem}", user.id))?;
        }
        Ok(all)
    }

    /// Adds a user, whose key may be a hash, or a text from elsewhere that is hashed
    /// here.
    fn add(&mut self, settings: &UserSettings) -> Result<(), String> {
        let key = secret("key", settings.key_file.as_ref(), settings.key_env.as_ref())?;
        let hash = key
            .as_ref()
            .map(|key| Hash::of(key.as_bytes()))
            .or(settings.hash);
        let Some(hash) = hash else {
            return Err("no key".to_owned());
        };
        let user = Arc::new(User {
            id: settings.id,
            groups: settings.groups.clone(),
        });
        if self.users.insert(hash, user).is_some() {
            return Err("another user has the same key".to_owned());
        }
        let password = secret(
            "password",
            settings.password_file.as_ref(),
            settings.password_env.as_ref(),
        )?;
        if let Some(name) = &settings.username
            && let Some(login) = Login::new(settings.id, key, password)
        {
            self.logins.insert(name.clone(), login);
        }
        Ok(())
    }

    /// Identifies the caller. A request without a key is refused.
    pub(super) fn recognize(&self, credentials: &Credentials) -> Result<Caller, Failure> {
        let key = credentials.key.as_ref().ok_or_else(Failure::forbidden)?;
        let key = self.keys.get(&Hash::of(key.as_bytes()));
        let key = key.ok_or_else(Failure::unknown_key)?;
        if key.kind == KeyKind::Account {
            return Ok(Caller::Account { id: key.id });
        }
        // A wrong user key is refused, and not ignored: the caller would act with other
        // rights than it expects.
        let user = match &credentials.user_key {
            None => None,
            Some(user) => {
                let user = self.users.get(&Hash::of(user.as_bytes())).cloned();
                Some(user.ok_or_else(Failure::forbidden)?)
            }
        };
        Ok(Caller::Api {
            id: key.id,
            ignore_acl: key.ignore_acl,
            allow_anonymous_read: key.allow_anonymous_read,
            user,
        })
    }

    /// Whether a key is that of an account.
    pub(super) fn is_account(&self, key: &str) -> bool {
        let key = self.keys.get(&Hash::of(key.as_bytes()));
        key.is_some_and(|key| key.kind == KeyKind::Account)
    }

    /// The id and the key of the user with this name and password.
    pub(super) fn log_in(&self, fields: &Map<String, Value>) -> Result<(u64, &str), Failure> {
        let name = required(fields, "username")?;
        let password = required(fields, "password")?;
        let refused = |what| Failure::detail(StatusCode::UNAUTHORIZED, what);
        let login = self.logins.get(name);
        let login = login.ok_or_else(|| refused("Invalid username."))?;
        if !login.has_password(password) {
            return Err(refused("Invalid password."));
        }
        Ok((login.id, &login.key))
    }
}

#[cfg(test)]
impl Caller {
    /// The caller with an API key and these flags, and with the id and the groups of a user.
    pub(super) fn api(
        ignore_acl: bool,
        allow_anonymous_read: bool,
        user: Option<(u64, &[u64])>,
    ) -> Self {
        let user = user.map(|(id, groups)| {
            let groups = groups.to_vec();
            Arc::new(User { id, groups })
        });
        Self::Api {
            id: 2,
            ignore_acl,
            allow_anonymous_read,
            user,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "0000000000000000000000000000000000000001";
    const PLAIN: &str = "0000000000000000000000000000000000000002";
    const USER: &str = "0000000000000000000000000000000000000007";

    fn keys() -> Keys {
        let hash = |key: &str| Hash::of(key.as_bytes());
        let toml = format!(
            "keys = [{{id = 1, kind = 'account', hash = 'sha256:{}'}}, \
             {{id = 2, kind = 'api', hash = 'sha256:{}', allow_anonymous_read = true}}]\n\
             users = [{{id = 7, hash = 'sha256:{}', groups = [3]}}]",
            hash(ACCOUNT),
            hash(PLAIN),
            hash(USER)
        );
        let settings: InstanceSettings = toml::from_str(&toml).unwrap();
        Keys::new(&settings).unwrap()
    }

    fn credentials(headers: &[(&'static str, &str)], query: &str, body: Value) -> Credentials {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let Value::Object(body) = body else {
            panic!("{body}")
        };
        Credentials::of(&map, &Query::parse(query), &body)
    }

    #[test]
    fn a_key_is_in_a_header_the_query_or_the_body() {
        let of = |headers: &[(&'static str, &str)], query, body| {
            credentials(headers, query, body).key.unwrap_or_default()
        };
        let all = [("x-api-key", "a"), ("authorization", "token c")];
        let body = || json!({ "_api_key": "d" });
        assert_eq!(of(&all, "api_key=b", body()), "a");
        assert_eq!(of(&all[1..], "api_key=b", body()), "b");
        assert_eq!(of(&all[1..], "apikey=b", body()), "b");
        assert_eq!(of(&all[1..], "api_key=", body()), "c");
        assert_eq!(of(&[("authorization", "ApiKey c")], "", body()), "c");
        assert_eq!(of(&[("authorization", "c")], "", body()), "d");
        assert_eq!(of(&[], "", json!({})), "");
    }

    #[test]
    fn a_user_key_is_in_a_header_the_query_or_the_body() {
        let of = |headers: &[(&'static str, &str)], query, body| {
            credentials(headers, query, body)
                .user_key
                .unwrap_or_default()
        };
        let body = || json!({ "_user_key": "c" });
        assert_eq!(of(&[("x-user-key", "a")], "user_key=b", body()), "a");
        assert_eq!(of(&[], "user_key=b", body()), "b");
        assert_eq!(of(&[], "userkey=b", body()), "b");
        assert_eq!(of(&[], "", body()), "c");
    }

    #[test]
    fn a_caller_is_an_account_a_key_or_a_key_with_a_user() {
        let keys = keys();
        let of = |key: &str, user: &str| {
            let headers = [("x-api-key", key), ("x-user-key", user)];
            let used = if user.is_empty() { 1 } else { 2 };
            keys.recognize(&credentials(&headers[..used], "", json!({})))
        };
        let account = of(ACCOUNT, "").unwrap();
        assert_eq!(account.author(), json!({ "admin": 1 }));
        let key = of(PLAIN, "").unwrap();
        assert_eq!(key.author(), json!({ "api_key": 2 }));
        let user = of(PLAIN, USER).unwrap();
        assert_eq!(user.author(), json!({ "api_key": 2, "user": 7 }));
        assert_eq!(user.user().unwrap().groups, [3]);
        let holders = [&account, &key, &user].map(Caller::holder);
        assert_eq!(holders, ["account:1", "key:2", "user:7"]);
        // An account needs no user, so it does not matter which one it names.
        assert_eq!(of(ACCOUNT, "unknown").unwrap(), account);
    }

    #[test]
    fn an_unknown_key_and_a_missing_one_are_refused_with_different_words() {
        let keys = keys();
        let of = |query: &str| {
            let credentials = credentials(&[], query, json!({}));
            keys.recognize(&credentials).unwrap_err()
        };
        assert_eq!(of("api_key=unknown"), Failure::unknown_key());
        assert_eq!(of(&format!("api_key={USER}")), Failure::unknown_key());
        assert_eq!(of(""), Failure::forbidden());
        let user = format!("api_key={PLAIN}&user_key=unknown");
        assert_eq!(of(&user), Failure::forbidden());
    }
}
