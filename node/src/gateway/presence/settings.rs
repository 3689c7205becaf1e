//! The section `[presence]` of the settings.

use serde::Deserialize;

use crate::gateway::settings::NamespaceName;

/// Which namespaces have presence, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) namespaces: Vec<NamespaceName>,
    /// The most sockets and memberships of rooms that are kept of a namespace.
    pub(crate) max_entries: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespaces: Vec::new(),
            max_entries: 1_000_000,
        }
    }
}

impl Settings {
    /// Checks rules that serde cannot. `is_served` knows the namespaces.
    pub(crate) fn check(&self, is_served: impl Fn(&str) -> bool) -> Result<(), String> {
        match self.namespaces.iter().find(|name| !is_served(&name.0)) {
            Some(NamespaceName(name)) => Err(format!(
                "[presence]: namespaces has {name}, which is not served: add it to namespace"
            )),
            None => Ok(()),
        }
    }
}

/// The section in the commented default file.
pub(crate) const TEMPLATE: &str = r#"
# Users who are online, and their rooms, kept on each node for the whole cluster.
[presence]
# Namespaces that have presence; none by default. All nodes need the same list.
namespaces = ["/chat"]
# Largest number of sockets and room memberships per namespace.
max_entries = 1000000
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_not_served_is_named() {
        let settings: Settings = toml::from_str(r#"namespaces = ["/", "/chat"]"#).unwrap();
        assert_eq!(settings.check(|_| true), Ok(()));
        let error = settings.check(|name| name == "/").unwrap_err();
        assert!(error.contains("/chat, which is not served"), "{error}");
    }
}
