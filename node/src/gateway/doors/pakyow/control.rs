//! The calls by which the application subscribes visitors and pushes to them.
//!
//! They are served where the HTTP API is, and take its keys: `join` allows subscribing, `leave`
//! unsubscribing, and `emit` pushing, in the namespace of the door.
//!
//! ```text
//!  POST ─► key, verb, namespace ─► body ─► on a worker: fields ─► digest, channels ─► registry, push
//!           401, 403            408, 413                 400            400            503
//! ```
//!
//! The application calls while it renders a page, so a call returns only when its
//! effect is visible: a subscription is in force on the node that has the socket, and a
//! push is published. A call that has timed out is still carried out to its end,
//! because half a subscription would be worse. Repeating any of the calls is harmless,
//! except that a push arrives twice.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::Request,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{HeaderMap, header};
use roomcast::{
    EmitError,
    pakyow::{digest, is_digest},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{json, value::RawValue};
use tokio::{runtime::Handle, time::timeout};

use super::{
    Failed, Pakyow,
    registry::RegistryError,
    subscriptions::{Change, RESERVED},
};
use crate::gateway::{
    api::{Kind, Problem, Verb, read_body},
    doors::{Door, DoorLimit, Doors},
    object,
    values::{ByteSize, Span},
};

/// The most channels of a call.
/// All are stored by one script, which stops Redis for others meanwhile.
const MAX_CHANNELS: usize = 1000;

/// The longest connection id and socket key, in bytes.
/// Pakyow makes ids of 64 digits. Clients choose both, and each is hashed, so they are
/// bounded.
pub(super) const MAX_IDENTITY: usize = 256;

/// A call.
#[derive(Clone, Copy, Debug)]
enum Call {
    Subscribe,
    Unsubscribe,
    Push,
    PushTo,
}

impl Call {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Subscribe, "/pakyow/subscribe"),
        (Self::Unsubscribe, "/pakyow/unsubscribe"),
        (Self::Push, "/pakyow/push"),
        (Self::PushTo, "/pakyow/push_to"),
    ];

    /// The verb of the API that the key needs. A subscription is a join of somebody
    /// else's socket.
    fn verb(self) -> Verb {
        match self {
            Self::Subscribe => Verb::Join,
            Self::Unsubscribe => Verb::Leave,
            Self::Push | Self::PushTo => Verb::Emit,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Subscription {
    channels: Vec<String>,
    digest: Option<String>,
    connection_id: Option<String>,
    socket_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Push {
    message: Box<RawValue>,
    channels: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct PushTo {
    digest: String,
    channel: String,
    message: Box<RawValue>,
}

/// The reason why a call is refused, and the limit that it has reached.
/// The metric counts only limits, so that an operator can distinguish clients that need more from
/// clients with bugs.
struct Refusal {
    limit: Option<DoorLimit>,
    problem: Problem,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self {
            limit: None,
            problem,
        }
    }
}

/// The state that all routes share.
struct Control {
    pakyow: Arc<Pakyow>,
    doors: Arc<Doors>,
    max_body: ByteSize,
    timeout: Span,
    /// The calls are carried out here, because the internal port must respond while they run.
    workers: Handle,
}

impl Pakyow {
    /// The routes of the calls, to be merged into those of the API. Must be called in the
    /// runtime of the workers.
    pub(crate) fn control(
        self: &Arc<Self>,
        doors: &Arc<Doors>,
        max_body: ByteSize,
        timeout: Span,
    ) -> Router {
        let control = Arc::new(Control {
            pakyow: Arc::clone(self),
            doors: Arc::clone(doors),
            max_body,
            timeout,
            workers: Handle::current(),
        });
        let calls = Call::ALL.into_iter();
        calls.fold(Router::new(), |router, (call, path)| {
            let control = Arc::clone(&control);
            let respond = async move |request: Request| control.respond(call, request).await;
            router.route(path, post(respond))
        })
    }
}

impl Control {
    async fn respond(&self, call: Call, request: Request) -> Response {
        match self.call(call, request).await {
            Ok(response) => response,
            Err(refusal) => {
                if let Some(limit) = refusal.limit {
                    self.doors.reached(Door::Pakyow, limit);
                }
                refusal.problem.into_response()
            }
        }
    }

    async fn call(&self, call: Call, request: Request) -> Result<Response, Refusal> {
        let (parts, body) = request.into_parts();
        self.check_key(&parts.headers, call.verb())?;
        let body = read_body(body, self.max_body, self.timeout).await;
        let body = body.map_err(|problem| Refusal {
            limit: (problem.kind == Kind::TooLarge).then_some(DoorLimit::Body),
            problem,
        })?;
        let pakyow = Arc::clone(&self.pakyow);
        let work = self
            .workers
            .spawn(async move { pakyow.carry_out(call, &body).await });
        match timeout(self.timeout.0, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Problem::new(Kind::Internal, "the call panicked").into()),
            Err(_) => {
                let time = self.timeout;
                let detail = format!("no result within {time}; the call may still take effect");
                Err(Problem::new(Kind::Timeout, detail).into())
            }
        }
    }

    /// Checks the key. Its namespaces count as well, because the channels are rooms of
    /// one.
    fn check_key(&self, headers: &HeaderMap, verb: Verb) -> Result<(), Problem> {
        let key = self.doors.api.key(headers, verb)?;
        let namespace = self.pakyow.namespace();
        if key.may_in(namespace) {
            return Ok(());
        }
        let detail = format!("the key {} is not for {namespace}", key.name);
        Err(Problem::new(Kind::Forbidden, detail))
    }
}

impl Pakyow {
    async fn carry_out(&self, call: Call, body: &Bytes) -> Result<Response, Refusal> {
        let done = match call {
            Call::Subscribe | Call::Unsubscribe => {
                let change = read::<Subscription>(body)?.change()?;
                self.check_channels(&change.channels)?;
                let changed = match call {
                    Call::Subscribe => self.subscribe(&change).await,
                    _ => self.unsubscribe(&change).await,
                };
                changed.map(|()| json!({ "digest": change.digest }))
            }
            Call::Push => {
                let push: Push = read(body)?;
                self.check_channels(&push.channels)?;
                let pushed = self.push(&push.message, &push.channels).await;
                pushed.map(|()| json!({}))
            }
            Call::PushTo => {
                let push: PushTo = read(body)?;
                check_digest(&push.digest)?;
                self.check_channel("channel", &push.channel)?;
                let pushed = self
                    .push_to(&push.digest, &push.channel, &push.message)
                    .await;
                pushed.map(|()| json!({}))
            }
        };
        let result = done.map_err(|failed| refusal(&failed))?.to_string();
        Ok(([(header::CONTENT_TYPE, "application/json")], result).into_response())
    }

    /// An empty list is a mistake and no limit.
    fn check_channels(&self, channels: &[String]) -> Result<(), Refusal> {
        if channels.is_empty() || channels.len() > MAX_CHANNELS {
            let detail = format!("a call names 1 to {MAX_CHANNELS} channels");
            let limit = (!channels.is_empty()).then_some(DoorLimit::Rooms);
            let problem = Problem::invalid("channels", detail);
            return Err(Refusal { limit, problem });
        }
        let mut channels = channels.iter().enumerate();
        channels.try_for_each(|(index, channel)| {
            self.check_channel(&format!("channels[{index}]"), channel)
        })
    }

    /// A channel is a room, so its name has the limit of rooms. The names of private
    /// channels are [reserved](RESERVED), because a subscription to one would show
    /// another visitor's pushes.
    fn check_channel(&self, field: &str, channel: &str) -> Result<(), Refusal> {
        let most = self.limits.room_name_bytes;
        if channel.is_empty() || channel.len() > most {
            let detail = format!("the name of a channel has 1 to {most} bytes");
            let limit = (!channel.is_empty()).then_some(DoorLimit::Name);
            let problem = Problem::invalid(field, detail);
            return Err(Refusal { limit, problem });
        }
        if channel.starts_with(RESERVED) {
            let detail = format!("names that begin with {RESERVED} are not for channels");
            return Err(Problem::invalid(field, detail).into());
        }
        if self
            .ruby
            .as_ref()
            .is_some_and(|ruby| !ruby.is_bare(channel))
        {
            let detail = "with Pakyow's own processes, the name is that of another Redis channel";
            return Err(Problem::invalid(field, detail).into());
        }
        Ok(())
    }
}

impl Subscription {
    /// Reads the subscription. Both forms are Pakyow's: a page knows the pair, a route
    /// the digest from its header. A mixture is refused, because the two may contradict
    /// each other.
    fn change(self) -> Result<Change, Refusal> {
        let digest = match (self.digest, self.connection_id, self.socket_key) {
            (Some(digest), None, None) => {
                check_digest(&digest)?;
                digest
            }
            (None, Some(id), Some(key)) => {
                for (field, value) in [("connection_id", &id), ("socket_key", &key)] {
                    if !(1..=MAX_IDENTITY).contains(&value.len()) {
                        let detail = format!("it has 1 to {MAX_IDENTITY} bytes");
                        let limit = (!value.is_empty()).then_some(DoorLimit::Name);
                        let problem = Problem::invalid(field, detail);
                        return Err(Refusal { limit, problem });
                    }
                }
                digest(&key, &id)
            }
            _ => {
                let detail = "name digest, or connection_id and socket_key";
                return Err(Problem::invalid("digest", detail).into());
            }
        };
        Ok(Change {
            digest,
            channels: self.channels,
        })
    }
}

fn check_digest(digest: &str) -> Result<(), Problem> {
    if is_digest(digest) {
        return Ok(());
    }
    let detail = "a digest has 40 lower-case hexadecimal digits";
    Err(Problem::invalid("digest", detail))
}

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    object::read(body).map_err(|(field, error)| Problem::invalid(&field, error.to_string()))
}

fn refusal(failed: &Failed) -> Refusal {
    let limit = match failed {
        Failed::Registry(RegistryError::TooManyChannels(_)) => Some(DoorLimit::Rooms),
        Failed::Registry(RegistryError::Full) => Some(DoorLimit::Waiting),
        _ => None,
    };
    let problem = problem(failed);
    Refusal { limit, problem }
}

/// A registry that cannot be reached is 503, since the call can be repeated. A message
/// that was handed over without a reply is `unconfirmed`: a repetition may push it
/// twice.
fn problem(failed: &Failed) -> Problem {
    let detail = failed.to_string();
    match failed {
        Failed::Emit(EmitError::Args(_)) => Problem::invalid("message", detail),
        Failed::Emit(error) => Problem::of_emit(error),
        Failed::Registry(RegistryError::TooManyChannels(_)) => Problem::invalid("channels", detail),
        Failed::Registry(RegistryError::Full) => Problem::new(Kind::Busy, detail),
        Failed::Registry(_) | Failed::Unheard(_) => Problem::new(Kind::Redis, detail),
        Failed::Silent(_) => Problem::new(Kind::Unconfirmed, detail),
        Failed::Message(_) => Problem::invalid("message", detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "7a1c653e3a0aec95b6f395b05a46eace0ce22a50";

    /// `D` stands for a digest.
    fn change(subscription: &str) -> Result<Change, String> {
        let body = subscription.replace(":D", &format!(":{DIGEST:?}"));
        let read = read::<Subscription>(&body.into()).map_err(Refusal::from);
        let change = read.and_then(Subscription::change);
        change.map_err(|refusal| refusal.problem.detail().to_owned())
    }

    #[test]
    fn a_subscription_names_a_digest_or_the_pair_of_it() {
        for identity in [
            r#""digest":D"#,
            r#""connection_id":"abc","socket_key":"k1""#,
        ] {
            let change = change(&format!(r#"{{"channels":["a"],{identity}}}"#)).unwrap();
            assert_eq!(
                (&*change.digest, change.channels),
                (DIGEST, vec!["a".to_owned()])
            );
        }
        let neither = "name digest, or";
        for (reason, subscription) in [
            (neither, r#"{"channels":[]}"#),
            (neither, r#"{"channels":[],"connection_id":"a"}"#),
            (neither, r#"{"channels":[],"digest":D,"socket_key":"k"}"#),
            ("40 lower-case", r#"{"channels":[],"digest":"x"}"#),
            ("invalid type", r#"{"channels":"a","digest":D}"#),
            ("missing field", r#"{"digest":D}"#),
            ("unknown field", r#"{"chanels":[],"digest":D}"#),
            (
                "1 to 256",
                r#"{"channels":[],"connection_id":"","socket_key":"k"}"#,
            ),
        ] {
            let error = change(subscription).unwrap_err();
            assert!(error.contains(reason), "{subscription}: {error}");
        }
    }

    #[test]
    fn limits_of_the_registry_are_named_in_the_response_and_in_the_metric() {
        for (error, status, limit) in [
            (RegistryError::TooManyChannels(3), 400, DoorLimit::Rooms),
            (RegistryError::Full, 503, DoorLimit::Waiting),
        ] {
            let refusal = refusal(&Failed::Registry(error));
            assert_eq!(refusal.problem.status(), status);
            assert_eq!(refusal.limit, Some(limit));
        }
        let error = RegistryError::Reply;
        assert_eq!(refusal(&Failed::Registry(error)).limit, None);
    }
}
