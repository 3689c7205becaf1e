//! The outcomes of emits and questions.

use serde::Serialize;

use roomcast_protocol::{
    args::{Args, FromArgs},
    id::SocketId,
    message::Position,
    question::{Answer, Answered, Description},
    receipt::Receipt,
};

/// The outcome of a broadcast or of a command to sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Delivery {
    /// Connections that received it from Redis: the subscribers of the channel. Zero is
    /// not an error, because rooms may be empty. On a Redis Cluster in the classic
    /// dialect, only subscribers of one Redis node are counted; the others receive it,
    /// too.
    pub nodes: usize,
    /// How many of these subscribe to the channel of the room itself, because they have
    /// members. The others receive every message and may have no member, as Node's
    /// servers do. `None` unless
    /// [`Builder::count_members`](crate::Builder::count_members) is set, and for messages
    /// that do not go to exactly one room with a channel of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<usize>,
    /// Its place in the journal of the namespace, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Whether this is the result of an earlier emit with the same idempotency key, so
    /// that nothing was published now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_replayed: bool,
}

impl Delivery {
    /// One about which only the number of nodes is known.
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            members: None,
            position: None,
            is_replayed: false,
        }
    }
}

impl From<Delivery> for Receipt {
    fn from(delivery: Delivery) -> Self {
        let mut receipt = Self::new(delivery.position, delivery.nodes);
        receipt.is_replayed = delivery.is_replayed;
        receipt
    }
}

/// The outcome of a broadcast with acknowledgements.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Answers<T> {
    /// The acknowledgements, node by node in order of arrival.
    pub answers: Vec<T>,
    /// Sockets that did not acknowledge in time, disconnected, or sent another type.
    pub missing: Vec<SocketId>,
    /// The number of further such sockets, on servers that do not report their ids.
    pub missing_unnamed: usize,
    /// Nodes that responded.
    pub nodes: usize,
    /// Nodes that did not report whether they have selected sockets. Servers of other
    /// make appear as `foreign`.
    pub silent_nodes: Vec<String>,
}

/// The selected sockets.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Fetched {
    /// The sockets, node by node.
    pub sockets: Vec<Description>,
    /// Nodes that did not respond in time. Servers of other make appear as `foreign`.
    pub silent_nodes: Vec<String>,
}

impl<T> Answers<T> {
    /// The same as a receipt: with the number of sockets that were asked, and of those
    /// that acknowledged.
    pub fn receipt(&self) -> Receipt {
        let missing = self.missing.len() + self.missing_unnamed;
        Receipt::with_acknowledgements(self.nodes, self.answers.len(), missing, &self.silent_nodes)
    }
}

/// The receipt of a broadcast about which the nodes were asked.
pub(super) fn confirmed(position: Option<Position>, answered: &Answered) -> Receipt {
    let mut receipt = Receipt::new(position, answered.answers.len());
    receipt.sockets = Some(answered.answers.iter().map(Answer::reached).sum());
    receipt.silent_nodes = answered.silent_names();
    receipt
}

impl<T: FromArgs> From<Answered> for Answers<T> {
    fn from(answered: Answered) -> Self {
        let mut answers = Self {
            answers: Vec::new(),
            missing: Vec::new(),
            missing_unnamed: 0,
            nodes: answered.answers.len(),
            silent_nodes: answered.silent_names(),
        };
        for answer in answered.answers {
            if let Answer::Acks {
                answers: given,
                missing,
                missing_unnamed,
            } = answer
            {
                for (socket, args) in given {
                    answers.add(socket, &args);
                }
                answers.missing.extend(missing);
                answers.missing_unnamed += missing_unnamed;
            }
        }
        answers
    }
}

impl<T: FromArgs> Answers<T> {
    fn add(&mut self, socket: Option<SocketId>, args: &Args) {
        match (T::from_args(args), socket) {
            (Ok(answer), _) => self.answers.push(answer),
            (Err(_), Some(socket)) => self.missing.push(socket),
            (Err(_), None) => self.missing_unnamed += 1,
        }
    }
}

impl From<Answered> for Fetched {
    fn from(answered: Answered) -> Self {
        let silent_nodes = answered.silent_names();
        let sockets = answered
            .answers
            .into_iter()
            .flat_map(|answer| match answer {
                Answer::Sockets(sockets) => sockets,
                _ => Vec::new(),
            });
        Self {
            sockets: sockets.collect(),
            silent_nodes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_protocol::id::NodeId;

    fn args(json: &str) -> Args {
        Args::from_text(json.into(), Vec::new()).unwrap()
    }

    #[test]
    fn reached_sockets_are_summed_in_whatever_form_a_server_answers() {
        let described = Description {
            id: SocketId::new("c"),
            rooms: Vec::new(),
            data: serde_json::Value::Null,
            handshake: serde_json::Value::Null,
        };
        let answered = Answered {
            answers: vec![
                Answer::Reached(3),
                Answer::SocketIds(vec![SocketId::new("a"), SocketId::new("b")]),
                Answer::Sockets(vec![described]),
            ],
            silent: vec![NodeId::new("n")],
        };
        let confirmed = confirmed(None, &answered);
        assert_eq!((confirmed.sockets, confirmed.nodes), (Some(6), 3));
        assert_eq!(confirmed.silent_nodes, ["n"]);
    }

    #[test]
    fn an_answer_of_another_type_is_a_missing_one() {
        let socket = |name| Some(SocketId::new(name));
        let answered = Answered {
            answers: vec![
                Answer::Acks {
                    answers: vec![
                        (socket("a"), args("[1]")),
                        (socket("b"), args("[\"x\"]")),
                        (None, args("[null]")),
                    ],
                    missing: vec![SocketId::new("c")],
                    missing_unnamed: 2,
                },
                Answer::Acks {
                    answers: vec![(None, args("[2]"))],
                    missing: Vec::new(),
                    missing_unnamed: 0,
                },
            ],
            silent: Vec::new(),
        };
        let answers = Answers::<u64>::from(answered);
        assert_eq!(answers.answers, [1, 2]);
        assert_eq!(answers.missing, [SocketId::new("b"), SocketId::new("c")]);
        assert_eq!(answers.missing_unnamed, 3);
        let receipt = answers.receipt();
        assert_eq!(
            (receipt.sockets, receipt.acknowledged, receipt.nodes),
            (Some(7), Some(2), 2)
        );
    }
}
