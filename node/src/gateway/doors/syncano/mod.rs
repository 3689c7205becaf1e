//! Syncano's real-time channels over HTTP, as its SDKs for Python, JavaScript and Android use them.
//!
//! ```text
//!  request ─► size ─► instance ─► key ─► channel ─► permission ─► fields ─► store, log
//!             413       404       403      404         403         400
//! ```
//!
//! The order of the checks is the original's, and so are the texts, because programs
//! compare them. An instance is a namespace, and a room of a channel is a room of it:
//! its members get the same messages, regardless of their door.
//!
//! A waiting poll holds only the data for its response, because devices poll all
//! day.

mod application;
mod body;
mod channel;
mod failure;
mod history;
mod instance;
mod keys;
mod live;
mod messages;
mod notification;
mod objects;
mod poll;
mod settings;
mod store;
mod stream;
mod throttle;
mod time;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse as _, Response},
    routing::any,
};
use http::{Extensions, Method, StatusCode, request::Parts};
use parking_lot::RwLock;
use roomcast::{
    Cors, RedisConfig,
    plain::Form,
    syncano::{Path, Query, Resource, VERSIONS},
};
use serde_json::{Map, Value, json};

pub(crate) use self::settings::Settings;
use self::{
    body::Fields,
    failure::{Failure, json_response},
    instance::Instance,
    keys::{Caller, Credentials},
    live::Live,
    poll::{Notifications, Written},
    store::Store,
    stream::Streams,
    throttle::Throttle,
};
use super::{Door, DoorLimit, Doors, Granted, Reply};
use crate::gateway::{
    config::Config,
    hooks::Hooks,
    reload::{Preparing, Reloadable, prepared},
};

/// The largest body that the SDKs know the refusal of.
const MAX_PUBLISH: usize = 65_536;

/// The door of all instances.
/// The settings of instances are reloaded; a namespace that is not served yet needs a
/// restart, because handlers of a namespace are given when the server is built.
pub(crate) struct Syncano {
    fixed: Fixed,
    /// Replaced as a whole by a reload.
    live: RwLock<Arc<Live>>,
}

/// The parts that a reload does not replace.
struct Fixed {
    store: Arc<Store>,
    hooks: Hooks,
    /// The namespaces of the instances, which are served.
    namespaces: BTreeMap<String, Arc<str>>,
    /// How long a notification is listed.
    age: Duration,
}

impl Syncano {
    /// Reads the keys of the instances. Returns `None` if the settings have no instance.
    pub(crate) fn new(
        settings: &Settings,
        redis: Option<&RedisConfig>,
        hooks: &Hooks,
    ) -> Result<Option<Arc<Self>>, String> {
        if settings.instances.is_empty() {
            return Ok(None);
        }
        let names = settings.instances.keys();
        let namespaces = names.map(|name| (name.clone(), settings.namespace_of(name).into()));
        let fixed = Fixed {
            store: Arc::new(Store::new(redis)),
            hooks: hooks.clone(),
            namespaces: namespaces.collect(),
            age: settings.history.age.0,
        };
        let live = Live::new(settings, &fixed, None)?;
        let live = RwLock::new(Arc::new(live));
        Ok(Some(Arc::new(Self { fixed, live })))
    }

    fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read())
    }
}

impl Reloadable for Arc<Syncano> {
    fn keys(&self) -> &'static [&'static str] {
        &[
            "doors.syncano.instances",
            "doors.syncano.accounts",
            "doors.syncano.poll_timeout",
            "doors.syncano.refused_polls",
            "doors.syncano.polls_per_second",
            "doors.syncano.requests_per_second",
        ]
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        let before = self.live();
        let live = Live::new(&config.settings.doors.syncano, &self.fixed, Some(&before));
        let door = Self::clone(self);
        prepared(live.map(|live| move || *door.live.write() = Arc::new(live)))
    }
}

/// The routes. Any page may use them, because its keys protect an instance.
pub(super) fn router(doors: &Arc<Doors>, syncano: Arc<Syncano>) -> Router {
    let service = Arc::new(Service {
        form: Arc::new(Notifications),
        written: Arc::new(Written),
        doors: Arc::clone(doors),
        syncano,
    });
    let mut routes = Router::new();
    for version in VERSIONS {
        let all = Arc::clone(&service);
        let handler = async move |request: Request| all.respond(request).await;
        routes = routes.route(&format!("{version}/instances/{{*path}}"), any(handler));
        for path in ["/account/auth", "/account/auth/"] {
            let service = Arc::clone(&service);
            let handler = async move |request: Request| service.account(request).await;
            routes = routes.route(&format!("{version}{path}"), any(handler));
        }
    }
    doors.cover(Door::Syncano, routes, Some(Cors::any()))
}

struct Service {
    doors: Arc<Doors>,
    syncano: Arc<Syncano>,
    /// How all polls see events, written once for each event.
    form: Arc<dyn Form>,
    /// That of WebSockets.
    written: Arc<dyn Form>,
}

/// A request whose caller is known.
struct Call<'a> {
    live: &'a Live,
    instance: &'a Instance,
    caller: Caller,
    /// The beginning of the links in the response.
    base: &'a str,
    fields: Fields,
}

impl Service {
    async fn respond(&self, request: Request) -> Response {
        let reply = {
            // One request sees one set of settings, however long it takes.
            let live = self.syncano.live();
            let (mut parts, body) = request.into_parts();
            let path = Path::parse(parts.uri.path());
            let reply = match &path {
                Some(path) => Box::pin(self.call(&live, &mut parts, body, path)).await,
                None => Err(Failure::not_found()),
            };
            // Only polls are repeated without end by the SDKs.
            let is_poll = path.is_some_and(|path| matches!(path.resource, Resource::Poll(_)));
            reply.map_err(|failure| match is_poll {
                true => self.throttle(&live, &parts.extensions, failure),
                false => failure,
            })
        };
        match reply {
            Ok(reply) => reply.into_response(),
            Err(failure) => failure.into_response(),
        }
    }

    /// Refuses a poll more firmly if the same address was refused a moment ago. While
    /// Redis is not available, clients are to pause: after another status than 429, the
    /// SDK for Python stops polling.
    fn throttle(&self, live: &Live, extensions: &Extensions, failure: Failure) -> Failure {
        if failure.status == StatusCode::SERVICE_UNAVAILABLE {
            return Failure::throttled();
        }
        if !failure.status.is_client_error() || failure.status == StatusCode::TOO_MANY_REQUESTS {
            return failure;
        }
        match self.allows(&live.refusals, extensions) {
            true => failure,
            false => Failure::throttled(),
        }
    }

    /// Counts a request of an address or network. Returns `false` if it is one too many.
    fn allows(&self, throttle: &Throttle, extensions: &Extensions) -> bool {
        let address = self.doors.network(extensions);
        let address = address.map(|address| address.to_string());
        let is_allowed = throttle.allows(&address.unwrap_or_default());
        if !is_allowed {
            self.doors.reached(Door::Syncano, DoorLimit::Refusals);
        }
        is_allowed
    }

    /// Returns the key of an account for its password.
    async fn account(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let found = async {
            let fields = self.read(&parts, body, MAX_PUBLISH).await?;
            Failure::unless(&parts.method, "POST")?;
            let live = self.syncano.live();
            // A password can be guessed, unlike a key, so attempts are limited for each
            // address.
            if !self.allows(&live.logins, &parts.extensions) {
                return Err(Failure::throttled());
            }
            live.accounts.log_in(&fields?)
        };
        match found.await {
            Ok(account) => json_response(StatusCode::OK, &account),
            Err(failure) => failure.into_response(),
        }
    }

    async fn read(&self, parts: &Parts, body: Body, limit: usize) -> Result<Fields, Failure> {
        let reading = body::read(&parts.headers, body, limit).await;
        reading.inspect_err(|failure| {
            if failure.status == StatusCode::PAYLOAD_TOO_LARGE {
                self.doors.reached(Door::Syncano, DoorLimit::Body);
            }
        })
    }

    async fn call(
        &self,
        live: &Live,
        parts: &mut Parts,
        body: Body,
        path: &Path,
    ) -> Result<Reply, Failure> {
        // The SDKs know the refusal of a larger message, so no setting changes that limit.
        let limit = match path.resource {
            Resource::Publish(_) => MAX_PUBLISH,
            _ => self.doors.settings.max_body.0.max(MAX_PUBLISH),
        };
        // The body is read before the key is known, because the key may be in it.
        let fields = self.read(parts, body, limit).await?;
        let instance = live.instances.get(&path.instance);
        let instance = instance
            .ok_or_else(|| Failure::detail(StatusCode::NOT_FOUND, "Instance was not found."))?;
        let throttle = match path.resource {
            Resource::Poll(_) => &live.polls,
            _ => &live.requests,
        };
        if !throttle.allows(&instance.name) {
            return Err(Failure::throttled());
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let none = Map::new();
        let credentials = Credentials::of(&parts.headers, &query, fields.as_ref().unwrap_or(&none));
        let call = Call {
            live,
            instance,
            caller: instance.keys.recognize(&credentials)?,
            base: &path.base,
            fields,
        };
        let method = parts.method.clone();
        let response = match &path.resource {
            Resource::Poll(name) => return self.poll(parts, call, name, &query).await,
            Resource::Channels => channels(&method, call).await,
            Resource::Channel(name) => channel(&method, call, name).await,
            Resource::Class(name) => class(&method, &call, name),
            Resource::UserAuth => match self.allows(&live.logins, &parts.extensions) {
                true => log_in(&method, call),
                false => Err(Failure::throttled()),
            },
            Resource::Publish(name) => self.publish(&method, call, name).await,
            Resource::History(name) => self.history(&method, call, name, &query).await,
            Resource::Notification(name, id) => {
                self.notification(&method, call, (name, *id), &query).await
            }
            Resource::Objects(class) => self.objects(&method, call, class).await,
            Resource::Object(class, id) => self.object(&method, call, (class, *id)).await,
        };
        response.map(Reply::Now)
    }

    fn streams(&self, instance: &Instance) -> Streams {
        Streams {
            server: self.doors.server.clone(),
            namespace: Arc::clone(&instance.namespace),
            age: self.syncano.fixed.age,
        }
    }
}

/// Lists or creates channels. There is one page, because their number is limited.
async fn channels(method: &Method, call: Call<'_>) -> Result<Response, Failure> {
    match *method {
        Method::GET => {
            let channels = call.instance.channels(&call.caller).await?;
            let objects = channels.iter().map(|channel| channel.to_json(call.base));
            let objects: Vec<_> = objects.collect();
            let page = json!({ "next": null, "prev": null, "objects": objects });
            Ok(json_response(StatusCode::OK, &page))
        }
        Method::POST => {
            for_accounts(&call.caller)?;
            let channel = call.instance.create(&call.fields?).await?;
            let body = channel.to_json(call.base);
            Ok(json_response(StatusCode::CREATED, &body))
        }
        _ => Err(Failure::method(method, "GET, POST")),
    }
}

/// Shows, changes or deletes a channel.
async fn channel(method: &Method, call: Call<'_>, name: &str) -> Result<Response, Failure> {
    if ![Method::GET, Method::PATCH, Method::PUT, Method::DELETE].contains(method) {
        return Err(Failure::method(method, "GET, PUT, PATCH, DELETE"));
    }
    // Check that the channel exists first, because the original returns 404 before 403.
    let mut channel = call.instance.channel(name).await?;
    match *method {
        Method::GET => channel.check_subscribe(&call.caller)?,
        Method::DELETE => {
            for_accounts(&call.caller)?;
            call.instance.delete(name).await?;
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        _ => {
            for_accounts(&call.caller)?;
            channel = call.instance.update(name, &call.fields?).await?;
        }
    }
    Ok(json_response(StatusCode::OK, &channel.to_json(call.base)))
}

/// Only account keys can manage channels, regardless of the flags of another key.
fn for_accounts(caller: &Caller) -> Result<(), Failure> {
    match caller.is_account() {
        true => Ok(()),
        false => Err(Failure::forbidden()),
    }
}

/// Shows a class, which the Python SDK asks for before it creates an object.
/// The application's classes are part of the settings, so their status is always
/// `ready`.
fn class(method: &Method, call: &Call<'_>, name: &str) -> Result<Response, Failure> {
    Failure::unless(method, "GET")?;
    let class = call.instance.class(name)?;
    let own = format!("{}/classes/{name}/", call.base);
    let body = json!({
        "name": name,
        "description": class.description,
        "schema": class.schema,
        "status": "ready",
        "group": class.group,
        "group_permissions": class.group_permissions,
        "other_permissions": class.other_permissions,
        "links": { "self": own, "objects": format!("{own}objects/") },
    });
    Ok(json_response(StatusCode::OK, &body))
}

/// Returns the key of a user for its password.
fn log_in(method: &Method, call: Call<'_>) -> Result<Response, Failure> {
    Failure::unless(method, "POST")?;
    let (fields, base) = (call.fields?, call.base);
    let (id, key) = call.instance.keys.log_in(&fields)?;
    let body = json!({
        "id": id,
        "username": fields.get("username").and_then(Value::as_str),
        "user_key": key,
        "links": { "self": format!("{base}/users/{id}/") },
    });
    Ok(json_response(StatusCode::OK, &body))
}
