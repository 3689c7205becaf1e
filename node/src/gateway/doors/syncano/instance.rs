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
use crate::gateway::clock;

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
    store: Arc<Store>,
    /// The table of the other channels.
    table: String,
}

impl Instance {
    pub(super) fn new(
        name: &str,
        namespace: String,
        settings: &InstanceSettings,
        store: &Arc<Store>,
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
            store: Arc::clone(store),
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
    pub(super) async fn channel(&self, name: &str) -> Result<Channel, Failure> {
        match self.fixed.get(name) {
            Some(channel) => Ok(channel.clone()),
            None => self.store.read(&self.table, name).await,
        }
    }

    /// The channels that a caller may subscribe to, by name.
    pub(super) async fn channels(&self, caller: &Caller) -> Result<Vec<Channel>, Failure> {
        let stored = self.store.all(&self.table).await?;
        let stored = stored.iter().flat_map(|text| serde_json::from_str(text));
        let stored = stored.map(|channel: Channel| (channel.name.clone(), channel));
        // Those of the settings win.
        let mut all: BTreeMap<_, _> = stored.collect();
        all.extend(self.fixed.clone());
        let mut all: Vec<_> = all.into_values().collect();
        all.retain(|channel| channel.permission(caller) >= Permission::Subscribe);
        Ok(all)
    }

    pub(super) async fn create(&self, fields: &Map<String, Value>) -> Result<Channel, Failure> {
        let channel = Channel::create(fields, clock::unix_millis())?;
        let exists = || Failure::field("name", "This field must be unique.");
        if self.fixed.contains_key(&channel.name) {
            return Err(exists());
        }
        let text = json!(channel).to_string();
        let store = &self.store;
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
        name: &str,
        fields: &Map<String, Value>,
    ) -> Result<Channel, Failure> {
        self.is_stored(name)?;
        let change = |channel: &mut Channel| channel.update(fields, clock::unix_millis());
        let changing = self.store.change(&self.table, name, "channel", change);
        let (channel, ()) = changing.await?;
        Ok(channel)
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Failure> {
        self.is_stored(name)?;
        match self.store.remove(&self.table, name).await? {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(now: u64, toml: &str) -> Instance {
        let settings = toml::from_str(toml).unwrap();
        let store = Arc::new(Store::new(None));
        Instance::new("shop", "/syncano/shop".to_owned(), &settings, &store, now).unwrap()
    }

    const NEWS: &str = "channels.news = { other_permissions = 'subscribe' }";

    fn fields(json: &Value) -> &Map<String, Value> {
        json.as_object().unwrap()
    }

    #[test]
    fn a_reload_changes_the_time_of_what_it_changes() {
        let old = instance(1, "channels = { news = {}, chat = {} }");
        let changed = "channels = { news = {}, chat = { description = 'd' }, more = {} }";
        let mut new = instance(2, changed);
        new.keep_times(&old);
        let times = |name: &str| (new.fixed[name].created_at, new.fixed[name].updated_at);
        assert_eq!(
            [times("news"), times("chat"), times("more")],
            [(1, 1), (1, 2), (2, 2)]
        );
    }

    #[tokio::test]
    async fn a_channel_of_the_settings_wins_and_stays() {
        let instance = instance(0, NEWS);
        for name in ["news", "default", "eventlog"] {
            let body = json!({ "name": name });
            let made = instance.create(fields(&body)).await.unwrap_err();
            assert_eq!(made.status, 400);
            let changed = instance.update(name, fields(&body)).await.unwrap_err();
            let deleted = instance.delete(name).await.unwrap_err();
            assert_eq!([changed.status, deleted.status], [StatusCode::FORBIDDEN; 2]);
        }
    }

    #[tokio::test]
    async fn others_see_the_channels_that_they_may_subscribe_to() {
        let instance = instance(0, NEWS);
        let secret = json!({ "name": "secret" });
        instance.create(fields(&secret)).await.unwrap();
        let names = async |caller: &Caller| {
            let channels = instance.channels(caller).await.unwrap();
            let names = channels.into_iter().map(|channel| channel.name);
            names.collect::<Vec<_>>()
        };
        let admin = Caller::Account { id: 1 };
        assert_eq!(
            names(&admin).await,
            ["default", "eventlog", "news", "secret"]
        );
        let anonymous = Caller::api(false, true, None);
        assert_eq!(names(&anonymous).await, ["default", "eventlog", "news"]);
        let plain = Caller::api(false, false, None);
        assert_eq!(names(&plain).await, [""; 0]);
    }
}
