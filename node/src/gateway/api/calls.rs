//! The calls of the API: parsing, checks and effects.
//!
//! A call is prepared completely before it is carried out, so a wrong request changes nothing and
//! does not use up its idempotency key.
//!
//! ```text
//!  POST ─► fields ───────────────► namespace ─► permitted? ─► one operation, or a list ─┐
//!                                                      operations::check, as for hooks ─┴─► Call
//!  GET ──► Query ────────────────► namespace ─► permitted? ─────────────────────────────────► Call
//! ```
//!
//! Operations share reader, check and interpreter with the responses of hooks, so an
//! application can move an operation from one to the other without changing it. Only
//! the way to the list differs: here the path names a single operation, or `operations`
//! holds several.

use std::time::Duration;

use roomcast::{Args, EmitError, Fetched, Limits, Receipt, Server};
use serde_json::{Value, json, value::RawValue};

use super::{
    keys::{Key, Verb},
    problem::{Kind, Problem},
    queries::Query,
    revoke::Revoke,
};
use crate::gateway::{
    operations::{self, Asks, Checked, Effect, Fields, Operation, Report},
    presence::Presence,
};

/// A route of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) path: &'static str,
    /// The verb that the key needs. In a batch, each operation has its own.
    pub(crate) verb: Option<Verb>,
    /// Whether it only reads. Then it is a GET with a query instead of a POST with a body.
    pub(crate) is_query: bool,
}

/// A call with several operations.
const BATCH: Endpoint = Endpoint {
    path: "/api/batch",
    verb: None,
    is_query: false,
};

impl Endpoint {
    /// All routes.
    /// A new one needs its part of `openapi.json`; a test compares them.
    pub(crate) const ALL: [Self; 12] = [
        Self::call("/api/emit", Verb::Emit),
        BATCH,
        Self::call("/api/join", Verb::Join),
        Self::call("/api/leave", Verb::Leave),
        Self::call("/api/disconnect", Verb::Disconnect),
        Self::call("/api/revoke", Verb::Revoke),
        Self::call("/api/server-side-emit", Verb::ServerSideEmit),
        Self::query("/api/sockets", Verb::Sockets),
        Self::query("/api/rooms", Verb::Rooms),
        Self::query("/api/users", Verb::Users),
        Self::query("/api/presence", Verb::Presence),
        Self::query("/api/node", Verb::Node),
    ];

    const fn call(path: &'static str, verb: Verb) -> Self {
        Self {
            path,
            verb: Some(verb),
            is_query: false,
        }
    }

    const fn query(path: &'static str, verb: Verb) -> Self {
        Self {
            is_query: true,
            ..Self::call(path, verb)
        }
    }

    /// The path without its first part, for metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        self.path.trim_start_matches("/api/")
    }
}

/// A call that has been checked completely.
#[derive(Debug)]
pub(crate) enum Call {
    /// One operation, or a batch.
    Operations {
        namespace: String,
        checked: Checked,
        is_batch: bool,
    },
    ServerSideEmit {
        namespace: String,
        event: String,
        args: Args,
        is_acknowledged: bool,
    },
    Revoke(Revoke),
    Query {
        namespace: String,
        query: Query,
    },
    Node,
}

impl Call {
    /// Reads and checks a request. `query` is the part of the URL after the question mark.
    /// The error names the first field that is wrong. The permission for the namespace
    /// is checked before the other fields.
    pub(crate) fn read(
        endpoint: Endpoint,
        key: &Key,
        query: &str,
        body: &[u8],
        limits: &Limits,
    ) -> Result<Self, Problem> {
        if endpoint.verb == Some(Verb::Node) {
            return Query::none(query).map(|()| Self::Node);
        }
        if let Some(verb) = endpoint.verb.filter(|_| endpoint.is_query) {
            let (namespace, query) = Query::read(verb, query)?;
            permit(key, &namespace)?;
            return Ok(Self::Query { namespace, query });
        }
        let mut fields = fields(body)?;
        let namespace = fields.take("namespace").map_err(of_body)?;
        let namespace = namespace.unwrap_or_else(|| "/".to_owned());
        permit(key, &namespace)?;
        let is_batch = endpoint == BATCH;
        let operations = match endpoint.verb {
            Some(Verb::ServerSideEmit) => return server_side_emit(namespace, fields, limits),
            _ if is_batch => batch(fields, key)?,
            _ => vec![operations::read_as(endpoint.name(), fields).map_err(of_body)?],
        };
        let checked = operations::check(operations, Asks::Nobody, limits);
        let checked = checked.map_err(|mut problem| {
            if is_batch {
                return Problem::of_operations(problem, "operations");
            }
            // The caller has sent no list, so the path must not show one.
            problem.at = problem.at.trim_start_matches("[0]").to_owned();
            of_body(problem)
        })?;
        Ok(Self::Operations {
            namespace,
            checked,
            is_batch,
        })
    }

    /// Emits are published once for each idempotency key.
    /// Other operations need none on the bus, because a repeated join, leave or
    /// disconnect changes nothing.
    pub(crate) fn once(mut self, key: &str, time: Duration) -> Self {
        if let Self::Operations { checked, .. } = &mut self {
            *checked = std::mem::take(checked).once(key, time);
        }
        self
    }

    /// Whether the call can be carried out again under its key without another effect
    /// than the first time.
    /// Only emits are, because the bus publishes them once for their key.
    pub(crate) fn is_repeatable(&self) -> bool {
        matches!(self, Self::Operations { checked, .. } if checked.is_repeatable())
    }

    /// Runs on a worker. It may outlive the request, see [`api`](super).
    pub(crate) async fn carry_out(
        self,
        server: &Server,
        presence: &Presence,
    ) -> Result<Value, Problem> {
        match self {
            Self::Operations {
                namespace,
                checked,
                is_batch,
            } => {
                let report = checked
                    .carry_out(&server.of(&namespace), None, &mut None)
                    .await;
                if is_batch {
                    results_of_batch(&report)
                } else {
                    result_of_one(report)
                }
            }
            Self::ServerSideEmit {
                namespace,
                event,
                args,
                is_acknowledged,
            } => {
                let operator = server.of(&namespace);
                let emitted = if is_acknowledged {
                    let asked = operator.server_side_emit_with_ack::<Args>(&event, args);
                    asked.await.map(|answers| {
                        json!({
                            "answers": answers.answers.iter().map(readable).collect::<Vec<_>>(),
                            "without_handler": answers.without_handler,
                            "silent_nodes": answers.silent_nodes,
                        })
                    })
                } else {
                    let nodes = operator.server_side_emit(&event, args).await;
                    nodes.map(|nodes| json!({ "nodes": nodes }))
                };
                emitted.map_err(|error| Problem::of_emit(&error))
            }
            Self::Revoke(revoke) => revoke.carry_out(server).await,
            Self::Query { namespace, query } => {
                // Presence that nodes keep of each other answers at once. A question
                // costs an answer of every node, and waits for the slowest.
                let kept = presence.of(&namespace);
                if let Some(answer) = kept.and_then(|kept| query.answer_from(kept)) {
                    return Ok(answer);
                }
                let fetched = fetch(server, &namespace, &query).await;
                let fetched = fetched.map_err(|error| Problem::of_emit(&error))?;
                Ok(query.answer(&fetched))
            }
            Self::Node => Ok(node(server)),
        }
    }
}

async fn fetch(server: &Server, namespace: &str, query: &Query) -> Result<Fetched, EmitError> {
    let operator = server.of(namespace).timeout(query.timeout);
    match &query.selected {
        Some(rooms) => operator.in_(rooms).fetch_sockets().await,
        None => operator.fetch_sockets().await,
    }
}

/// This node's knowledge of itself and of the others.
/// It asks no other node, so it also responds while Redis is unreachable.
fn node(server: &Server) -> Value {
    let (health, reason) = match server.health() {
        roomcast::Health::Flowing => ("flowing", None),
        roomcast::Health::Interrupted(reason) => ("interrupted", Some(reason)),
    };
    let nodes = server.nodes();
    json!({
        "node": server.node().to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "health": health,
        "reason": reason.map(|reason| reason.to_string()),
        "connections": server.connections(),
        "namespaces": server.namespaces(),
        "nodes": nodes.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Checks that a key is for the namespace.
pub(super) fn permit(key: &Key, namespace: &str) -> Result<(), Problem> {
    if !namespace.starts_with('/') {
        return Err(Problem::invalid(
            "namespace",
            "a namespace begins with /, such as / or /chat",
        ));
    }
    if key.may_in(namespace) {
        return Ok(());
    }
    let detail = format!("the key {} is not for the namespace {namespace}", key.name);
    Err(Problem::new(Kind::Forbidden, detail).at("namespace"))
}

/// Reads the object of a body.
pub(super) fn fields(body: &[u8]) -> Result<Fields<'_>, Problem> {
    Fields::of(body).map_err(|mut problem| {
        if problem.at.is_empty() {
            problem.what = format!("the body is no JSON object: {}", problem.what);
        }
        of_body(problem)
    })
}

/// A problem with a field of the body.
pub(super) fn of_body(problem: operations::Problem) -> Problem {
    Problem::of_operations(problem, "")
}

fn batch(mut fields: Fields<'_>, key: &Key) -> Result<Vec<Operation>, Problem> {
    fields.only(&["operations"]).map_err(of_body)?;
    let list = fields.take::<&RawValue>("operations").map_err(of_body)?;
    let list =
        list.ok_or_else(|| Problem::invalid("operations", "the list of operations is missing"))?;
    let operations =
        operations::read(list).map_err(|problem| Problem::of_operations(problem, "operations"))?;
    // A batch has no separate verb. Otherwise, a key for batches could do everything.
    for (index, operation) in operations.iter().enumerate() {
        let verb = match operation {
            Operation::Emit { .. } => Verb::Emit,
            Operation::Join { .. } => Verb::Join,
            Operation::Leave { .. } => Verb::Leave,
            Operation::Disconnect { .. } => Verb::Disconnect,
            // They need a socket that asks, so the check refuses them.
            _ => continue,
        };
        if !key.may(verb) {
            return Err(forbidden(key, verb).at(format!("operations[{index}].op")));
        }
    }
    Ok(operations)
}

pub(crate) fn forbidden(key: &Key, verb: Verb) -> Problem {
    let detail = format!("the key {} is not for the verb {}", key.name, verb.name());
    Problem::new(Kind::Forbidden, detail)
}

/// Reads an event for the other servers, which need not be nodes of ours.
fn server_side_emit(
    namespace: String,
    mut fields: Fields<'_>,
    limits: &Limits,
) -> Result<Call, Problem> {
    let mut read = || {
        fields.only(&["event", "args", "acknowledged"])?;
        let event: String = fields.require("event")?;
        let args = operations::arguments(fields.take("args")?)?;
        let is_acknowledged = fields.take("acknowledged")?.unwrap_or_default();
        Ok((event, args, is_acknowledged))
    };
    let (event, args, is_acknowledged) = read().map_err(of_body)?;
    if event.is_empty() || event.len() > limits.event_name_bytes {
        let limit = limits.event_name_bytes;
        let detail = format!("the name of an event has 1 to {limit} bytes");
        return Err(Problem::invalid("event", detail));
    }
    if roomcast::is_reserved(&event) {
        let detail = format!("`{event}` is reserved by Socket.IO");
        return Err(Problem::invalid("event", detail));
    }
    Ok(Call::ServerSideEmit {
        namespace,
        event,
        args,
        is_acknowledged,
    })
}

/// Arguments as JSON, with binary marked.
fn readable(args: &Args) -> Value {
    let json = args.to_plain_json().ok();
    json.and_then(|json| serde_json::from_str(&json).ok())
        .unwrap_or(Value::Null)
}

/// The result of a single operation. An operation that other nodes may have missed is
/// an error here, although this node did its part: the caller has to know.
fn result_of_one(mut report: Report) -> Result<Value, Problem> {
    match report.results.pop() {
        Some(Ok(effect)) => Ok(shown(&effect)),
        Some(Err(error)) => Err(Problem::of_emit(&error)),
        None => Err(Problem::new(Kind::Internal, "the operation has no result")),
    }
}

/// The results of a batch. If an operation failed, the problem has the results before it.
fn results_of_batch(report: &Report) -> Result<Value, Problem> {
    let shown_all = || {
        let results = report.results.iter().map(|result| match result {
            Ok(effect) => shown(effect),
            Err(error) => json!({ "effect": "failed", "detail": error.to_string() }),
        });
        results.collect::<Vec<_>>()
    };
    if let Some((index, error)) = report.failure() {
        let at = format!("operations[{index}]");
        return Err(Problem::of_emit(error).at(at).after(shown_all()));
    }
    match report.missed_nodes() {
        Some(error) => Err(Problem::of_emit(error).at("operations").after(shown_all())),
        None => Ok(json!({ "results": shown_all() })),
    }
}

/// An effect as the API shows it, with the names of the book.
fn shown(effect: &Effect) -> Value {
    match effect {
        Effect::Done => json!({ "effect": "done" }),
        Effect::Nobody => json!({ "effect": "nobody" }),
        Effect::Emitted(delivery) => {
            let mut shown = receipt(&Receipt::from(*delivery));
            shown["effect"] = "emitted".into();
            shown["local_sockets"] = delivery.local_sockets.into();
            shown
        }
        Effect::Published(published) => {
            let mut shown = receipt(published);
            shown["effect"] = "emitted".into();
            shown
        }
        Effect::Confirmed(confirmed) => {
            let mut shown = receipt(confirmed);
            shown["effect"] = "confirmed".into();
            shown["silent_nodes"] = json!(confirmed.silent_nodes);
            shown
        }
    }
}

/// A receipt has the same fields wherever it is shown.
fn receipt(receipt: &Receipt) -> Value {
    json!(receipt)
}
