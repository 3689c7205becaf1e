//! The result of a broadcast, wherever it was made: by an emitter, by a server, or over
//! the HTTP API.

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::{args::Args, message::Position, target::Target};

/// The known facts about a broadcast.
///
/// A field is `None` if it was not requested: `sockets` unless the nodes were asked how many
/// sockets they reached, `acknowledged` unless the clients were asked for
/// acknowledgements. So nothing in it is a guess.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Receipt {
    /// Its place in the journal of the namespace, if it was stored there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Nodes that took the message: those that responded if they were asked, and
    /// otherwise the connections to which Redis passed it.
    pub nodes: usize,
    /// Sockets that it reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<usize>,
    /// Sockets whose clients acknowledged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<usize>,
    /// Nodes that were asked and did not respond in time. Servers of other make appear as
    /// `foreign`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent_nodes: Vec<String>,
    /// Whether this is the receipt of an earlier broadcast with the same idempotency key,
    /// so that nothing was published now.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_replayed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Receipt {
    /// A receipt with only the position and the number of nodes.
    pub fn new(position: Option<Position>, nodes: usize) -> Self {
        Self {
            position,
            nodes,
            ..Self::default()
        }
    }

    /// The receipt of a broadcast with acknowledgements, and the number of missing ones.
    pub fn with_acknowledgements(
        nodes: usize,
        acknowledged: usize,
        missing: usize,
        silent_nodes: &[String],
    ) -> Self {
        Self {
            sockets: Some(acknowledged + missing),
            acknowledged: Some(acknowledged),
            silent_nodes: silent_nodes.to_vec(),
            ..Self::new(None, nodes)
        }
    }
}

/// Identifies a broadcast, so that an idempotency key cannot be used for two. The order
/// of rooms and the white space of the arguments make no difference, because a retry may
/// come through another door.
pub fn fingerprint(target: &Target, event: &str, args: &Args) -> String {
    let sorted = |names: &[Box<str>]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        names
    };
    let json = serde_json::from_str::<serde_json::Value>(args.json());
    let json = json.map_or_else(|_| args.json().to_owned(), |json| json.to_string());
    let parts = (sorted(&target.rooms), sorted(&target.except), event, json);
    let mut hash = Sha1::new();
    hash.update(serde_json::to_vec(&parts).unwrap_or_default());
    for attachment in args.attachments() {
        hash.update((attachment.len() as u64).to_be_bytes());
        hash.update(attachment);
    }
    let hash = hash.finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
