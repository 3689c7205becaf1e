//! The result of a broadcast, wherever it was made: by an emitter, by a server, or over
//! the HTTP API.

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::{
    args::Args,
    message::Position,
    target::{Flags, Target},
};

/// The known facts about a broadcast.
///
/// A field is `None` if it was not requested: `sockets` unless the nodes were asked how many
/// sockets they reached, `acknowledged` unless the clients were asked for
/// acknowledgements. So no field is a guess.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Receipt {
    /// Its place in the journal of the namespace, if it was stored there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Nodes that received the message: those that responded if they were asked, and otherwise the
    /// connections to which Redis delivered it.
    pub nodes: usize,
    /// Sockets that it reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<usize>,
    /// Sockets whose clients acknowledged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<usize>,
    /// Nodes that were asked and did not respond in time. Node.js servers appear as `foreign`.
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
/// of rooms and the white space of the arguments make no difference, because a retry may use
/// another interface. Flags that change the receivers or their guarantees do make a difference.
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
    let flags = effective(&target.flags);
    let text = match flags.is_empty() {
        // As before there were flags in it, because Redis keeps fingerprints during an update.
        true => serde_json::to_vec(&parts),
        false => serde_json::to_vec(&(parts, flags)),
    };
    let mut hash = Sha1::new();
    hash.update(text.unwrap_or_default());
    for attachment in args.attachments() {
        hash.update((attachment.len() as u64).to_be_bytes());
        hash.update(attachment);
    }
    let hash = hash.finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names of the set flags that distinguish two broadcasts of the same event.
fn effective(flags: &Flags) -> Vec<&'static str> {
    let Flags {
        volatile,
        local,
        at_least_once,
        // Neither the receivers nor what they receive depend on these.
        compress: _,
        timeout: _,
    } = *flags;
    let names = [
        ("volatile", volatile),
        ("local", local),
        ("at_least_once", at_least_once),
    ];
    let set = names.into_iter().filter(|(_, is_set)| *is_set);
    set.map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(change: impl FnOnce(&mut Target)) -> String {
        let mut target = Target::default();
        target.add_rooms(["a", "b"]);
        change(&mut target);
        fingerprint(&target, "e", &Args::encode(&(1,)).unwrap())
    }

    #[test]
    fn a_broadcast_with_other_receivers_or_another_promise_is_another_one() {
        let plain = of(|_| {});
        // Redis may keep fingerprints of an earlier version.
        assert_eq!(plain, "0bbab28242fa1a205d587be5f30d70677c5d0bdf");
        let others = [
            of(|target| target.add_rooms("c")),
            of(|target| target.add_except("c")),
            of(|target| target.flags.volatile = true),
            of(|target| target.flags.local = true),
            of(|target| target.flags.at_least_once = true),
            plain,
        ];
        for (index, one) in others.iter().enumerate() {
            assert!(!others[..index].contains(one), "{index}");
        }
    }

    #[test]
    fn a_repetition_in_another_form_is_the_same_broadcast() {
        let plain = of(|_| {});
        assert_eq!(of(|target| target.rooms.reverse()), plain);
        assert_eq!(of(|target| target.flags.compress = Some(false)), plain);
        let timeout = Some(Duration::from_secs(1));
        assert_eq!(of(|target| target.flags.timeout = timeout), plain);
    }
}
