//! The settings of the door that a reload replaces.
//!
//! Connected sockets keep their limit of routes, and running requests their application.
//! Everything else is in force from the next message or call.

use std::sync::Arc;

use super::{Application, Pakyow};
use crate::gateway::{
    config::Config,
    reload::{Preparing, Reloadable, prepared},
};

impl Reloadable for Arc<Pakyow> {
    /// All but `namespace` and `registry`, to which the door is connected.
    fn keys(&self) -> &'static [&'static str] {
        &[
            "doors.pakyow.application",
            "doors.pakyow.actions",
            "doors.pakyow.timeout",
            "doors.pakyow.concurrency",
            "doors.pakyow.queue",
            "doors.pakyow.routes_per_socket",
            "doors.pakyow.max_response",
            "doors.pakyow.max_message",
            "doors.pakyow.max_channels",
            "doors.pakyow.lifetime",
            "doors.pakyow.grace",
            "doors.pakyow.key_cookie",
            "doors.pakyow.hook",
        ]
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        // A door is neither opened nor closed by a reload.
        let Some(settings) = config.settings.doors.pakyow.clone() else {
            return prepared(Ok(|| {}));
        };
        let application = Application::new(&settings, &self.hooks);
        let pakyow = Self::clone(self);
        prepared(application.map(|application| {
            move || {
                pakyow.registry.set_bounds(settings.bounds());
                pakyow.application().retire();
                *pakyow.application.write() = Arc::new(application);
                *pakyow.settings.write() = Arc::new(settings);
                pakyow.is_reloaded.notify_one();
            }
        }))
    }
}
