//! The commands, one line each.

use std::time::Duration;

use roomcast::{Args, BroadcastOperator, RemoteSocket, Server, Socket};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Failure, Sockets, say, values};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Command {
    id: u64,
    #[serde(rename = "do")]
    action: Action,
    namespace: String,
    from: Option<String>,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
    #[serde(default)]
    volatile: bool,
    #[serde(default)]
    local: bool,
    timeout: Option<u64>,
    #[serde(default)]
    event: String,
    #[serde(default)]
    args: Vec<Value>,
    #[serde(default)]
    rooms: Vec<String>,
    #[serde(default)]
    close: bool,
    #[serde(default)]
    sid: String,
    what: Option<Action>,
    #[serde(default)]
    value: Map<String, Value>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Action {
    Emit,
    Publish,
    Ask,
    Fetch,
    Rooms,
    Join,
    Leave,
    Disconnect,
    ServerSideEmit,
    ServerSideAsk,
    Remote,
    Own,
    Data,
    Metrics,
}

/// Carries out one command and says how it ended.
pub(crate) async fn run(server: Server, sockets: Sockets, line: String) {
    let command: Command = match serde_json::from_str(&line) {
        Ok(command) => command,
        Err(error) => return say(&json!({ "error": format!("{line}: {error}") })),
    };
    match act(&server, &sockets, &command).await {
        Ok(result) => say(&json!({ "id": command.id, "ok": result })),
        Err(error) => say(&json!({ "id": command.id, "error": error.to_string() })),
    }
}

async fn act(server: &Server, sockets: &Sockets, command: &Command) -> Result<Value, Failure> {
    match command.action {
        Action::Own => own(&sockets.find(&command.namespace, &command.sid)?, command).await,
        Action::Remote => {
            let target = server.of(&command.namespace).in_(&command.sid);
            let found = target.fetch_sockets().await?;
            let socket = found.sockets.first();
            let socket = socket.ok_or_else(|| format!("no socket {} anywhere", command.sid))?;
            let what = command.what.ok_or("remote needs `what`")?;
            operate(with_timeout(socket.operator(), command), what, command).await
        }
        Action::Metrics => Ok(json!({ "text": server.metrics() })),
        action => {
            let operator = match &command.from {
                Some(id) => sockets.find(&command.namespace, id)?.broadcast(),
                None => server.of(&command.namespace),
            };
            operate(aimed(operator, command), action, command).await
        }
    }
}

fn aimed(operator: BroadcastOperator, command: &Command) -> BroadcastOperator {
    let mut operator = operator.to(&command.to).except(&command.except);
    if command.volatile {
        operator = operator.volatile();
    }
    if command.local {
        operator = operator.local();
    }
    with_timeout(operator, command)
}

fn with_timeout(operator: BroadcastOperator, command: &Command) -> BroadcastOperator {
    match command.timeout {
        Some(timeout) => operator.timeout(Duration::from_millis(timeout)),
        None => operator,
    }
}

async fn operate(
    operator: BroadcastOperator,
    action: Action,
    command: &Command,
) -> Result<Value, Failure> {
    let args = values::args(&command.args)?;
    match action {
        Action::Emit => {
            let delivery = operator.emit(&command.event, args).await?;
            return Ok(json!({ "local_sockets": delivery.local_sockets, "nodes": delivery.nodes }));
        }
        Action::Publish => {
            let position = operator.publish(&command.event, args).await?;
            return Ok(json!({ "position": position.id }));
        }
        Action::Ask => {
            let votes = operator.emit_with_ack::<Args>(&command.event, args).await?;
            let missing = votes.missing.len() + votes.missing_unnamed;
            let complete = missing == 0 && votes.silent_nodes.is_empty();
            return Ok(answers(&votes.answers, complete));
        }
        Action::Fetch => {
            let found = operator.fetch_sockets().await?;
            let plain: Vec<_> = found.sockets.iter().map(plain).collect();
            let silent = &found.silent_nodes;
            return Ok(
                json!({ "sockets": plain, "complete": silent.is_empty(), "silent": silent }),
            );
        }
        Action::Rooms => {
            let found = operator.rooms().await?;
            return Ok(json!({ "rooms": found.rooms, "complete": found.silent_nodes.is_empty() }));
        }
        Action::ServerSideAsk => {
            let asked = operator
                .server_side_emit_with_ack::<Args>(&command.event, args)
                .await?;
            return Ok(answers(&asked.answers, asked.silent_nodes.is_empty()));
        }
        Action::ServerSideEmit => {
            operator.server_side_emit(&command.event, args).await?;
        }
        Action::Join => operator.sockets_join(&command.rooms).await?,
        Action::Leave => operator.sockets_leave(&command.rooms).await?,
        Action::Disconnect => operator.disconnect_sockets(command.close).await?,
        Action::Remote | Action::Own | Action::Data | Action::Metrics => {
            return Err("not an operation on sockets".into());
        }
    }
    Ok(json!({}))
}

async fn own(socket: &Socket, command: &Command) -> Result<Value, Failure> {
    match command.what {
        Some(Action::Join) => socket.join_confirmed(&command.rooms).await?,
        Some(Action::Leave) => socket.leave(&command.rooms),
        Some(Action::Data) => socket.set_data(Value::Object(command.value.clone())),
        _ => {}
    }
    let mut rooms = socket.rooms();
    rooms.retain(|room| room != socket.id().as_str());
    rooms.sort();
    Ok(json!({ "rooms": rooms }))
}

fn answers(given: &[Args], complete: bool) -> Value {
    let answers: Vec<_> = given.iter().map(values::first).collect();
    json!({ "answers": answers, "complete": complete })
}

fn plain(socket: &RemoteSocket) -> Value {
    json!({
        "id": socket.id().as_str(),
        "handshake": socket.handshake_json(),
        "rooms": socket.rooms(),
        "data": socket.data_json(),
    })
}
