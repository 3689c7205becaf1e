//! Channels: their fields, the rights on them, and the rooms of the namespace that their rooms are.
//!
//! Rooms are only names: nobody creates them, and a room of a channel is the room
//! `channel#room` of the namespace. `#` cannot be part of a channel's name, so two
//! channels never share a room. Names are converted to lower case once, at the beginning, so all
//! later code compares bytes.
//!
//! The texts of problems are the original's, because programs compare them.

use http::StatusCode;
use roomcast::syncano::integer;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{body, failure::Failure, keys::Caller, settings::ChannelSettings, time};

/// A channel's type, which is fixed when it is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// One stream.
    #[default]
    Default,
    /// One stream for each room.
    SeparateRooms,
}

/// The rights on a channel. Each includes the ones before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Permission {
    #[default]
    None,
    Subscribe,
    Publish,
}

/// The most characters of a name.
const MAX_NAME: usize = 64;

/// The most characters of a room.
pub(super) const MAX_ROOM: usize = 128;

/// The form of a name, for messages.
pub(super) const NAME_RULE: &str = "a name of at most 64 characters a-z, 0-9, _ and -, which begins with a letter and ends with a \
     letter or digit";

/// The most channels that an instance can get over the API.
/// They are read together when the channels are listed.
pub(super) const MAX_CHANNELS: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) r#type: Kind,
    pub(super) group: Option<u64>,
    pub(super) group_permissions: Permission,
    pub(super) other_permissions: Permission,
    /// Milliseconds since 1970.
    pub(super) created_at: u64,
    pub(super) updated_at: u64,
    pub(super) custom_publish: bool,
}

/// Whether a text can name a channel, a class or an instance.
pub(super) fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_first = bytes.first().is_some_and(u8::is_ascii_lowercase);
    let is_last = bytes
        .last()
        .is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let is_inner = |byte: &u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
    };
    is_first && is_last && bytes.len() <= MAX_NAME && bytes.iter().all(is_inner)
}

/// Converts a room's name as everywhere: once, at the entrance.
pub(super) fn fold(room: &str) -> String {
    room.to_lowercase()
}

impl Channel {
    /// A channel with the fields of the settings, which is also the base of one that is
    /// created.
    pub(super) fn configured(name: &str, settings: &ChannelSettings, now: u64) -> Self {
        Self {
            name: name.to_owned(),
            description: settings.description.clone(),
            r#type: settings.r#type,
            group: settings.group,
            group_permissions: settings.group_permissions,
            other_permissions: settings.other_permissions,
            created_at: now,
            updated_at: now,
            custom_publish: settings.custom_publish,
        }
    }

    /// The channels that every instance has.
    pub(super) fn built_in(now: u64) -> [Self; 2] {
        let rooms = ChannelSettings {
            r#type: Kind::SeparateRooms,
            ..ChannelSettings::default()
        };
        let default = ChannelSettings {
            other_permissions: Permission::Publish,
            custom_publish: true,
            ..rooms.clone()
        };
        let log = ChannelSettings {
            other_permissions: Permission::Subscribe,
            ..rooms
        };
        [
            Self::configured("default", &default, now),
            Self::configured(EVENT_LOG, &log, now),
        ]
    }

    /// Creates a channel from the fields of a request.
    /// All problems are reported together, each under its field.
    pub(super) fn create(fields: &Map<String, Value>, now: u64) -> Result<Self, Failure> {
        let mut problems = Map::new();
        let name = match fields.get("name").unwrap_or(&Value::Null) {
            Value::String(text) => text.to_lowercase(),
            _ => String::new(),
        };
        if name.is_empty() {
            add(&mut problems, "name", "This field is required.");
        } else if name.chars().count() > MAX_NAME {
            let text = format!("Ensure this field has no more than {MAX_NAME} characters.");
            add(&mut problems, "name", &text);
        } else if !is_name(&name) {
            let text = format!("Invalid name: expected {NAME_RULE}.");
            add(&mut problems, "name", &text);
        }
        let mut channel = Self::configured(&name, &ChannelSettings::default(), now);
        if let Some(kind) = choice(fields, "type", &mut problems) {
            channel.r#type = kind;
        }
        channel.change(fields, &mut problems);
        done(problems)?;
        Ok(channel)
    }

    /// Changes all fields but name and type, which are ignored.
    pub(super) fn update(&mut self, fields: &Map<String, Value>, now: u64) -> Result<(), Failure> {
        let mut problems = Map::new();
        self.change(fields, &mut problems);
        self.updated_at = now;
        done(problems)
    }

    /// Applies the fields of a request, as far as they are valid, and collects the
    /// problems of the others. The caller drops the channel if there are any.
    fn change(&mut self, fields: &Map<String, Value>, problems: &mut Map<String, Value>) {
        if let Some(permission) = choice(fields, "group_permissions", problems) {
            self.group_permissions = permission;
        }
        if let Some(permission) = choice(fields, "other_permissions", problems) {
            self.other_permissions = permission;
        }
        match fields.get("description") {
            Some(Value::String(text)) => self.description.clone_from(text),
            None | Some(Value::Null) => {}
            Some(_) => add(problems, "description", "Not a valid string."),
        }
        match fields.get("group") {
            None => {}
            Some(Value::Null) => self.group = None,
            // Forms send an empty text for a field without a value.
            Some(Value::String(text)) if text.is_empty() => self.group = None,
            Some(value) => match integer(value).and_then(|id| u64::try_from(id).ok()) {
                Some(id) => self.group = Some(id),
                None => add(problems, "group", "A valid integer is required."),
            },
        }
        match fields.get("custom_publish") {
            None => {}
            Some(value) => match boolean(value) {
                Some(is_on) => self.custom_publish = is_on,
                None => {
                    let text = format!("{value} is not a valid boolean.");
                    add(problems, "custom_publish", &text);
                }
            },
        }
    }

    /// The channel as a response shows it, with links below `base`.
    pub(super) fn to_json(&self, base: &str) -> Value {
        let own = format!("{base}/channels/{}/", self.name);
        let mut links = Map::new();
        links.insert("self".to_owned(), own.clone().into());
        for part in ["poll", "publish", "history"] {
            links.insert(part.to_owned(), format!("{own}{part}/").into());
        }
        if let Some(group) = self.group {
            links.insert("group".to_owned(), format!("{base}/groups/{group}/").into());
        }
        json!({
            "name": self.name,
            "description": self.description,
            "type": self.r#type,
            "group": self.group,
            "group_permissions": self.group_permissions,
            "other_permissions": self.other_permissions,
            "created_at": time::format(self.created_at),
            "updated_at": time::format(self.updated_at),
            "custom_publish": self.custom_publish,
            "links": links,
        })
    }

    /// The most that a caller may do with the channel.
    /// Anonymous reading never includes publishing, even in a channel that lets
    /// everybody publish.
    pub(super) fn permission(&self, caller: &Caller) -> Permission {
        match caller {
            Caller::Account { .. } => Permission::Publish,
            Caller::Api {
                ignore_acl: true, ..
            } => Permission::Publish,
            Caller::Api {
                user: Some(user), ..
            } => {
                let of_group = user.is_in(self.group).then_some(self.group_permissions);
                self.other_permissions.max(of_group.unwrap_or_default())
            }
            Caller::Api {
                allow_anonymous_read: true,
                ..
            } => self.other_permissions.min(Permission::Subscribe),
            Caller::Api { .. } => Permission::None,
        }
    }

    /// Whether a caller may publish custom messages.
    pub(super) fn check_publish(&self, caller: &Caller) -> Result<(), Failure> {
        if self.permission(caller) < Permission::Publish {
            return Err(Failure::forbidden());
        }
        if !self.custom_publish {
            let text = "Custom publish not allowed on this channel.";
            return Err(Failure::detail(StatusCode::FORBIDDEN, text));
        }
        Ok(())
    }

    pub(super) fn check_subscribe(&self, caller: &Caller) -> Result<(), Failure> {
        if self.permission(caller) < Permission::Subscribe {
            return Err(Failure::forbidden());
        }
        Ok(())
    }

    /// Whether the objects of a caller may be published. `custom_publish` does not count.
    /// That flag is about messages without an object.
    pub(super) fn check_object(&self, caller: &Caller) -> Result<(), Failure> {
        if self.name == EVENT_LOG || self.permission(caller) < Permission::Publish {
            let text = "You do not have permission to publish data to specified channel.";
            return Err(Failure::detail(StatusCode::FORBIDDEN, text));
        }
        Ok(())
    }

    /// The number of listed notifications of a room, if it is lower than the setting.
    pub(super) fn listed(&self) -> Option<usize> {
        (self.name == EVENT_LOG).then_some(MAX_LOGGED)
    }

    /// The room of the namespace that a room of the channel is. A default channel has
    /// one; `room` is ignored there.
    pub(super) fn room(&self, room: Option<&str>) -> Result<String, Failure> {
        match (self.r#type, room.filter(|room| !room.is_empty())) {
            (Kind::Default, _) => Ok(self.name.clone()),
            (Kind::SeparateRooms, None) => Err(Failure::no_room()),
            (Kind::SeparateRooms, Some(room)) => {
                if room.chars().count() > MAX_ROOM {
                    let text = format!("Ensure this field has no more than {MAX_ROOM} characters.");
                    return Err(Failure::field("room", text));
                }
                Ok(format!("{}#{}", self.name, fold(room)))
            }
        }
    }
}

/// The channel that only the instance itself publishes to, and the notifications that are
/// listed of its rooms.
pub(super) const EVENT_LOG: &str = "eventlog";
const MAX_LOGGED: usize = 100;

fn done(problems: Map<String, Value>) -> Result<(), Failure> {
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::fields(problems)),
    }
}

fn add(problems: &mut Map<String, Value>, field: &str, text: &str) {
    problems.insert(field.to_owned(), json!([text]));
}

/// Reads one of several words. An absent field, and null, mean that nothing changes.
fn choice<T: DeserializeOwned>(
    fields: &Map<String, Value>,
    field: &str,
    problems: &mut Map<String, Value>,
) -> Option<T> {
    body::choice(fields, field).unwrap_or_else(|text| {
        add(problems, field, &text);
        None
    })
}

/// A truth value, also as the text that the original's examples send.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(is_on) => Some(*is_on),
        Value::Number(number) => match number.as_i64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Some(true),
            "false" | "f" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: Value) -> Map<String, Value> {
        let Value::Object(fields) = json else {
            panic!("{json}")
        };
        fields
    }

    fn create(json: Value) -> Result<Channel, Failure> {
        Channel::create(&fields(json), 0)
    }

    fn api(ignore_acl: bool, allow_anonymous_read: bool, groups: Option<&[u64]>) -> Caller {
        Caller::api(
            ignore_acl,
            allow_anonymous_read,
            groups.map(|groups| (7, groups)),
        )
    }

    #[test]
    fn a_channel_has_the_fields_of_the_original() {
        let channel = create(json!({ "name": "Chat", "group": 3 })).unwrap();
        assert_eq!(
            channel.to_json("/v1/instances/shop"),
            json!({
                "name": "chat", "description": "", "type": "default", "group": 3,
                "group_permissions": "none", "other_permissions": "none",
                "created_at": "1970-01-01T00:00:00.000000Z",
                "updated_at": "1970-01-01T00:00:00.000000Z",
                "custom_publish": false,
                "links": {
                    "self": "/v1/instances/shop/channels/chat/",
                    "poll": "/v1/instances/shop/channels/chat/poll/",
                    "publish": "/v1/instances/shop/channels/chat/publish/",
                    "history": "/v1/instances/shop/channels/chat/history/",
                    "group": "/v1/instances/shop/groups/3/",
                },
            })
        );
        let without = create(json!({ "name": "chat" })).unwrap().to_json("");
        assert!(without["links"].get("group").is_none());
    }

    #[test]
    fn what_is_wrong_at_creation_is_named_by_field() {
        let of = |json| create(json).unwrap_err().body;
        let name = |json| of(json)["name"][0].as_str().unwrap().to_owned();
        assert_eq!(name(json!({})), "This field is required.");
        assert!(name(json!({ "name": "a".repeat(65) })).contains("no more than 64"));
        for wrong in ["1a", "a-", "a b", "ä", "_a", "a#b"] {
            let text = name(json!({ "name": wrong }));
            assert!(text.starts_with("Invalid name"), "{wrong}");
        }
        let several = of(json!({ "name": "a", "type": "x", "other_permissions": 7 }));
        for (field, value) in [("type", "x"), ("other_permissions", "7")] {
            let text = format!("\"{value}\" is not a valid choice.");
            assert_eq!(several[field], json!([text]));
        }
    }

    #[test]
    fn examples_send_truth_values_as_text_and_unknown_fields() {
        let channel = create(json!({
            "name": "chat", "custom_publish": "true", "instanceName": "shop", "className": "x",
        }));
        assert!(channel.unwrap().custom_publish);
        let channel = create(json!({ "name": "chat", "custom_publish": "false" }));
        assert!(!channel.unwrap().custom_publish);
        let wrong = create(json!({ "name": "chat", "custom_publish": "maybe" })).unwrap_err();
        let text = "\"maybe\" is not a valid boolean.";
        assert_eq!(wrong.body, json!({ "custom_publish": [text] }));
    }

    #[test]
    fn name_and_type_stay_as_they_were_created() {
        let mut channel = create(json!({ "name": "chat" })).unwrap();
        let change = json!({
            "name": "other", "type": "separate_rooms", "description": "d", "group": "4",
            "other_permissions": "publish",
        });
        channel.update(&fields(change), 5).unwrap();
        assert_eq!((&*channel.name, channel.r#type), ("chat", Kind::Default));
        assert_eq!((&*channel.description, channel.group), ("d", Some(4)));
        assert_eq!(channel.other_permissions, Permission::Publish);
        assert_eq!((channel.created_at, channel.updated_at), (0, 5));
    }

    #[test]
    fn every_instance_has_two_channels() {
        let [default, log] = Channel::built_in(0);
        let user = api(false, false, Some(&[]));
        assert_eq!(default.r#type, Kind::SeparateRooms);
        assert_eq!(default.check_publish(&user), Ok(()));
        assert_eq!((&*log.name, log.r#type), ("eventlog", Kind::SeparateRooms));
        let admin = Caller::Account { id: 1 };
        for caller in [&user, &admin] {
            assert!(log.check_publish(caller).is_err());
            assert!(log.check_object(caller).is_err());
        }
    }

    #[test]
    fn a_user_may_do_what_its_group_or_everybody_may() {
        use Permission::{None, Publish, Subscribe};
        let mut channel = create(json!({ "name": "chat", "group": 3 })).unwrap();
        let rows = [
            // The others, the group, a user outside of it, and one in it.
            (None, None, None, None),
            (None, Publish, None, Publish),
            (Subscribe, None, Subscribe, Subscribe),
            (Publish, Subscribe, Publish, Publish),
        ];
        for (others, group, outside, inside) in rows {
            channel.other_permissions = others;
            channel.group_permissions = group;
            assert_eq!(channel.permission(&api(false, false, Some(&[9]))), outside);
            assert_eq!(channel.permission(&api(false, true, Some(&[3]))), inside);
        }
    }

    #[test]
    fn keys_may_do_what_their_flags_say() {
        use Permission::{None, Publish, Subscribe};
        let mut channel = create(json!({ "name": "chat" })).unwrap();
        for others in [None, Subscribe, Publish] {
            channel.other_permissions = others;
            assert_eq!(channel.permission(&Caller::Account { id: 1 }), Publish);
            assert_eq!(channel.permission(&api(true, false, Option::None)), Publish);
            assert_eq!(channel.permission(&api(false, false, Option::None)), None);
            // A channel that is not open to others cannot be polled by name, unlike the original.
            let anonymous = channel.permission(&api(false, true, Option::None));
            assert_eq!(anonymous, others.min(Subscribe));
        }
    }

    #[test]
    fn publishing_needs_the_right_first_and_then_a_channel_that_takes_messages() {
        let mut channel = create(json!({ "name": "chat" })).unwrap();
        let user = api(false, false, Some(&[]));
        assert_eq!(channel.check_publish(&user), Err(Failure::forbidden()));
        channel.other_permissions = Permission::Publish;
        for caller in [&user, &Caller::Account { id: 1 }] {
            let failure = channel.check_publish(caller).unwrap_err();
            assert_eq!(failure.status, 403);
            let text = "Custom publish not allowed on this channel.";
            assert_eq!(failure.body, json!({ "detail": text }));
            assert_eq!(channel.check_object(caller), Ok(()));
        }
        channel.custom_publish = true;
        assert_eq!(channel.check_publish(&user), Ok(()));
    }

    #[test]
    fn a_room_is_folded_and_required_where_rooms_are_separate() {
        let one = create(json!({ "name": "chat" })).unwrap();
        assert_eq!(one.room(Some("ignored")).unwrap(), "chat");
        assert_eq!(one.room(None).unwrap(), "chat");
        let many = create(json!({ "name": "chat", "type": "separate_rooms" })).unwrap();
        assert_eq!(many.room(Some("Übung#1")).unwrap(), "chat#übung#1");
        for empty in [None, Some("")] {
            assert_eq!(many.room(empty), Err(Failure::no_room()));
        }
        assert!(many.room(Some(&"ä".repeat(128))).is_ok());
        let long = many.room(Some(&"ä".repeat(129))).unwrap_err();
        let text = "Ensure this field has no more than 128 characters.";
        assert_eq!(long.body, json!({ "room": [text] }));
    }
}
