//! Objects that the application keeps: it is called by HTTP, and its changes are published.
//!
//! ```text
//!  create, read, update, delete ─► channel, room, rights ─► POST to the application
//!                                        ├── 2xx with the object ─► published ─► 201, 200, 204
//!                                        ├── 4xx ─► the same status and body
//!                                        └── else, or none in time ─► 503, Retry-After
//! ```
//!
//! The application decides about rights on objects, and remembers the channel and the
//! room of each, which its responses name. The rights of the creator on the channel are
//! checked before the application is called.

use std::sync::Arc;

use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{
    Call, Service, body,
    failure::Failure,
    instance::Instance,
    keys::Caller,
    notification::Task,
    objects::{METHODS, Object, linked, own_fields, payload},
    settings::HookSettings,
};
use crate::gateway::hooks::{self, Backend, Hooks};

/// The application of an instance.
pub(super) struct Application {
    settings: HookSettings,
    backend: Arc<Backend>,
}

/// A request to the application.
pub(super) struct Request<'a> {
    pub(super) task: Task,
    pub(super) instance: &'a str,
    pub(super) class: &'a str,
    /// `None` if it is created.
    pub(super) id: Option<u64>,
    pub(super) caller: &'a Caller,
    /// The fields that the client has sent.
    pub(super) object: Map<String, Value>,
}

impl Request<'_> {
    /// The caller's groups and rights are part of it, because the application decides
    /// about rights on objects, and the keys are known only here.
    fn body(&self) -> Vec<u8> {
        let mut body = json!({
            "type": self.task,
            "instance": self.instance,
            "class": self.class,
            "caller": self.caller.author(),
            "groups": self.caller.user().map(|user| &user.groups),
            "all_rights": self.caller.has_all_rights(),
            "object": self.object,
        });
        if let Some(id) = self.id {
            body["id"] = id.into();
        }
        body.to_string().into_bytes()
    }
}

impl Application {
    /// Connects to the application, or keeps the connections to one whose settings are the same.
    pub(super) fn new(
        instance: &str,
        settings: &HookSettings,
        hooks: &Hooks,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let known = before.filter(|before| before.settings == *settings);
        let backend = match known {
            Some(known) => Arc::clone(&known.backend),
            None => {
                let backend = hooks.backend(&format!("syncano-{instance}"), &settings.backend());
                Arc::new(backend.map_err(|problem| format!("hook: {problem}"))?)
            }
        };
        let settings = settings.clone();
        Ok(Self { settings, backend })
    }

    /// Returns the object of the response, which may be empty except after a creation.
    pub(super) async fn ask(&self, request: &Request<'_>) -> Result<Map<String, Value>, Failure> {
        let unavailable = |text: &str| {
            Failure::unavailable(format!("The application that keeps the objects {text}."))
        };
        let response = self.backend.ask(request.body().into()).await;
        // The reason is counted and logged with those of hooks.
        let response = response.map_err(|failure| match failure {
            hooks::Failure::TooLarge(_) => unavailable("has sent a response that is too large"),
            _ => unavailable("is not available"),
        })?;
        let (status, body) = (response.status(), response.body());
        // The client gets the words of the application, which decides about objects.
        if status.is_client_error() {
            return Err(refused(status, body));
        }
        let object = match serde_json::from_slice(body) {
            Ok(Value::Object(object)) if status.is_success() => object,
            _ if status.is_success() && body.is_empty() => Map::new(),
            _ => return Err(unavailable("has sent no object")),
        };
        if request.task == Task::Create && object.get("id").and_then(Value::as_u64).is_none() {
            return Err(unavailable("has sent an object without an id"));
        }
        Ok(object)
    }
}

impl Service {
    /// Lets the application create an object, and publishes it.
    pub(super) async fn ask_to_create(
        &self,
        application: &Application,
        (instance, class): (&Instance, &str),
        caller: &Caller,
        draft: &Object,
    ) -> Result<Map<String, Value>, Failure> {
        let request = Request {
            task: Task::Create,
            instance: &instance.name,
            class,
            id: None,
            caller,
            object: draft.sent(),
        };
        // The response may omit known values, so an application can return only the id.
        let mut object = draft.to_json(false);
        object.extend(application.ask(&request).await?);
        let payload = payload(object.clone());
        let change = (Task::Create, class, payload);
        self.publish_change(instance, caller, draft.place(), change)
            .await?;
        Ok(object)
    }

    /// Lets the application return, change or delete an object. Its response names the channel and
    /// room of the object.
    pub(super) async fn ask_about(
        &self,
        method: &Method,
        call: Call<'_>,
        (class_name, id): (&str, u64),
        application: &Application,
    ) -> Result<Response, Failure> {
        let instance = call.instance;
        let class = instance.class(class_name)?;
        let (task, sent) = match *method {
            Method::GET => (Task::Read, Map::new()),
            Method::DELETE => (Task::Delete, Map::new()),
            Method::PATCH | Method::PUT | Method::POST => {
                (Task::Update, own_fields(class, &call.fields?))
            }
            _ => return Err(Failure::method(method, METHODS)),
        };
        let request = Request {
            task,
            instance: &instance.name,
            class: class_name,
            id: Some(id),
            caller: &call.caller,
            object: sent,
        };
        let mut object = Object::unknown(id).to_json(false);
        object.extend(application.ask(&request).await?);
        // The path takes precedence over the response.
        object.insert("id".to_owned(), id.into());
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        let (channel, room) = (text("channel"), text("channel_room"));
        let mut payload = body::object([("id", id.into())]);
        // The application may have changed the values that the client has sent.
        for (name, value) in request.object {
            let value = object.get(&name).cloned().unwrap_or(value);
            payload.insert(name, value);
        }
        if task != Task::Read {
            let change = (task, class_name, payload);
            self.publish_change(instance, &call.caller, (channel, room), change)
                .await?;
        }
        Ok(match task {
            Task::Delete => StatusCode::NO_CONTENT.into_response(),
            _ => linked(StatusCode::OK, object, call.base, class_name),
        })
    }
}

/// The response to the client if the application refuses.
fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let mut failure = Failure::detail(status, status.canonical_reason().unwrap_or("Refused"));
    if let Ok(body @ Value::Object(_)) = serde_json::from_slice(body) {
        failure.body = body;
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_task_the_caller_and_the_fields() {
        let caller = Caller::Account { id: 1 };
        let request = Request {
            task: Task::Update,
            instance: "shop",
            class: "book",
            id: Some(7),
            caller: &caller,
            object: Map::from_iter([("title".to_owned(), json!("Emma"))]),
        };
        let body: Value = serde_json::from_slice(&request.body()).unwrap();
        let wanted = json!({
            "type": "update", "instance": "shop", "class": "book", "id": 7, "caller": { "admin": 1 },
            "groups": null, "all_rights": true, "object": { "title": "Emma" },
        });
        assert_eq!(body, wanted);
    }

    #[test]
    fn a_refusal_of_the_application_is_that_of_the_door() {
        let failure = refused(StatusCode::CONFLICT, br#"{"title":["Taken."]}"#);
        assert_eq!(
            (failure.status, failure.body),
            (StatusCode::CONFLICT, json!({ "title": ["Taken."] }))
        );
        let failure = refused(StatusCode::NOT_FOUND, b"<html>");
        assert_eq!(failure.body, json!({ "detail": "Not Found" }));
    }
}
