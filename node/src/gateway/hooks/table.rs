//! The hooks of the settings file, and the choice of hooks for an occasion.
//!
//! A reload builds a new table and keeps each hook whose section and secret are the
//! same. So a change of one hook neither reopens connections of another, nor closes circuits, nor
//! loses notices.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Hooks,
    backend::Backend,
    batch::Batches,
    metrics::Metrics,
    notices::Notices,
    settings::{Occasion, Settings},
    store::Store,
};
use crate::gateway::access::AccessTable;

/// One hook at work.
pub(super) struct Hook {
    settings: Settings,
    secret: Option<Vec<u8>>,
    pub(super) backend: Arc<Backend>,
    pub(super) notices: Arc<Notices>,
    /// The batches of events, if they are batched.
    pub(super) batches: Option<Arc<Batches>>,
}

impl Hook {
    pub(super) fn is_for(&self, namespace: &str, occasion: Occasion) -> bool {
        let Settings { on, namespaces, .. } = &self.settings;
        on.contains(&occasion) && namespaces.iter().any(|name| name == namespace)
    }

    fn new(
        name: &str,
        settings: &Settings,
        metrics: &Metrics,
        store: Option<&Arc<Store>>,
        earlier: &[Arc<Self>],
    ) -> Result<Arc<Self>, String> {
        // Read at each reload, because it may have changed in its file.
        let secret = settings.secret()?;
        let is_same = |hook: &&Arc<Self>| {
            *hook.backend.name == *name && hook.settings == *settings && hook.secret == secret
        };
        if let Some(same) = earlier.iter().find(is_same) {
            return Ok(Arc::clone(same));
        }
        let backend = Arc::new(Backend::new(name, settings, secret.as_deref(), metrics)?);
        Ok(Arc::new(Self {
            notices: Arc::new(Notices::new(Arc::clone(&backend), metrics, store.cloned())),
            batches: settings
                .batch
                .map(|batch| Batches::new(&backend, settings, batch, metrics)),
            backend,
            settings: settings.clone(),
            secret,
        }))
    }

    /// Sends the collected events.
    pub(super) fn hurry(&self, hooks: &Hooks) {
        if let Some(batches) = &self.batches {
            batches.hurry(hooks);
        }
    }

    pub(super) fn is_on(&self, occasion: Occasion) -> bool {
        self.settings.on.contains(&occasion)
    }

    /// The namespaces in which it is called for this.
    pub(super) fn namespaces(&self, occasion: Occasion) -> impl Iterator<Item = &String> {
        let namespaces = self.settings.namespaces.iter();
        namespaces.filter(move |_| self.is_on(occasion))
    }

    /// Whether it is notified of the room.
    pub(super) fn hears_room(&self, room: &str) -> bool {
        let mut rooms = self.settings.rooms.iter();
        rooms.any(|pattern| pattern.fit(room).is_some())
    }

    /// Returns how well it fits the event, or `None`: the longer the pattern, the better.
    pub(super) fn fit(&self, event: &str) -> Option<usize> {
        let events = self.settings.events.iter();
        events.filter_map(|pattern| pattern.fit(event)).max()
    }
}

/// The hooks of the file.
pub(super) struct Table(pub(super) Vec<Arc<Hook>>);

impl Table {
    /// Builds the hooks of the file, except for those of `earlier` that have not changed: their
    /// connections, queues and circuit breakers stay.
    pub(super) fn new(
        settings: &BTreeMap<String, Settings>,
        metrics: &Metrics,
        store: Option<&Arc<Store>>,
        earlier: &[Arc<Hook>],
    ) -> Result<Self, String> {
        let hooks = settings.iter().map(|(name, settings)| {
            Hook::new(name, settings, metrics, store, earlier)
                .map_err(|problem| format!("hooks.{name}: {problem}"))
        });
        let hooks: Vec<_> = hooks.collect::<Result<_, _>>()?;
        check_unique(&hooks)?;
        Ok(Self(hooks))
    }

    pub(super) fn all(&self, namespace: &str, occasion: Occasion) -> impl Iterator<Item = &Hook> {
        let hooks = self.0.iter().map(|hook| &**hook);
        hooks.filter(move |hook| hook.is_for(namespace, occasion))
    }

    /// The only one, see [`check_unique`], for occasions that need a single answer.
    pub(super) fn one(&self, namespace: &str, occasion: Occasion) -> Option<&Hook> {
        self.all(namespace, occasion).next()
    }
}

/// Each namespace whose access is a hook has one that decides.
/// Otherwise, every client would be refused, which would be noticed only at the first connect.
pub(super) fn check_access(table: &Table, access: &AccessTable) -> Result<(), String> {
    for namespace in access.keys().filter(|name| access[*name].asks_hook()) {
        if table.one(namespace, Occasion::Connect).is_none() {
            return Err(format!(
                "a hook decides who may connect to {namespace}, but no section [hooks.NAME] has {namespace} \
                 in `namespaces` and \"connect\" in `on`"
            ));
        }
    }
    Ok(())
}

/// Two hooks of one namespace must not claim the same.
/// One connect can have one decision, and one event one acknowledgement. Disconnects
/// and rooms may go to several hooks.
fn check_unique(hooks: &[Arc<Hook>]) -> Result<(), String> {
    for (index, one) in hooks.iter().enumerate() {
        for other in &hooks[..index] {
            let is_shared = |namespace: &&String| other.settings.namespaces.contains(*namespace);
            let Some(namespace) = one.settings.namespaces.iter().find(is_shared) else {
                continue;
            };
            let both = |occasion| {
                one.settings.on.contains(&occasion) && other.settings.on.contains(&occasion)
            };
            let (a, b) = (&other.backend.name, &one.backend.name);
            if both(Occasion::Connect) {
                return Err(format!(
                    "hooks.{a} and hooks.{b} both decide about connects to {namespace}"
                ));
            }
            let is_same = one
                .settings
                .events
                .iter()
                .any(|pattern| other.settings.events.contains(pattern));
            if both(Occasion::Event) && is_same {
                return Err(format!(
                    "hooks.{a} and hooks.{b} name the same `events` of {namespace}"
                ));
            }
        }
    }
    Ok(())
}
