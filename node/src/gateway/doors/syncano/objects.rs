//! Objects of classes: created, changed and deleted, and published to the channel that
//! they were created with.
//!
//! They are kept by the gateway as they were sent: fields that the class has, without
//! further checks. This is not a database, so they are found by their id only. Or the
//! application keeps them, see [`application`](super::application).
//!
//! ```text
//!  create ─► class's rights ─► channel, room, rights there ─► id ─► stored ─► published ─► 201
//!                                                                     └── failed: removed again
//!  change ─► object's rights ─► fields ─► compare and swap ─► published: only what is different
//!  delete ─► object's rights ─► removed ─► published, by the one that removed it
//! ```
//!
//! Objects exist here because the SDKs publish by them: a device creates an object, and
//! the pages that poll its channel get it. So they are limited in number, and each
//! names the channel and room of its changes itself.

use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode};
use roomcast::syncano::{integer, text};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Call, Service,
    body::{self, choice},
    channel::{Channel, Kind},
    failure::{Failure, json_response},
    instance::Instance,
    keys::{Caller, User},
    notification::{self, Task},
    settings::{ClassPermission, ClassSettings},
    store::Inserted,
    time,
};
use crate::gateway::clock;

/// The default limit for stored objects of a class.
const MAX_OBJECTS: usize = 10_000;

/// The most characters of the room of an object.
const MAX_ROOM: usize = 64;

/// The rights on an object. Each includes the ones before.
/// The order is part of the meaning: a right is present if the permission is at least
/// as large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Permission {
    #[default]
    None,
    Read,
    Write,
    Full,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    id: u64,
    /// Milliseconds since 1970.
    created_at: u64,
    updated_at: u64,
    revision: u64,
    owner: Option<u64>,
    owner_permissions: Permission,
    group: Option<u64>,
    group_permissions: Permission,
    other_permissions: Permission,
    channel: Option<String>,
    channel_room: Option<String>,
    fields: Map<String, Value>,
}

impl Object {
    /// An object whose id alone is known.
    pub(super) fn unknown(id: u64) -> Self {
        let now = clock::unix_millis();
        Self {
            id,
            created_at: now,
            updated_at: now,
            revision: 1,
            ..Self::default()
        }
    }

    /// The part of a new object that the application receives: all but the fields that it
    /// sets itself.
    pub(super) fn sent(&self) -> Map<String, Value> {
        let mut sent = self.to_json(false);
        for name in ["id", "created_at", "updated_at", "revision"] {
            sent.shift_remove(name);
        }
        sent
    }

    /// Its channel and room.
    pub(super) fn place(&self) -> (Option<&str>, Option<&str>) {
        (self.channel.as_deref(), self.channel_room.as_deref())
    }

    /// The object without links. With `is_payload`, it is the payload of its notification.
    pub(super) fn to_json(&self, is_payload: bool) -> Map<String, Value> {
        let mut all = body::object([
            ("id", self.id.into()),
            ("created_at", time::format(self.created_at).into()),
            ("updated_at", time::format(self.updated_at).into()),
            ("revision", self.revision.into()),
            ("owner", self.owner.into()),
            ("owner_permissions", json!(self.owner_permissions)),
            ("group", self.group.into()),
            ("group_permissions", json!(self.group_permissions)),
            ("other_permissions", json!(self.other_permissions)),
            ("channel", self.channel.clone().into()),
            ("channel_room", self.channel_room.clone().into()),
        ]);
        all.extend(self.fields.clone());
        match is_payload {
            true => payload(all),
            false => all,
        }
    }

    /// The most that a caller may do with the object.
    /// Of several that apply, the largest counts. A caller without a user has none.
    fn permission(&self, caller: &Caller) -> Permission {
        if caller.has_all_rights() {
            return Permission::Full;
        }
        let Some(user) = caller.user() else {
            return Permission::None;
        };
        let is_owner = self.owner == Some(user.id);
        let is_in_group = user.is_in(self.group);
        let of = |applies: bool, permission: Permission| match applies {
            true => permission,
            false => Permission::None,
        };
        self.other_permissions
            .max(of(is_owner, self.owner_permissions))
            .max(of(is_in_group, self.group_permissions))
    }

    fn check(&self, caller: &Caller, least: Permission) -> Result<(), Failure> {
        match self.permission(caller) >= least {
            true => Ok(()),
            false => Err(Failure::forbidden()),
        }
    }
}

/// The channel that an object is created with, and its room there.
/// A default channel has a single stream, so a room is ignored instead of refused.
fn of_channel(channel: &Channel, room: Option<String>) -> Result<Option<String>, Failure> {
    let room = room.filter(|room| !room.is_empty());
    match (channel.r#type, room) {
        (Kind::Default, _) => Ok(None),
        (Kind::SeparateRooms, None) => {
            let text = "Channel room field is required for channels with separate rooms.";
            Err(Failure::field("non_field_errors", text))
        }
        (Kind::SeparateRooms, Some(room)) if room.chars().count() > MAX_ROOM => {
            let text = format!("Ensure this field has no more than {MAX_ROOM} characters.");
            Err(Failure::field("channel_room", text))
        }
        (Kind::SeparateRooms, room) => Ok(room),
    }
}

/// The fields of a request that the class has.
pub(super) fn own_fields(class: &ClassSettings, fields: &Map<String, Value>) -> Map<String, Value> {
    let known = |name: &str| class.schema.iter().any(|field| field.name == name);
    let own = fields.iter().filter(|(name, _)| known(name));
    own.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Whether a caller may create objects of a class. The larger one of the group's and of
/// the others' permission counts.
fn may_create(class: &ClassSettings, caller: &Caller) -> bool {
    let may_user = |user: &User| {
        let of_group = user.is_in(class.group).then_some(class.group_permissions);
        of_group.max(Some(class.other_permissions)) == Some(ClassPermission::CreateObjects)
    };
    caller.has_all_rights() || caller.user().is_some_and(may_user)
}

/// Reads a permission of an object.
fn permission(
    fields: &Map<String, Value>,
    name: &str,
    default: Permission,
) -> Result<Permission, Failure> {
    let permission = choice(fields, name).map_err(|text| Failure::field(name, text))?;
    Ok(permission.unwrap_or(default))
}

/// Reads the id of an owner or a group.
fn id(fields: &Map<String, Value>, name: &str) -> Result<Option<u64>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match integer(value).and_then(|id| u64::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(Failure::no_integer(name)),
        },
    }
}

impl Service {
    /// Creates an object.
    pub(super) async fn objects(
        &self,
        method: &Method,
        call: Call<'_>,
        class_name: &str,
    ) -> Result<Response, Failure> {
        Failure::unless(method, "POST")?;
        let class = call.instance.class(class_name)?;
        let caller = &call.caller;
        if !may_create(class, caller) {
            return Err(Failure::forbidden());
        }
        let mut object = self
            .draft(call.instance, class, caller, &call.fields?)
            .await?;
        let instance = call.instance;
        if let Some(application) = &instance.application {
            let made = self.ask_to_create(application, (instance, class_name), caller, &object);
            return Ok(linked(
                StatusCode::CREATED,
                made.await?,
                call.base,
                class_name,
            ));
        }
        let most = class.max_objects.unwrap_or(MAX_OBJECTS);
        self.store_new((instance, class_name), caller, &mut object, most)
            .await?;
        Ok(shown(StatusCode::CREATED, &object, call.base, class_name))
    }

    /// Reads a new object, and checks its channel and room. It has no id yet.
    async fn draft(
        &self,
        instance: &Instance,
        class: &ClassSettings,
        caller: &Caller,
        fields: &Map<String, Value>,
    ) -> Result<Object, Failure> {
        let channel = match text(fields, "channel")?.filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => {
                let found = instance.channel(&name.to_lowercase()).await;
                Some(found.map_err(|failure| match failure.status {
                    StatusCode::NOT_FOUND => {
                        let text = format!("Object with name={name} does not exist.");
                        Failure::field("channel", text)
                    }
                    _ => failure,
                })?)
            }
        };
        let mut room = None;
        if let Some(channel) = &channel {
            // The rights on the channel are checked once, here. Later changes are
            // published with the rights on the object.
            room = of_channel(channel, text(fields, "channel_room")?)?;
            channel.check_object(caller)?;
        }
        Ok(Object {
            owner: match caller.user() {
                // A user owns the objects that it creates. Only keys without a user can name
                // another owner.
                Some(user) => Some(user.id),
                None => id(fields, "owner")?,
            },
            owner_permissions: permission(fields, "owner_permissions", Permission::Full)?,
            group: id(fields, "group")?,
            group_permissions: permission(fields, "group_permissions", Permission::None)?,
            other_permissions: permission(fields, "other_permissions", Permission::None)?,
            channel: channel.as_ref().map(|channel| channel.name.clone()),
            channel_room: room,
            fields: own_fields(class, fields),
            ..Object::unknown(0)
        })
    }

    /// Stores an object and publishes it, or neither.
    async fn store_new(
        &self,
        (instance, class): (&Instance, &str),
        caller: &Caller,
        object: &mut Object,
        most: usize,
    ) -> Result<(), Failure> {
        let store = &self.syncano.fixed.store;
        // Ids come from one counter of the instance, so an id is unique across all classes. An id
        // that stays unused after a failure is a gap, which does no harm.
        object.id = store.next(&store.table(&instance.name, "objects")).await?;
        let (table, field) = (self.table(instance, class), object.id.to_string());
        let text = json!(object).to_string();
        if store.insert(&table, &field, &text, most).await? != Inserted::Yes {
            let text = format!("The class has {most} objects, which is its limit.");
            return Err(Failure::detail(StatusCode::FORBIDDEN, text));
        }
        let change = (Task::Create, class, object.to_json(true));
        if let Err(failure) = self
            .publish_change(instance, caller, object.place(), change)
            .await
        {
            // No client has received it, and the caller will repeat the request.
            store.remove(&table, &field).await?;
            return Err(failure);
        }
        Ok(())
    }

    /// Shows, changes or deletes an object.
    pub(super) async fn object(
        &self,
        method: &Method,
        call: Call<'_>,
        (class_name, id): (&str, u64),
    ) -> Result<Response, Failure> {
        if let Some(application) = &call.instance.application {
            return self
                .ask_about(method, call, (class_name, id), application)
                .await;
        }
        let class = call.instance.class(class_name)?;
        let store = &self.syncano.fixed.store;
        let (table, field) = (self.table(call.instance, class_name), id.to_string());
        let caller = &call.caller;
        let mut object: Object = store.read(&table, &field).await?;
        match *method {
            Method::GET => object.check(caller, Permission::Read)?,
            Method::DELETE => {
                object.check(caller, Permission::Full)?;
                let payload = body::object([("id", id.into())]);
                let change = (Task::Delete, class_name, payload);
                // Of two deletions at the same time, one publishes.
                if store.remove(&table, &field).await? {
                    self.publish_change(call.instance, caller, object.place(), change)
                        .await?;
                }
                return Ok(StatusCode::NO_CONTENT.into_response());
            }
            // The Python SDK changes an object by POST.
            Method::PATCH | Method::PUT | Method::POST => {
                // The rights are checked before the fields, as in the original.
                object.check(caller, Permission::Write)?;
                let changes = own_fields(class, &call.fields?);
                let place = (class_name, id);
                object = self.change(call.instance, place, &changes, caller).await?;
            }
            _ => return Err(Failure::method(method, METHODS)),
        }
        Ok(shown(StatusCode::OK, &object, call.base, class_name))
    }

    /// Changes fields of an object, and publishes those whose values are other ones.
    async fn change(
        &self,
        instance: &Instance,
        (class, id): (&str, u64),
        changes: &Map<String, Value>,
        caller: &Caller,
    ) -> Result<Object, Failure> {
        let (table, field) = (self.table(instance, class), id.to_string());
        let change = |object: &mut Object| {
            // Checked in each attempt, because another change may have taken the right away.
            object.check(caller, Permission::Write)?;
            let mut payload = changes.clone();
            payload.retain(|name, value| object.fields.get(name) != Some(value));
            payload.insert("id".to_owned(), id.into());
            object.fields.extend(changes.clone());
            object.revision += 1;
            object.updated_at = clock::unix_millis();
            Ok(payload)
        };
        let store = &self.syncano.fixed.store;
        let (object, payload) = store.change(&table, &field, "object", change).await?;
        let change = (Task::Update, class, payload);
        self.publish_change(instance, caller, object.place(), change)
            .await?;
        Ok(object)
    }

    fn table(&self, instance: &Instance, class: &str) -> String {
        let store = &self.syncano.fixed.store;
        store.table(&instance.name, &format!("objects:{class}"))
    }

    /// Publishes the change of an object to its channel, if it has one.
    pub(super) async fn publish_change(
        &self,
        instance: &Instance,
        caller: &Caller,
        (channel, room): (Option<&str>, Option<&str>),
        (task, class, payload): (Task, &str, Map<String, Value>),
    ) -> Result<(), Failure> {
        let Some(name) = channel else {
            return Ok(());
        };
        let channel = match instance.channel(name).await {
            Ok(channel) => channel,
            // It was deleted after the object was created.
            Err(failure) if failure.status == StatusCode::NOT_FOUND => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let room = channel.room(room)?;
        let argument = notification::argument(Some((task, class)), caller.author(), payload);
        self.streams(instance)
            .publish(&channel, &room, argument)
            .await?;
        Ok(())
    }
}

/// The methods that the path of an object has.
pub(super) const METHODS: &str = "GET, POST, PUT, PATCH, DELETE";

/// The payload of the notification of an object.
/// Receivers know the channel and the room, since they poll them.
pub(super) fn payload(mut object: Map<String, Value>) -> Map<String, Value> {
    for name in ["links", "channel", "channel_room"] {
        object.shift_remove(name);
    }
    object
}

fn shown(status: StatusCode, object: &Object, base: &str, class: &str) -> Response {
    linked(status, object.to_json(false), base, class)
}

/// The response with an object and a link to it.
pub(super) fn linked(
    status: StatusCode,
    mut body: Map<String, Value>,
    base: &str,
    class: &str,
) -> Response {
    let id = body.get("id").and_then(Value::as_u64).unwrap_or_default();
    let own = format!("{base}/classes/{class}/objects/{id}/");
    body.insert("links".to_owned(), json!({ "self": own }));
    json_response(status, &Value::Object(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: u64, groups: &[u64]) -> Caller {
        Caller::api(false, false, Some((id, groups)))
    }

    fn object() -> Object {
        Object {
            id: 5,
            created_at: 0,
            updated_at: 0,
            revision: 1,
            owner: Some(7),
            owner_permissions: Permission::Full,
            group: Some(3),
            group_permissions: Permission::Write,
            other_permissions: Permission::Read,
            channel: Some("chat".to_owned()),
            channel_room: Some("tea".to_owned()),
            fields: Map::from_iter([("title".to_owned(), json!("Emma"))]),
        }
    }

    #[test]
    fn an_object_has_the_fields_of_the_original_and_a_channel_hears_no_more_than_it_may() {
        let shown = object().to_json(false);
        let names: Vec<_> = shown.keys().map(String::as_str).collect();
        assert_eq!(
            names.join(" "),
            "id created_at updated_at revision owner owner_permissions group group_permissions \
             other_permissions channel channel_room title"
        );
        let heard = object().to_json(true);
        assert!(!heard.contains_key("channel") && !heard.contains_key("channel_room"));
        assert_eq!(heard["title"], "Emma");
    }

    #[test]
    fn the_owner_the_group_and_others_have_permissions_of_their_own() {
        let object = object();
        let rows = [
            (user(7, &[]), Permission::Full),
            (user(8, &[3]), Permission::Write),
            (user(8, &[4]), Permission::Read),
            (Caller::Account { id: 1 }, Permission::Full),
        ];
        for (caller, wanted) in rows {
            assert_eq!(object.permission(&caller), wanted, "{caller:?}");
        }
        let refused = object.check(&user(8, &[3]), Permission::Full);
        assert_eq!(refused, Err(Failure::forbidden()));
    }

    #[test]
    fn a_class_says_who_may_create() {
        let class = |toml: &str| toml::from_str::<ClassSettings>(toml).unwrap();
        let open = class("");
        assert!(may_create(&open, &user(8, &[])));
        assert!(!may_create(&open, &Caller::api(false, true, None)));
        let of_group = class("other_permissions = 'read'\ngroup = 3");
        assert!(!may_create(&of_group, &user(8, &[])));
        assert!(may_create(&of_group, &user(8, &[3])));
        assert!(may_create(&of_group, &Caller::Account { id: 1 }));
    }
}
