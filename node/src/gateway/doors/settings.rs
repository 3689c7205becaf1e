//! The section `[doors]` of the settings.

use std::time::Duration;

use serde::Deserialize;

use super::{channels, pakyow, syncano};
use crate::gateway::{
    config::Config,
    values::{ByteSize, Span},
};

/// The other front doors. Each door has a separate table below this one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The largest body of a request.
    pub(crate) max_body: ByteSize,
    /// The time in which a body has to arrive.
    pub(crate) body_timeout: Span,
    /// The longest query of a URL.
    pub(crate) max_query: ByteSize,
    /// The open polls, streams and WebSockets of one address.
    pub(crate) max_parked_per_address: usize,
    /// The same of one key or user.
    pub(crate) max_parked_per_key: usize,
    /// Open if it exists.
    pub(crate) pakyow: Option<pakyow::Settings>,
    pub(crate) syncano: syncano::Settings,
    pub(crate) channels: channels::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_body: ByteSize(64 << 10),
            body_timeout: Span(Duration::from_secs(10)),
            max_query: ByteSize(8 << 10),
            max_parked_per_address: 1000,
            max_parked_per_key: 1000,
            pakyow: None,
            syncano: syncano::Settings::default(),
            channels: channels::Settings::default(),
        }
    }
}

impl Settings {
    /// Checks rules that serde cannot.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.max_parked_per_address == 0 || self.max_parked_per_key == 0 {
            return Err(
                "[doors]: max_parked_per_address and max_parked_per_key are at least 1".to_owned(),
            );
        }
        if let Some(pakyow) = &self.pakyow {
            pakyow.check()?;
        }
        self.syncano.check()?;
        self.channels.check()
    }

    /// Checks rules that involve other settings.
    pub(crate) fn fits(&self, config: &Config) -> Result<(), String> {
        self.channels.fits(config)
    }
}

/// The section in the commented default file. It has the tables of all doors.
pub(crate) const TEMPLATE: &str = include_str!("template.toml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_template_are_the_defaults() {
        #[derive(Deserialize)]
        struct File {
            doors: Settings,
        }

        let File { doors } = toml::from_str(TEMPLATE).unwrap();
        let (pakyow, default) = (doors.pakyow.unwrap(), pakyow::Settings::default());
        assert_eq!(pakyow.max_channels, default.max_channels);
        assert_eq!(pakyow.lifetime, default.lifetime);
        assert_eq!(pakyow.routes_per_socket, default.routes_per_socket);
        assert_eq!(
            doors.syncano.refused_polls,
            syncano::Settings::default().refused_polls
        );
        assert_eq!(doors.max_body, Settings::default().max_body);
    }
}
