//! Builds and parses the names of a cluster's channels.
//!
//! All names begin with the prefix of the deployment, because Redis has no other way to
//! keep deployments apart: channels ignore the database number. The names are those of
//! Node's adapters, except for the probe and the leases. The streams dialect has the
//! channels of the sharded one with static mode, and one stream for all namespaces.
//!
//! ```text
//!                classic                          sharded
//! broadcasts     prefix#/chat#                    prefix#/chat#
//! one room       prefix#/chat#room#               prefix#/chat#room#   (by mode)
//! requests       prefix-request#/chat#            prefix#/chat#
//! responses      prefix-response#/chat#           prefix#/chat#
//! to one node    prefix-response#/chat#uid#       prefix#/chat#uid#
//! ```

use std::fmt;

use sha1::{Digest, Sha1};

use crate::{id::NodeId, message::Message, target::Target};

/// The sender that emitters state instead of a [`Uid`]. No node has it, so none takes the message
/// for its own.
pub const EMITTER_UID: &str = "emitter";

/// The sender of stored broadcasts instead of a [`Uid`], because the publishing node receives them,
/// too.
pub const LOG_UID: &str = "log";

/// Which of Node's Redis adapters the cluster is compatible with. All nodes must use the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// `createAdapter` and the official emitters: PUBLISH.
    #[default]
    Classic,
    /// `createShardedAdapter`: SPUBLISH, which needs Redis 7.
    Sharded(Mode),
    /// `@socket.io/redis-streams-adapter`: XADD for messages, PUBLISH for questions and answers.
    Streams,
}

impl Dialect {
    /// Whether channels belong to sharded pub/sub.
    pub fn is_sharded(self) -> bool {
        matches!(self, Self::Sharded(_))
    }
}

/// The rooms that have a separate channel in the sharded dialect (Node's `subscriptionMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// None.
    Static,
    /// All but private rooms. Node regards a room as private if its name has 20 characters.
    Dynamic,
    /// All.
    DynamicPrivate,
}

/// The content of a channel. In the sharded dialect every channel counts as [`Kind::Broadcast`],
/// because the type is in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Broadcasts.
    Broadcast,
    /// Commands and questions.
    Request,
    /// Answers to questions.
    Response,
}

/// The name under which other nodes know a node in one namespace. 6 URL-safe characters in the
/// classic dialect, 16 hexadecimal digits in the others, as Node's adapters draw them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uid(Box<str>);

impl Uid {
    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uid({})", self.0)
    }
}

/// The uid of a node in a namespace. It is derived from the node's name and not random, so that
/// another node can look for the response channel of a node whose name it knows.
pub fn uid(node: &NodeId, namespace: &str, dialect: Dialect) -> Uid {
    // Not `id::ALPHABET`: its last two characters are in the other order, and a uid must
    // not change.
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digest = Sha1::new()
        .chain_update(node.as_str())
        .chain_update([0])
        .chain_update(namespace)
        .finalize();
    let letter = |of: &[u8], index: u8| char::from(of[usize::from(index)]);
    let text: String = match dialect {
        Dialect::Classic => digest[..6]
            .iter()
            .map(|byte| letter(ALPHABET, byte & 63))
            .collect(),
        Dialect::Sharded(_) | Dialect::Streams => digest[..8]
            .iter()
            .flat_map(|byte| [letter(HEX, byte >> 4), letter(HEX, byte & 15)])
            .collect(),
    };
    Uid(text.into())
}

/// Builds and parses the names of channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    prefix: Box<str>,
    dialect: Dialect,
    stream: Box<str>,
}

/// One way to parse the name of a channel. Both a namespace and a room may contain `#`,
/// so there may be several; the message itself names its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedChannel<'a> {
    /// The content of the channel.
    pub kind: Kind,
    /// The namespace.
    pub namespace: &'a str,
    /// The room of a broadcast channel, or the uid of a response channel. `None` if the channel is
    /// for the whole namespace.
    pub rest: Option<&'a str>,
}

impl Channels {
    /// Node's default prefix is `socket.io` (its options `key` and `channelPrefix`).
    pub fn new(prefix: &str, dialect: Dialect) -> Self {
        Self {
            prefix: prefix.into(),
            dialect,
            stream: prefix.into(),
        }
    }

    /// Sets the key of the stream in the streams dialect (Node's `streamName`). Default:
    /// the prefix, which is Node's default for both.
    #[must_use]
    pub fn with_stream(mut self, key: &str) -> Self {
        self.stream = key.into();
        self
    }

    /// The key of the stream in the streams dialect.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The prefix of all names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The dialect.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The channel of broadcasts to a namespace.
    pub fn broadcast(&self, namespace: &str) -> String {
        // Built for every message: `concat` allocates once, `format!` several times.
        [&*self.prefix, "#", namespace, "#"].concat()
    }

    /// The channel of broadcasts to one room. Nodes subscribe to it while the room has members.
    pub fn room(&self, namespace: &str, room: &str) -> String {
        [&*self.prefix, "#", namespace, "#", room, "#"].concat()
    }

    /// The channel for a message. A broadcast that is also a question (`is_question`),
    /// because it needs acknowledgements or a receipt, goes to the request channel.
    pub(crate) fn for_message(
        &self,
        namespace: &str,
        message: &Message,
        is_question: bool,
    ) -> String {
        match message {
            Message::Broadcast(broadcast) if !is_question => {
                self.parts_for_target(namespace, &broadcast.target).concat()
            }
            _ => self.request(namespace),
        }
    }

    /// The parts of the name of the channel for a broadcast to this target, to be concatenated.
    pub fn parts_for_target<'a>(&'a self, namespace: &'a str, target: &'a Target) -> [&'a str; 6] {
        let has_channel = |room: &&str| match self.dialect {
            Dialect::Classic => true,
            Dialect::Sharded(mode) => mode.has_channel(room),
            Dialect::Streams => false,
        };
        match only_room(target).filter(has_channel) {
            Some(room) => [&self.prefix, "#", namespace, "#", room, "#"],
            None => [&self.prefix, "#", namespace, "#", "", ""],
        }
    }

    /// The channel of commands and questions. Every node must have exactly one subscription to it,
    /// because Node counts the servers by these subscriptions.
    pub fn request(&self, namespace: &str) -> String {
        match self.dialect {
            Dialect::Classic => format!("{}-request#{namespace}#", self.prefix),
            Dialect::Sharded(_) | Dialect::Streams => self.broadcast(namespace),
        }
    }

    /// The channel on which Node's servers answer everybody by default. `None` in the other
    /// dialects, which have no such channel.
    pub fn response(&self, namespace: &str) -> Option<String> {
        match self.dialect {
            Dialect::Classic => Some(format!("{}-response#{namespace}#", self.prefix)),
            Dialect::Sharded(_) | Dialect::Streams => None,
        }
    }

    /// The channel of answers to one node.
    pub fn response_of(&self, namespace: &str, uid: &str) -> String {
        match self.dialect {
            Dialect::Classic => format!("{}-response#{namespace}#{uid}#", self.prefix),
            Dialect::Sharded(_) | Dialect::Streams => self.room(namespace, uid),
        }
    }

    /// The pattern of the private rooms of all sockets of a node: their ids have 20 characters and
    /// begin with the node's tag.
    pub fn private_rooms_pattern(&self, namespace: &str, tag: &str) -> String {
        const REST_OF_THE_ID: &str = "????????????????";
        let (prefix, namespace) = (escaped(&self.prefix), escaped(namespace));
        format!("{prefix}#{namespace}#{}{REST_OF_THE_ID}#", escaped(tag))
    }

    /// The pattern that matches the channels of all rooms of a namespace, and not its own channel.
    pub fn rooms_pattern(&self, namespace: &str) -> String {
        format!("{}#{}#?*", escaped(&self.prefix), escaped(namespace))
    }

    /// The pattern that matches the request channel alone.
    pub fn request_pattern(&self, namespace: &str) -> String {
        escaped(&self.request(namespace))
    }

    /// A channel of one node, which publishes probes to itself to see whether messages
    /// arrive. In a Redis cluster the name is in the hash slot `slot_hint`, unless the
    /// prefix has a hash tag, which puts all names into one slot.
    pub fn probe(&self, node: &NodeId, slot_hint: u16) -> String {
        let stem = format!("{}-probe#{node}#", self.prefix);
        let name = |number: u32| format!("{stem}{number}#");
        if stem.contains('{') {
            return name(0);
        }
        let start = crc16(0, stem.as_bytes());
        (0..PROBE_TRIES)
            .map(|number| number.to_string() + "#")
            .find(|end| crc16(start, end.as_bytes()) % SLOTS == slot_hint % SLOTS)
            .map_or_else(|| name(0), |end| stem.clone() + &end)
    }

    /// A channel of one node, to which it is subscribed regardless of its namespaces.
    /// Nothing is published there; the subscription shows that the node can receive.
    pub fn node(&self, node: &NodeId) -> String {
        format!("{}-node#{node}#", self.prefix)
    }

    /// The key of the sorted set in which nodes renew their leases.
    pub fn leases(&self) -> String {
        format!("{}-nodes", self.prefix)
    }

    /// The key of the log of a namespace. The keys of its rooms begin with it and `#`. In a Redis
    /// cluster all of them are in the slot of the namespace's [channel](Self::broadcast), because a
    /// script may touch the keys and sharded channels of one slot only.
    pub fn log(&self, namespace: &str) -> String {
        self.in_slot_of(&self.broadcast(namespace), namespace)
    }

    fn in_slot_of(&self, key: &str, namespace: &str) -> String {
        let name = |tag: &str| format!("{}-log{{{tag}}}#{namespace}", self.prefix);
        let wanted = slot(key);
        // A brace in the prefix, the namespace or the key changes the hash tag that Redis uses.
        let mut names = std::iter::once(name(key))
            .chain((0..PROBE_TRIES).map(|number| name(&number.to_string())));
        let found = names.find(|name| slot(name) == wanted);
        found.unwrap_or_else(|| name(key))
    }

    /// The key of the journal of a namespace, in the slot of its [log](Self::log).
    pub fn journal(&self, namespace: &str) -> String {
        self.log(namespace) + "!"
    }

    /// The key under which the nodes write the limits of the journal of a namespace, for
    /// emitters, which append to it. In the slot of its [log](Self::log).
    pub fn journal_limits(&self, namespace: &str) -> String {
        self.log(namespace) + "?"
    }

    /// The key under which the result of a broadcast with this idempotency key is kept. In the slot of the
    /// [log](Self::log) of the namespace or, in the streams dialect, of the stream.
    pub fn once(&self, namespace: &str, key: &str) -> String {
        let log = match self.dialect {
            Dialect::Streams => self.in_slot_of(&self.stream, namespace),
            Dialect::Classic | Dialect::Sharded(_) => self.log(namespace),
        };
        [&*log, "~", key].concat()
    }

    /// The key of the session of a client that may come back to a namespace.
    pub fn session(&self, namespace: &str, pid: &str) -> String {
        format!("{}-session#{namespace}#{pid}", self.prefix)
    }

    /// Parses the name of a channel in every possible way, shortest namespace first. Yields nothing
    /// if it is not a channel of the deployment. There are as many ways as the name has `#`, so a
    /// caller has to limit the number that it checks.
    pub fn parse<'a>(&self, channel: &'a str) -> impl Iterator<Item = ParsedChannel<'a>> + use<'a> {
        let (kind, rest) = self.split(channel).unwrap_or((Kind::Broadcast, ""));
        let has_rest = kind != Kind::Request;
        let whole = rest.strip_suffix('#');
        let cut = whole.filter(|_| has_rest).into_iter().flat_map(|whole| {
            whole
                .match_indices('#')
                .map(|(at, _)| (&whole[..at], Some(&whole[at + 1..])))
        });
        cut.chain(whole.map(|whole| (whole, None)))
            .map(move |(namespace, rest)| ParsedChannel {
                kind,
                namespace,
                rest,
            })
    }

    /// The room of a broadcast channel of the namespace: `None` if the channel is not one,
    /// `Some(None)` if it is the channel of the whole namespace.
    pub fn room_of<'a>(&self, channel: &'a str, namespace: &str) -> Option<Option<&'a str>> {
        let rest = channel
            .strip_prefix(&*self.prefix)?
            .strip_prefix('#')?
            .strip_prefix(namespace)?
            .strip_prefix('#')?;
        if rest.is_empty() {
            return Some(None);
        }
        rest.strip_suffix('#').map(Some)
    }

    fn split<'a>(&self, channel: &'a str) -> Option<(Kind, &'a str)> {
        let rest = channel.strip_prefix(&*self.prefix)?;
        if let Some(rest) = rest.strip_prefix('#') {
            return Some((Kind::Broadcast, rest));
        }
        if self.dialect != Dialect::Classic {
            return None;
        }
        let request = rest.strip_prefix("-request#").map(|r| (Kind::Request, r));
        request.or_else(|| rest.strip_prefix("-response#").map(|r| (Kind::Response, r)))
    }
}

impl Mode {
    /// Whether a sender uses the room's channel. Nodes may subscribe to more channels than that.
    pub fn has_channel(self, room: &str) -> bool {
        match self {
            Self::Static => false,
            // JavaScript counts UTF-16 units.
            Self::Dynamic => room.encode_utf16().count() != 20,
            Self::DynamicPrivate => true,
        }
    }
}

/// The hash slot of a key or a sharded channel in a Redis cluster, from 0 to [`SLOTS`] - 1.
pub fn slot(name: &str) -> u16 {
    let tag = name.split_once('{').and_then(|(_, rest)| {
        let (tag, _) = rest.split_once('}')?;
        (!tag.is_empty()).then_some(tag)
    });
    crc16(0, tag.unwrap_or(name).as_bytes()) % SLOTS
}

/// The number of hash slots of a Redis cluster.
pub const SLOTS: u16 = 16384;

/// One in [`SLOTS`] numbers gives the wanted slot, so all but one in a billion searches succeed
/// within this many.
const PROBE_TRIES: u32 = 21 * SLOTS as u32;

/// The room of a target that has exactly one.
fn only_room(target: &Target) -> Option<&str> {
    let (first, others) = target.rooms.split_first()?;
    others.iter().all(|room| room == first).then_some(first)
}

fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for letter in name.chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
            text.push('\\');
        }
        text.push(letter);
    }
    text
}

/// CRC-16 with the polynomial 0x1021, without reflection, continued from the remainder `crc`.
fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            let carry = crc & 0x8000 != 0;
            crc << 1 ^ if carry { 0x1021 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{args::Args, message::Broadcast};

    fn classic() -> Channels {
        Channels::new("socket.io", Dialect::Classic)
    }

    fn to_rooms(rooms: &[&str]) -> Message {
        let target = Target {
            rooms: rooms.iter().map(|room| Box::from(*room)).collect(),
            ..Target::default()
        };
        Message::Broadcast(Broadcast {
            target,
            event: "e".into(),
            args: Args::default(),
        })
    }

    #[test]
    fn a_uid_is_the_same_for_the_same_node_and_namespace_alone() {
        let (one, other) = (NodeId::new("AAAAone"), NodeId::new("AAAAother"));
        for (dialect, length) in [(Dialect::Classic, 6), (Dialect::Sharded(Mode::Dynamic), 16)] {
            let first = uid(&one, "/", dialect);
            assert_eq!(first.as_str().len(), length);
            assert_eq!(first, uid(&one, "/", dialect));
            assert_ne!(first, uid(&one, "/chat", dialect));
            assert_ne!(first, uid(&other, "/", dialect));
        }
    }

    #[test]
    fn rooms_are_distinct_before_they_are_counted() {
        for (rooms, channel) in [
            (&[][..], "socket.io#/#"),
            (&["a"], "socket.io#/#a#"),
            (&["a", "a"], "socket.io#/#a#"),
            (&["a", "b"], "socket.io#/#"),
            (&["a", "b", "a"], "socket.io#/#"),
        ] {
            assert_eq!(classic().for_message("/", &to_rooms(rooms), false), channel);
        }
        let question = classic().for_message("/", &to_rooms(&["a"]), true);
        assert_eq!(question, "socket.io-request#/#");
    }

    #[test]
    fn the_mode_decides_which_rooms_have_a_channel() {
        let twenty = "12345678901234567890";
        let astral = "😀".repeat(10);
        for (mode, room, has_channel) in [
            (Mode::Static, "a", false),
            (Mode::Dynamic, "a", true),
            (Mode::Dynamic, twenty, false),
            (Mode::Dynamic, &astral, false),
            (Mode::DynamicPrivate, "a", true),
            (Mode::DynamicPrivate, twenty, true),
        ] {
            let channels = Channels::new("p", Dialect::Sharded(mode));
            let channel = channels.for_message("/n", &to_rooms(&[room]), false);
            let expected = if has_channel {
                format!("p#/n#{room}#")
            } else {
                "p#/n#".into()
            };
            assert_eq!(channel, expected, "{mode:?}");
            let question = channels.for_message("/n", &to_rooms(&[room]), true);
            assert_eq!(question, "p#/n#");
        }
    }

    #[test]
    fn what_is_live_in_a_pattern_is_escaped() {
        let channels = Channels::new("a*", Dialect::Classic);
        assert_eq!(
            channels.private_rooms_pattern("/b[c]?\\", "A-_1"),
            "a\\*#/b\\[c\\]\\?\\\\#A-_1????????????????#"
        );
    }

    #[test]
    fn the_room_of_a_channel_is_what_stands_between_its_marks() {
        let channels = classic();
        for (channel, namespace, room) in [
            ("socket.io#/#", "/", Some(None)),
            ("socket.io#/#r#", "/", Some(Some("r"))),
            ("socket.io#/#r#x#", "/", Some(Some("r#x"))),
            ("socket.io#/##", "/", Some(Some(""))),
            ("socket.io#/#r", "/", None),
            ("socket.io#/chat#", "/", None),
            ("socket.io-request#/#", "/", None),
            ("other#/#", "/", None),
            ("socket.io#/a#b#r#", "/a#b", Some(Some("r"))),
            ("socket.io#/a#b#r#", "/a", Some(Some("b#r"))),
        ] {
            assert_eq!(channels.room_of(channel, namespace), room, "{channel}");
        }
    }

    fn places(channels: &Channels, channel: &str) -> Vec<(Kind, String, Option<String>)> {
        channels
            .parse(channel)
            .map(|place| {
                let rest = place.rest.map(String::from);
                (place.kind, place.namespace.into(), rest)
            })
            .collect()
    }

    #[test]
    fn a_channel_is_read_in_every_way_that_its_name_allows() {
        use Kind::*;
        let channels = classic();
        let check = |channel: &str, expected: &[(Kind, &str, Option<&str>)]| {
            let expected: Vec<_> = expected
                .iter()
                .map(|(kind, namespace, rest)| {
                    (*kind, String::from(*namespace), rest.map(String::from))
                })
                .collect();
            assert_eq!(places(&channels, channel), expected, "{channel}");
        };
        check("socket.io#/#", &[(Broadcast, "/", None)]);
        check(
            "socket.io#/a#r#",
            &[(Broadcast, "/a", Some("r")), (Broadcast, "/a#r", None)],
        );
        check(
            "socket.io#/#r#x#",
            &[
                (Broadcast, "/", Some("r#x")),
                (Broadcast, "/#r", Some("x")),
                (Broadcast, "/#r#x", None),
            ],
        );
        check("socket.io-request#/#", &[(Request, "/", None)]);
        check("socket.io-request#/a#b#", &[(Request, "/a#b", None)]);
        check("socket.io-response#/#", &[(Response, "/", None)]);
        check(
            "socket.io-response#/#UID#",
            &[(Response, "/", Some("UID")), (Response, "/#UID", None)],
        );
        for foreign in ["", "socket.io", "socket.io#", "socket.io#emitter", "x#/#"] {
            check(foreign, &[]);
        }
        let sharded = Channels::new("socket.io", Dialect::Sharded(Mode::Static));
        assert_eq!(places(&sharded, "socket.io-request#/#"), []);
    }

    #[test]
    fn the_keys_of_a_log_are_in_the_slot_of_the_channel() {
        for (prefix, namespace) in [
            ("socket.io", "/"),
            ("{app}", "/"),
            ("a{b", "/"),
            ("a}b", "/n"),
            ("p", "/{x}"),
            ("p", "/a}b"),
            ("p", "/{"),
        ] {
            let channels = Channels::new(prefix, Dialect::Classic);
            let key = channels.log(namespace);
            assert!(key.starts_with(&format!("{prefix}-log")), "{key}");
            let wanted = slot(&channels.broadcast(namespace));
            assert_eq!(slot(&key), wanted, "{key}");
            assert_eq!(slot(&(key.clone() + "#a{room}")), wanted, "{key}");
        }
        let key = Channels::new("p", Dialect::Classic).log("/n");
        assert_eq!(key, "p-log{p#/n#}#/n");
    }

    #[test]
    fn slots_are_those_of_redis() {
        for (name, expected) in [
            ("123456789", 0x31c3),
            ("foo", 12182),
            ("{foo}.bar", 12182),
            ("a{foo}{bar}", 12182),
            ("", 0),
        ] {
            assert_eq!(slot(name), expected, "{name}");
        }
        assert_ne!(slot("foo{}{bar}"), slot("bar"));
        assert_ne!(slot("foo{bar"), slot("bar"));
    }

    #[test]
    fn a_probe_is_in_the_slot_that_is_asked_for() {
        let channels = classic();
        let node = NodeId::new("AAAAbbbbccccddddeeee");
        for wanted in [0, 1, 5000, SLOTS - 1] {
            let channel = channels.probe(&node, wanted);
            assert_eq!(slot(&channel), wanted);
            assert!(channel.starts_with("socket.io-probe#AAAAbbbbccccddddeeee#"));
        }
        let fixed = Channels::new("{app}", Dialect::Classic);
        assert_eq!(slot(&fixed.probe(&node, 7)), slot("app"));
    }
}
