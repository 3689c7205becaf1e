//! The table `[doors.pakyow]` of the settings.

use std::{env, path::PathBuf, time::Duration};

use roomcast::{
    RedisUrl,
    emitter::redis::{Endpoint, Topology},
};
use serde::{Deserialize, Serialize};

use super::registry::Bounds;
use crate::gateway::{
    hooks::{self, Target},
    values::{ByteSize, Span, read},
};

/// The door for clients of Pakyow's realtime channels. Without this table, it is closed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The namespace whose sockets the clients are.
    #[serde(deserialize_with = "read::namespace")]
    pub(crate) namespace: String,
    /// The application whose routes clients call. Without one, such calls get status 502.
    pub(crate) application: Option<Target>,
    /// The path of the application to which messages with other actions are posted.
    /// Without one, they get no response.
    pub(crate) actions: Option<String>,
    /// Time for the response of a route, the wait for a free request included.
    pub(crate) timeout: Span,
    /// Requests to the application at the same time, and requests that wait.
    pub(crate) concurrency: usize,
    pub(crate) queue: usize,
    /// Routes that one socket calls at the same time. As many again may wait, four times over.
    pub(crate) routes_per_socket: usize,
    /// The largest body of a response.
    pub(crate) max_response: ByteSize,
    /// The largest message of a client.
    pub(crate) max_message: ByteSize,
    /// Channels that one socket is subscribed to.
    pub(crate) max_channels: usize,
    /// How long subscriptions wait for their socket.
    pub(crate) lifetime: Span,
    /// How long they wait for it to come back.
    #[serde(deserialize_with = "read::pause")]
    pub(crate) grace: Span,
    /// A cookie with the socket key, if the application sets one.
    pub(crate) key_cookie: Option<String>,
    pub(crate) hook: Option<HookSettings>,
    /// The Redis of Pakyow's own processes, if there are any.
    pub(crate) registry: Option<RegistrySettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "/pakyow".to_owned(),
            application: None,
            actions: None,
            timeout: Span(Duration::from_secs(30)),
            concurrency: 64,
            queue: 1024,
            routes_per_socket: 16,
            max_response: ByteSize(1 << 20),
            max_message: ByteSize(64 << 10),
            max_channels: 1000,
            lifetime: Span(Duration::from_secs(600)),
            grace: Span(Duration::ZERO),
            key_cookie: None,
            hook: None,
            registry: None,
        }
    }
}

/// The occasions on which the hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Occasion {
    /// A client connects without a key that is known here.
    Connect,
    /// A socket has connected.
    Join,
    /// A socket has disconnected.
    Leave,
}

/// The hook of the application.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HookSettings {
    pub(crate) url: Target,
    #[serde(default = "all_occasions")]
    pub(crate) on: Vec<Occasion>,
    #[serde(default = "hooks::default_timeout", deserialize_with = "read::span")]
    pub(crate) timeout: Duration,
    #[serde(default = "hooks::default_concurrency")]
    pub(crate) concurrency: usize,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) secret_env: Option<String>,
}

fn all_occasions() -> Vec<Occasion> {
    vec![Occasion::Connect, Occasion::Join, Occasion::Leave]
}

/// The registry that nodes share with processes of Pakyow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RegistrySettings {
    /// The address of their Redis.
    #[serde(deserialize_with = "read::redis")]
    pub(crate) url: Option<RedisUrl>,
    /// The environment variable with it.
    pub(crate) url_env: Option<String>,
    /// The hash with the subscriptions.
    pub(crate) key: String,
    /// Maximum delay until the node sees a change that a process makes without a notification.
    pub(crate) refresh: Span,
    /// The largest message of a push.
    pub(crate) max_push: ByteSize,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            url: None,
            url_env: None,
            key: "pw:channels".to_owned(),
            refresh: Span(Duration::from_secs(5)),
            max_push: ByteSize(1 << 20),
        }
    }
}

impl Settings {
    /// Checks rules that serde cannot.
    pub(crate) fn check(&self) -> Result<(), String> {
        let problem = |what: &str| Err(format!("[doors.pakyow]: {what}"));
        let positive = [
            ("concurrency", self.concurrency),
            ("routes_per_socket", self.routes_per_socket),
            ("max_channels", self.max_channels),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return problem(&format!("{key} is at least 1"));
        }
        if let Some(Target(url)) = &self.application
            && (url.path() != "/" || url.query().is_some())
        {
            return problem("application has neither path nor query, because clients name both");
        }
        match &self.actions {
            Some(path) if !path.starts_with('/') || path.contains(['?', '#', ' ']) => {
                return problem("actions is a path such as /pakyow/actions");
            }
            Some(_) if self.application.is_none() => {
                return problem("actions needs application, which takes them");
            }
            _ => {}
        }
        if let Some(hook) = &self.hook
            && hook.on.is_empty()
        {
            return problem("hook.on is empty, so the hook would never be called");
        }
        match &self.registry {
            Some(registry) => registry
                .check()
                .map_err(|what| format!("[doors.pakyow.registry]: {what}")),
            None => Ok(()),
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            lifetime: self.lifetime.0,
            grace: self.grace.0,
            channels: self.max_channels,
        }
    }

    /// The client of the application's routes. Its circuit never opens, because a client
    /// chooses the route, and one that is slow must not close the others.
    pub(super) fn routes(&self) -> Option<hooks::Settings> {
        let application = self.application.clone()?;
        Some(hooks::Settings {
            timeout: self.timeout.0,
            concurrency: self.concurrency,
            queue: self.queue,
            circuit_failures: u32::MAX,
            ..hooks::Settings::of(application)
        })
    }
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

impl RegistrySettings {
    fn check(&self) -> Result<(), String> {
        if self.key.is_empty() {
            return Err("key is the name of a hash".to_owned());
        }
        match (&self.url, &self.url_env) {
            (Some(url), None) => check_server(url),
            (None, Some(_)) => Ok(()),
            _ => Err("either url or url_env names the Redis of Pakyow's processes".to_owned()),
        }
    }

    /// The address. The error names the variable that lacks it.
    pub(super) fn address(&self) -> Result<RedisUrl, String> {
        let Some(name) = &self.url_env else {
            let url = self.url.clone();
            return url.ok_or_else(|| "url is missing".to_owned());
        };
        let text = env::var(name)
            .map_err(|_| format!("the environment variable {name} of url_env is not set"))?;
        let url = text.parse::<RedisUrl>();
        let url = url.map_err(|error| format!("the variable {name} of url_env: {error}"))?;
        check_server(&url).map(|()| url)
    }
}

/// Refuses a Redis Cluster, which Pakyow's processes cannot use, and whose servers count
/// subscribers each for itself.
fn check_server(url: &RedisUrl) -> Result<(), String> {
    match Endpoint::new(url.clone()).topology() {
        Topology::Cluster => Err("the registry cannot be in a Redis Cluster".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &str) -> Result<Settings, String> {
        let settings: Settings = toml::from_str(settings).map_err(|error| error.to_string())?;
        settings.check().map(|()| settings)
    }

    #[test]
    fn an_empty_table_opens_the_door_with_the_defaults() {
        let settings = read("").unwrap();
        assert_eq!(settings, Settings::default());
        assert!(settings.routes().is_none());
    }

    #[test]
    fn mistakes_are_refused_with_a_reason() {
        let either = "either url or url_env";
        for (reason, settings) in [
            ("begins with /", "namespace = 'pakyow'"),
            ("not an absolute URL", "application = '/app'"),
            ("neither path nor query", "application = 'http://a/x'"),
            ("needs application", "actions = '/a'"),
            ("is a path", "application = 'http://a'\nactions = 'a'"),
            ("at least 1", "routes_per_socket = 0"),
            ("more than zero", "lifetime = '0s'"),
            ("hook.on is empty", "hook = { url = 'http://a', on = [] }"),
            ("unknown variant", "hook.on = ['event']"),
            ("unknown field", "hok = {}"),
            (either, "registry = {}"),
            (either, "registry = { url = 'redis://a', url_env = 'A' }"),
            ("the URL of Redis must begin", "registry.url = 'http://a'"),
            ("in a Redis Cluster", "registry.url = 'redis+cluster://a'"),
            ("of a hash", "registry = { url = 'redis://a', key = '' }"),
        ] {
            let error = read(settings).unwrap_err();
            assert!(error.contains(reason), "{settings}: {error}");
        }
        assert!(read("grace = '0s'").unwrap().grace.0.is_zero());
    }

    #[test]
    fn the_address_of_the_registry_is_in_the_file_or_in_a_variable() {
        let address = |settings| read(settings).unwrap().registry.unwrap().address();
        let url = address("registry.url = 'redis://localhost:7000/3'").unwrap();
        assert_eq!(url.to_string(), "redis://localhost:7000/3");
        let error = address("registry.url_env = 'ROOMCAST_TEST_NO_SUCH_VARIABLE'").unwrap_err();
        assert!(error.contains("is not set"), "{error}");
    }
}
