//! The table `[doors.channels]` of the settings.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::gateway::{
    config::Config,
    settings::NamespaceName,
    values::{self, Span},
};

/// Channels over plain HTTP and WebSocket. Without namespaces, there are none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The path below which all routes are.
    #[serde(deserialize_with = "path")]
    pub(crate) path: String,
    /// The namespaces into whose rooms the door leads.
    pub(crate) namespaces: Vec<NamespaceName>,
    /// Whether a token or key may be in the query. `EventSource` sends no headers, but
    /// URLs end up in logs.
    pub(crate) query_token: bool,
    /// The most rooms of one stream.
    pub(crate) max_rooms: usize,
    /// The most events of one response to a poll or a question for the history.
    pub(crate) max_events: usize,
    /// How long a poll waits, unless its query names a shorter time.
    pub(crate) poll_timeout: Span,
    /// How long `EventSource` waits before it reconnects.
    pub(crate) retry: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: "/channels".to_owned(),
            namespaces: Vec::new(),
            query_token: false,
            max_rooms: 20,
            max_events: 100,
            poll_timeout: Span(Duration::from_secs(25)),
            retry: Span(Duration::from_secs(2)),
        }
    }
}

impl Settings {
    /// Checks rules that serde cannot.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.max_rooms == 0 || self.max_events == 0 {
            return Err("[doors.channels]: max_rooms and max_events are at least 1".to_owned());
        }
        Ok(())
    }

    /// Checks rules that involve other settings.
    pub(crate) fn fits(&self, config: &Config) -> Result<(), String> {
        if self.namespaces.is_empty() {
            return Ok(());
        }
        let served = config.namespaces();
        let mut names = self.namespaces.iter();
        if let Some(NamespaceName(name)) = names.find(|name| !served.contains(&name.0)) {
            return Err(format!(
                "[doors.channels]: the namespace {name} is not served: add --namespace {name} or a \
                 section [namespaces.{name:?}]"
            ));
        }
        let (own, other) = (&self.path, &config.protocol.path);
        let is_below = |path: &str, above: &str| {
            path.strip_prefix(above)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if is_below(own, other) || is_below(other, own) {
            return Err(format!(
                "[doors.channels]: the path {own} and the --path {other} overlap"
            ));
        }
        Ok(())
    }

    /// Whether the door leads into a namespace.
    pub(crate) fn has(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|name| name.0 == namespace)
    }
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let path = values::path(&text).map_err(D::Error::custom)?;
    match path.trim_end_matches('/') {
        "" => Err(D::Error::custom("the path cannot be /")),
        path => Ok(path.to_owned()),
    }
}
