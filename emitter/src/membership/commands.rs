//! The commands that find the members of a namespace, and their replies.
//!
//! Two steps: the leases, on the server that holds their key; then the numbers of
//! subscribers, on all primaries, since each server knows only its own. This module does
//! no I/O.

use std::sync::Arc;

use redis::Value;
use roomcast_protocol::{
    channel::{Channels, Dialect, uid},
    id::NodeId,
};

use super::roster::{Counted, Leases, MAX_NODES};
use crate::redis::Reply;

/// The command for the leases, those that end last first.
pub fn leases(channels: &Channels) -> Vec<String> {
    // Each node has its lease and its settings.
    let last = (2 * MAX_NODES - 1).to_string();
    ["ZREVRANGE", &channels.leases(), "0", &last, "WITHSCORES"]
        .map(str::to_owned)
        .into()
}

/// The command for Redis's clock, in which leases end; for the same server.
pub const TIME: [&str; 1] = ["TIME"];

/// Prefix of the entries in which nodes state their settings, next to their leases and with the
/// same score: `with:SETTINGS:NODE`. No node has such a name.
pub const SETTINGS: &str = "with:";

/// Reads the replies to [`leases`] and [`TIME`]. `None` if they have another form.
pub fn read_leases(leases: &Value, time: &Value) -> Option<Leases> {
    let now = read_time(time)?;
    let mut held = Vec::new();
    for (node, end) in leases.pairs()? {
        let node = node.text()?;
        if !node.starts_with(SETTINGS) {
            // A score is a float; a foreign program may have written anything.
            held.push((NodeId::new(node), end.number()? as u64));
        }
    }
    Some(Leases::new(held, now))
}

/// Reads the reply to [`TIME`], in milliseconds.
pub fn read_time(time: &Value) -> Option<u64> {
    let [seconds, micros] = time.list()? else {
        return None;
    };
    let millis = seconds.integer()?.checked_mul(1_000)?;
    u64::try_from(millis.checked_add(micros.integer()? / 1_000)?).ok()
}

/// The command for the numbers of subscribers: first of the channels that every member subscribes,
/// then of each leased node's own, then of the channel that it has regardless of its namespaces.
pub fn subscribers(channels: &Channels, namespace: &str, leases: &Leases) -> Vec<String> {
    let command = match channels.dialect() {
        Dialect::Classic | Dialect::Streams => "NUMSUB",
        Dialect::Sharded(_) => "SHARDNUMSUB",
    };
    let mut args = vec!["PUBSUB".to_owned(), command.to_owned()];
    args.push(channels.request(namespace));
    args.extend(channels.response(namespace));
    args.extend(leases.nodes().map(|node| {
        let uid = uid(node, namespace, channels.dialect());
        channels.response_of(namespace, uid.as_str())
    }));
    args.extend(leases.nodes().map(|node| channels.node(node)));
    args
}

/// Adds up the replies to [`subscribers`], one of each primary. `None` if they have another form.
pub fn count<'a>(
    channels: &Channels,
    leases: &Arc<Leases>,
    replies: impl IntoIterator<Item = &'a Value>,
) -> Option<Counted> {
    let common = match channels.dialect() {
        Dialect::Classic => 2,
        Dialect::Sharded(_) | Dialect::Streams => 1,
    };
    let nodes = leases.nodes().len();
    let mut counts = vec![0_usize; common + 2 * nodes];
    for reply in replies {
        let pairs = reply.pairs()?;
        if pairs.len() != counts.len() {
            return None;
        }
        for (count, (_, subscribers)) in counts.iter_mut().zip(pairs) {
            let subscribers = usize::try_from(subscribers.integer()?).ok()?;
            *count = count.saturating_add(subscribers);
        }
    }
    let anywhere = counts.split_off(common + nodes);
    let own = counts.split_off(common);
    Some(Counted {
        leases: Arc::clone(leases),
        // A connection with only one of them is a tool, not a member.
        subscribers: counts.into_iter().min()?,
        own,
        anywhere,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_protocol::channel::Mode;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn counts(numbers: &[i64]) -> Value {
        let pair = |number: &i64| [text("channel"), Value::Int(*number)];
        Value::Array(numbers.iter().flat_map(pair).collect())
    }

    fn two_leases() -> Leases {
        let held = ["one", "2000", "two", "1500.5"].map(text).into();
        let time = Value::Array(vec![text("1"), text("600000")]);
        read_leases(&Value::Array(held), &time).unwrap()
    }

    #[test]
    fn leases_are_compared_with_the_clock_of_redis() {
        let leases = two_leases();
        assert_eq!((leases.nodes().len(), leases.alive()), (2, 1));
        for (held, time) in [
            (Value::Nil, counts(&[1])),
            (Value::Array(vec![]), Value::Nil),
            (Value::Array(vec![text("a"), text("soon")]), counts(&[1])),
            (Value::Array(vec![]), Value::Array(vec![text("1")])),
        ] {
            assert_eq!(read_leases(&held, &time), None, "{held:?} {time:?}");
        }
    }

    #[test]
    fn counts_of_all_primaries_are_summed_and_the_smaller_channel_counts() {
        let channels = Channels::new("p", Dialect::Classic);
        let leases = Arc::new(two_leases());
        let command = subscribers(&channels, "/chat", &leases);
        assert_eq!(
            command[..4],
            ["PUBSUB", "NUMSUB", "p-request#/chat#", "p-response#/chat#"]
        );
        assert_eq!(command.len(), 8);
        let replies = [counts(&[3, 2, 1, 0, 0, 0]), counts(&[1, 1, 0, 0, 1, 0])];
        let roster = count(&channels, &leases, &replies).unwrap().roster();
        assert_eq!(roster.alive, [NodeId::new("one")]);
        assert_eq!((roster.stalled.len(), roster.foreign), (0, 2));
        assert!(roster.deaf.is_empty());
        let deaf = count(&channels, &leases, &[counts(&[1, 1, 0, 0, 0, 0])]).unwrap();
        assert_eq!(deaf.roster().deaf, [NodeId::new("one")]);
    }

    #[test]
    fn the_sharded_dialect_has_one_channel_for_all() {
        let channels = Channels::new("p", Dialect::Sharded(Mode::Dynamic));
        let leases = Arc::new(two_leases());
        let command = subscribers(&channels, "/", &leases);
        assert_eq!(command[..3], ["PUBSUB", "SHARDNUMSUB", "p#/#"]);
        assert!(command[3].starts_with("p#/#") && command[3].len() == "p#/#".len() + 17);
        let found = count(&channels, &leases, [&counts(&[2, 1, 1, 1, 1])])
            .unwrap()
            .roster();
        assert_eq!((found.stalled.len(), found.foreign), (1, 0));
        assert_eq!(count(&channels, &leases, [&counts(&[2])]), None);
        assert_eq!(count(&channels, &leases, [&Value::Nil]), None);
    }
}
