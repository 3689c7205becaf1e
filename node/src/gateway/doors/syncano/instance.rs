//! An instance: its keys, and its channels from the settings and from the API.
//!
//! Channels of the settings win over those of the API with the same name, so the
//! permissions of a channel are those that the operator has written.

use std::{collections::BTreeMap, sync::Arc};

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    application::Application,
    channel::{Channel, MAX_CHANNELS, Permission},
    failure::Failure,
    keys::{Caller, Keys},
    settings::{ClassSettings, InstanceSettings},
    store::{Inserted, Store},
};

/// An instance. Channels that its settings do not name are in the store.
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) namespace: Arc<str>,
    pub(super) keys: Keys,
    /// The channels of the settings, and the two that every instance has.
    fixed: BTreeMap<String, Channel>,
    pub(super) classes: BTreeMap<String, ClassSettings>,
    /// The application that keeps the objects. Without one, they are in the store.
    pub(super) application: Option<Application>,
    /// The table of the other channels.
    table: String,
}

impl Instance {
    pub(super) fn new(
        name: &str,
        namespace: String,
        settings: &InstanceSettings,
        store: &Store,
        now: u64,
    ) -> Result<Self, String> {
        let built_in = Channel::built_in(now).into_iter();
        let configured = settings.channels.iter();
        let configured =
            configured.map(|(name, settings)| Channel::configured(name, settings, now));
        let fixed = built_in.chain(configured);
        let keys = Keys::new(settings);
        Ok(Self {
            name: name.to_owned(),
            namespace: namespace.into(),
            keys: keys?,
            fixed: fixed
                .map(|channel| (channel.name.clone(), channel))
                .collect(),
            classes: settings.classes.clone(),
            application: None,
            table: store.table(name, "channels"),
        })
    }

    /// Gives the channels the times that they had before a reload, unless they have changed.
    /// Clients see these times, and a reload of other channels must not change them.
    pub(super) fn keep_times(&mut self, before: &Self) {
        for (name, channel) in &mut self.fixed {
            if let Some(old) = before.fixed.get(name) {
                channel.created_at = old.created_at;
                let changed_at = std::mem::replace(&mut channel.updated_at, old.updated_at);
                if channel != old {
                    channel.updated_at = changed_at;
                }
            }
        }
    }

    /// Finds a class.
    pub(super) fn class(&self, name: &str) -> Result<&ClassSettings, Failure> {
        self.classes.get(name).ok_or_else(Failure::not_found)
    }

    /// Finds a channel.
    pub(super) async fn channel(&self, store: &Store, name: &str) -> Result<Channel, Failure> {
        if let Some(channel) = self.fixed.get(name) {
            return Ok(channel.clone());
        }
        let stored = store.get(&self.table, name).await?;
        let channel = stored.and_then(|text| serde_json::from_str(&text).ok());
        channel.ok_or_else(Failure::not_found)
    }

    /// The channels that a caller may subscribe to, by name.
    pub(super) async fn channels(
        &self,
        store: &Store,
        caller: &Caller,
    ) -> Result<Vec<Channel>, Failure> {
        let stored = store.all(&self.table).await?;
        let stored = stored
            .iter()
            .filter_map(|text| serde_json::from_str(text).ok());
        let stored = stored.map(|channel: Channel| (channel.name.clone(), channel));
        // Those of the settings win.
        let mut all: BTreeMap<_, _> = stored.collect();
        all.extend(self.fixed.clone());
        let mut all: Vec<_> = all.into_values().collect();
        all.retain(|channel| channel.permission(caller) >= Permission::Subscribe);
        Ok(all)
    }

    pub(super) async fn create(
        &self,
        store: &Store,
        fields: &Map<String, Value>,
        now: u64,
    ) -> Result<Channel, Failure> {
        let channel = Channel::create(fields, now)?;
        let exists = || Failure::field("name", "This field must be unique.");
        if self.fixed.contains_key(&channel.name) {
            return Err(exists());
        }
        let text = json!(channel).to_string();
        let inserting = store.insert(&self.table, &channel.name, &text, MAX_CHANNELS);
        match inserting.await? {
            Inserted::Yes => Ok(channel),
            Inserted::Exists => Err(exists()),
            Inserted::Full => {
                let text = format!("An instance has at most {MAX_CHANNELS} channels.");
                Err(Failure::detail(StatusCode::FORBIDDEN, text))
            }
        }
    }

    pub(super) async fn update(
        &self,
        store: &Store,
        name: &str,
        fields: &Map<String, Value>,
        now: u64,
    ) -> Result<Channel, Failure> {
        self.is_stored(name)?;
        // Another change in between is a reason to apply this one again.
        for _ in 0..MAX_ATTEMPTS {
            let old = store.get(&self.table, name).await?;
            let old = old.ok_or_else(Failure::not_found)?;
            let mut channel: Channel =
                serde_json::from_str(&old).map_err(|_| Failure::not_found())?;
            channel.update(fields, now)?;
            let new = json!(channel).to_string();
            if store.replace(&self.table, name, &old, &new).await? {
                return Ok(channel);
            }
        }
        Err(Failure::unavailable(
            "The channel is being changed by others.",
        ))
    }

    pub(super) async fn delete(&self, store: &Store, name: &str) -> Result<(), Failure> {
        self.is_stored(name)?;
        match store.remove(&self.table, name).await? {
            true => Ok(()),
            false => Err(Failure::not_found()),
        }
    }

    /// A channel that the settings name, or that every instance has, cannot be changed
    /// over the API.
    fn is_stored(&self, name: &str) -> Result<(), Failure> {
        if !self.fixed.contains_key(name) {
            return Ok(());
        }
        let text = "This channel is part of the configuration and cannot be changed here.";
        Err(Failure::detail(StatusCode::FORBIDDEN, text))
    }
}

/// How often a change is applied to a value that others change, too.
/// Each attempt that fails means that another one succeeded, so this many are exceeded
/// only by a flood.
pub(super) const MAX_ATTEMPTS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(store: &Store) -> Instance {
        let toml = "channels.news = { other_permissions = 'subscribe' }";
        Instance::new(
            "shop",
            "/syncano/shop".to_owned(),
            &toml::from_str(toml).unwrap(),
            store,
            0,
        )
        .unwrap()
    }

    fn fields(json: &Value) -> &Map<String, Value> {
        json.as_object().unwrap()
    }

    #[test]
    fn a_reload_changes_the_time_of_what_it_changes() {
        let store = Store::new(None);
        let at = |now, toml: &str| {
            let settings = toml::from_str(toml).unwrap();
            Instance::new("shop", "/syncano/shop".to_owned(), &settings, &store, now).unwrap()
        };
        let old = at(1, "channels = { news = {}, chat = {} }");
        let mut new = at(
            2,
            "channels = { news = {}, chat = { description = 'd' }, more = {} }",
        );
        new.keep_times(&old);
        let times = |name: &str| (new.fixed[name].created_at, new.fixed[name].updated_at);
        assert_eq!(
            [times("news"), times("chat"), times("more")],
            [(1, 1), (1, 2), (2, 2)]
        );
    }

    #[tokio::test]
    async fn a_channel_of_the_settings_wins_and_stays() {
        let store = Store::new(None);
        let instance = instance(&store);
        for name in ["news", "default", "eventlog"] {
            let body = json!({ "name": name });
            let made = instance.create(&store, fields(&body), 1).await.unwrap_err();
            assert_eq!(made.status, 400);
            let changed = instance
                .update(&store, name, fields(&body), 1)
                .await
                .unwrap_err();
            let deleted = instance.delete(&store, name).await.unwrap_err();
            assert_eq!(
                (changed.status, deleted.status),
                (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN)
            );
        }
    }

    #[tokio::test]
    async fn others_see_the_channels_that_they_may_subscribe_to() {
        let store = Store::new(None);
        let instance = instance(&store);
        instance
            .create(&store, fields(&json!({ "name": "secret" })), 1)
            .await
            .unwrap();
        let names = async |caller: &Caller| {
            let channels = instance.channels(&store, caller).await.unwrap();
            let names = channels.into_iter().map(|channel| channel.name);
            names.collect::<Vec<_>>()
        };
        let admin = Caller::Account { id: 1 };
        assert_eq!(
            names(&admin).await,
            ["default", "eventlog", "news", "secret"]
        );
        let anonymous = Caller::Api {
            id: 2,
            ignore_acl: false,
            allow_anonymous_read: true,
            user: None,
        };
        assert_eq!(names(&anonymous).await, ["default", "eventlog", "news"]);
        let plain = Caller::Api {
            id: 2,
            ignore_acl: false,
            allow_anonymous_read: false,
            user: None,
        };
        assert!(names(&plain).await.is_empty());
    }
}
