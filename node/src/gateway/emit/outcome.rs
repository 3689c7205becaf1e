//! The result of `roomcast emit`: text for people, JSON for scripts, and an exit status.
//!
//! Scripts decide by the status. So each cause that needs a different reaction has its own number:
//! repeat later (unreachable), look first (unconfirmed), mend the call (usage, JSON), or nobody was
//! there.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    process::ExitCode,
};

use roomcast::{
    Position, Receipt,
    emitter::{Answers, BuildError, Delivery, EmitError},
};
use serde_json::{Map, Value, json};

/// The exit status. The numbers never change, because scripts rely on them.
/// They follow no system beyond 0 to 2, which shells and clap use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Delivered = 0,
    Other = 1,
    Usage = 2,
    ReservedEvent = 3,
    InvalidJson = 4,
    Namespace = 5,
    Unreachable = 6,
    Refused = 7,
    Unconfirmed = 8,
    Nobody = 9,
    Incomplete = 10,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// The reason why some messages were not emitted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Options that cannot be combined.
    #[error("{0}")]
    Usage(String),
    /// A file that cannot be read.
    #[error("{0}")]
    Input(String),
    /// Not JSON, or not of the required form.
    #[error("invalid JSON: {0}")]
    Json(String),
    #[error(transparent)]
    Connect(#[from] BuildError),
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// The result cannot be written.
    #[error(transparent)]
    Output(#[from] io::Error),
    #[error("line {line}: {failure}")]
    Line { line: usize, failure: Box<Self> },
}

impl Failure {
    /// Adds the number of the line in the file.
    pub(super) fn in_line(self, line: usize) -> Self {
        let failure = Box::new(self);
        Self::Line { line, failure }
    }

    pub(super) fn status(&self) -> Status {
        match self {
            Self::Usage(_) => Status::Usage,
            Self::Json(_) => Status::InvalidJson,
            Self::Input(_) | Self::Output(_) => Status::Other,
            Self::Connect(BuildError::Connect(error)) if error.is_permanent() => Status::Refused,
            Self::Connect(BuildError::Connect(_)) => Status::Unreachable,
            Self::Connect(_) => Status::Usage,
            Self::Emit(error) => status_of(error),
            Self::Line { failure, .. } => failure.status(),
        }
    }
}

fn status_of(error: &EmitError) -> Status {
    match error {
        EmitError::ReservedEvent(_) => Status::ReservedEvent,
        EmitError::Args(_) | EmitError::Wire(_) => Status::InvalidJson,
        EmitError::NamespaceWithoutSlash(_) => Status::Namespace,
        EmitError::Unreachable(_) => Status::Unreachable,
        EmitError::Refused(_) => Status::Refused,
        EmitError::Unconfirmed(_) => Status::Unconfirmed,
        _ => Status::Other,
    }
}

/// The results of all messages so far.
/// Of a file with many messages, only sums are kept, so its length costs no memory.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Tally {
    /// Messages that Redis has taken.
    pub(super) messages: usize,
    /// Messages among them that reached no node.
    nobody: usize,
    /// The largest number of nodes that received, or confirmed, one of them.
    nodes: usize,
    /// How many of these have members of the room, if that is known.
    members: Option<usize>,
    /// The place of the last one in the journal, if there is one.
    position: Option<Position>,
    /// Messages among them that were emitted before, with the same idempotency key.
    replayed: usize,
    asked: Option<Asked>,
}

/// The results of --confirm or --ack.
#[derive(Debug, PartialEq)]
enum Asked {
    Confirmed {
        sockets: usize,
        silent: BTreeSet<String>,
    },
    Acks {
        answers: Vec<Value>,
        missing: Vec<String>,
        missing_unnamed: usize,
        silent: BTreeSet<String>,
    },
}

impl Tally {
    pub(super) fn delivered(&mut self, delivery: Delivery) {
        self.messages += 1;
        self.nobody += usize::from(delivery.nodes == 0);
        self.nodes = self.nodes.max(delivery.nodes);
        self.members = delivery.members;
        self.position = delivery.position;
        self.replayed += usize::from(delivery.is_replayed);
    }

    /// Adds a confirmed message. The sockets of several messages are added up.
    pub(super) fn confirmed(&mut self, confirmed: Receipt) {
        self.messages += 1;
        self.position = confirmed.position;
        self.replayed += usize::from(confirmed.is_replayed);
        self.nodes = self.nodes.max(confirmed.nodes);
        let Some(reached) = confirmed.sockets else {
            // The nodes were not asked when it was emitted first.
            return;
        };
        self.nobody += usize::from(reached == 0);
        let none = Asked::Confirmed {
            sockets: 0,
            silent: BTreeSet::new(),
        };
        if let Asked::Confirmed { sockets, silent } = self.asked.get_or_insert(none) {
            *sockets += reached;
            silent.extend(confirmed.silent_nodes);
        }
    }

    /// Adds the acknowledgements. `--ack` takes one message, so there are no earlier
    /// ones.
    pub(super) fn acknowledged(&mut self, acks: Answers<Value>) {
        let asked = acks.answers.len() + acks.missing.len() + acks.missing_unnamed;
        self.messages += 1;
        self.nobody += usize::from(asked == 0);
        self.nodes = self.nodes.max(acks.nodes);
        self.asked = Some(Asked::Acks {
            answers: acks.answers,
            missing: acks.missing.iter().map(ToString::to_string).collect(),
            missing_unnamed: acks.missing_unnamed,
            silent: acks.silent_nodes.into_iter().collect(),
        });
    }

    /// The exit status if nothing failed.
    pub(super) fn status(&self) -> Status {
        let is_complete = match &self.asked {
            None => true,
            Some(Asked::Confirmed { silent, .. }) => silent.is_empty(),
            Some(Asked::Acks {
                missing,
                missing_unnamed,
                silent,
                ..
            }) => missing.is_empty() && *missing_unnamed == 0 && silent.is_empty(),
        };
        match self {
            // Before `Nobody`: with silent nodes, it is unknown whether a client was reached.
            _ if !is_complete => Status::Incomplete,
            _ if self.messages > 0 && self.nobody == self.messages => Status::Nobody,
            _ => Status::Delivered,
        }
    }

    /// One JSON object, for scripts.
    pub(super) fn json(&self, failure: Option<&Failure>) -> Value {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        put("messages", json!(self.messages));
        put("reached_nobody", json!(self.nobody));
        if self.replayed > 0 {
            put("is_replayed", json!(self.replayed == self.messages));
            put("replayed", json!(self.replayed));
        }
        if let Some(position) = self.position {
            put("position", json!(position));
        }
        match &self.asked {
            None => {
                put("nodes", json!(self.nodes));
                if let Some(members) = self.members {
                    put("nodes_with_members", json!(members));
                }
            }
            Some(Asked::Confirmed { sockets, silent }) => {
                put("nodes", json!(self.nodes));
                put("sockets", json!(sockets));
                put("silent_nodes", json!(silent));
            }
            Some(Asked::Acks {
                answers,
                missing,
                missing_unnamed,
                silent,
            }) => {
                let acknowledged = answers.len();
                put("nodes", json!(self.nodes));
                put(
                    "sockets",
                    json!(acknowledged + missing.len() + missing_unnamed),
                );
                put("acknowledged", json!(acknowledged));
                put("answers", json!(answers));
                put("missing", json!(missing));
                put("missing_unnamed", json!(missing_unnamed));
                put("silent_nodes", json!(silent));
            }
        }
        if let Some(failure) = failure {
            put("error", json!(failure.to_string()));
        }
        let status = failure.map_or_else(|| self.status(), Failure::status);
        put("status", json!(status as u8));
        Value::Object(fields)
    }

    /// Lines for people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if self.replayed > 0 && self.replayed == self.messages {
            text += "emitted before with this idempotency key:\n";
        } else if self.replayed > 0 {
            text += &format!(
                "{} of them emitted before with this idempotency key:\n",
                self.replayed
            );
        }
        let silent = match &self.asked {
            None => {
                text += &format!(
                    "{} emitted, taken by {}\n",
                    count(self.messages, "message"),
                    count(self.nodes, "node")
                );
                if let Some(members) = self.members.filter(|members| *members < self.nodes) {
                    text += &format!(
                        "{members} of them with members of the room; the others, such as Node.js \
                         servers, receive every message\n"
                    );
                }
                None
            }
            Some(Asked::Confirmed { sockets, silent }) => {
                text += &format!(
                    "{} emitted, reached {} on {}\n",
                    count(self.messages, "message"),
                    count(*sockets, "socket"),
                    count(self.nodes, "node")
                );
                Some(silent)
            }
            Some(Asked::Acks {
                answers,
                missing,
                missing_unnamed,
                silent,
            }) => {
                answers
                    .iter()
                    .for_each(|answer| text += &format!("{answer}\n"));
                text += &format!(
                    "{}, {} missing\n",
                    count(answers.len(), "answer"),
                    missing.len() + missing_unnamed
                );
                Some(silent)
            }
        };
        if let Some(silent) = silent.filter(|silent| !silent.is_empty()) {
            let names: Vec<_> = silent.iter().map(String::as_str).collect();
            text += &format!("silent: {}\n", names.join(", "));
        }
        if self.messages > 1 && self.nobody > 0 {
            text += &format!("{} of them had no recipient\n", self.nobody);
        }
        text
    }
}

/// Prints the result. Returns the exit status.
pub(super) fn conclude(tally: &Tally, failure: Option<&Failure>, as_json: bool) -> Status {
    let said = if as_json {
        writeln!(io::stdout(), "{}", tally.json(failure))
    } else {
        say(tally, failure)
    };
    match (failure, said) {
        // A failure counts more than a result that cannot be written.
        (Some(failure), _) => failure.status(),
        (None, Err(_)) => Status::Other,
        (None, Ok(())) => tally.status(),
    }
}

fn say(tally: &Tally, failure: Option<&Failure>) -> io::Result<()> {
    // Messages before a failure were emitted, so their result is shown as well.
    if tally.messages > 0 || failure.is_none() {
        io::stdout().write_all(tally.text().as_bytes())?;
    }
    match failure {
        Some(failure) => writeln!(io::stderr(), "error: {failure}"),
        None if tally.status() == Status::Nobody => {
            writeln!(io::stderr(), "the message had no recipient")
        }
        None => Ok(()),
    }
}

fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
