//! The table `[doors.pakyow]` of the settings.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::gateway::{
    hooks::{self, Target},
    values::{self, ByteSize, Span},
};

/// The door for clients of Pakyow's realtime channels. Without this table, it is closed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The namespace whose sockets the clients are.
    #[serde(deserialize_with = "namespace")]
    pub(crate) namespace: String,
    /// The application whose routes clients call. Without one, such calls get status 502.
    pub(crate) application: Option<Target>,
    /// The path of the application to which messages with other actions are posted. Without one, nobody
    /// responds to them.
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
    #[serde(deserialize_with = "pause")]
    pub(crate) grace: Span,
    /// A cookie with the socket key, if the application sets one.
    pub(crate) key_cookie: Option<String>,
    pub(crate) hook: Option<HookSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "/pakyow".to_owned(),
            application: None,
            actions: None,
            timeout: Span(std::time::Duration::from_secs(30)),
            concurrency: 64,
            queue: 1024,
            routes_per_socket: 16,
            max_response: ByteSize(1 << 20),
            max_message: ByteSize(64 << 10),
            max_channels: 1000,
            lifetime: Span(std::time::Duration::from_secs(600)),
            grace: Span(std::time::Duration::ZERO),
            key_cookie: None,
            hook: None,
        }
    }
}

/// The occasions on which the hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
    #[serde(default = "timeout")]
    pub(crate) timeout: Span,
    #[serde(default = "concurrency")]
    pub(crate) concurrency: usize,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) secret_env: Option<String>,
}

fn all_occasions() -> Vec<Occasion> {
    vec![Occasion::Connect, Occasion::Join, Occasion::Leave]
}

fn timeout() -> Span {
    Span(std::time::Duration::from_secs(5))
}

fn concurrency() -> usize {
    64
}

impl Settings {
    /// Checks what serde cannot.
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
        Ok(())
    }

    /// The client of the application's routes. Its circuit never opens, because a client chooses the
    /// route, and one that is slow must not close the others.
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
            timeout: self.timeout.0,
            concurrency: self.concurrency,
            secret_file: self.secret_file.clone(),
            secret_env: self.secret_env.clone(),
            ..hooks::Settings::of(self.url.clone())
        }
    }
}

fn namespace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    values::namespace(&text).map_err(D::Error::custom)
}

fn pause<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
    let text = String::deserialize(deserializer)?;
    values::pause(&text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(settings: Value) -> Result<Settings, String> {
        let settings: Settings =
            serde_json::from_value(settings).map_err(|error| error.to_string())?;
        settings.check().map(|()| settings)
    }

    #[test]
    fn an_empty_table_opens_the_door_with_the_defaults() {
        let settings = read(json!({})).unwrap();
        assert_eq!(settings, Settings::default());
        assert!(settings.routes().is_none());
    }

    #[test]
    fn mistakes_are_refused_with_a_reason() {
        let app = "http://127.0.0.1:9000";
        for (settings, reason) in [
            (json!({ "namespace": "pakyow" }), "begins with /"),
            (json!({ "application": "/app" }), "not an absolute URL"),
            (
                json!({ "application": format!("{app}/x") }),
                "neither path nor query",
            ),
            (json!({ "actions": "/a" }), "needs application"),
            (json!({ "application": app, "actions": "a" }), "is a path"),
            (json!({ "routes_per_socket": 0 }), "at least 1"),
            (json!({ "lifetime": "0s" }), "more than zero"),
            (
                json!({ "hook": { "url": app, "on": [] } }),
                "hook.on is empty",
            ),
            (
                json!({ "hook": { "url": app, "on": ["event"] } }),
                "unknown variant",
            ),
            (json!({ "hok": {} }), "unknown field"),
        ] {
            let error = read(settings.clone()).unwrap_err();
            assert!(error.contains(reason), "{settings}: {error}");
        }
        assert_eq!(read(json!({ "grace": "0s" })).unwrap().grace.0.as_secs(), 0);
    }
}
