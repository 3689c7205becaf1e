//! The commands by which a node or an emitter appends to the logs of a namespace.
//!
//! One script stores a broadcast in the stream of its room and in the journal, another
//! one stores broadcasts in the journal alone, and both publish them, so that ids are received in
//! the order in which they were assigned. Nodes and emitters run the same scripts:
//!
//! ```text
//! publish ─► EVALSHA ─┬─ id: the counter of the namespace, or the clock if it is ahead
//!                     ├─ XADD, trim, EXPIRE: the streams
//!                     └─ PUBLISH on the namespace's channel ─► all nodes, the publishing one included
//!    NOSCRIPT ─► EVAL: Redis has restarted, and nothing was executed
//! ```
//!
//! All keys are in the slot of the channel. An attempt without a reply is never repeated.
//!
//! Nodes write the limits of a journal to a [separate key](Channels::journal_limits), where
//! emitters find them.

use std::{borrow::Cow, iter::from_fn, sync::LazyLock, time::Duration};

use redis::Value;
use roomcast_protocol::{
    channel::{Channels, Dialect},
    message::Position,
    receipt::Receipt,
    wire::unplaced,
};

use crate::{
    redis::{PublishError, Reply},
    signing::Signer,
};

/// How much longer than the entries the counter is kept, in seconds. Ids that clients
/// have are compared with it.
pub const COUNTER_LIFE: u64 = 30 * 24 * 60 * 60;

/// How long the limits of a journal are kept after a node has written them last, in
/// seconds. Longer than any restart of all nodes, because clients that come back after it receive
/// the events that were emitted meanwhile.
const LIMITS_LIFE: &str = "86400";

/// The suffix of the limits of a journal whose broadcasts can be emitted at least once.
const AT_LEAST_ONCE: &str = " at-least-once";

/// The script that stores one broadcast in the log of a room, and in the journal if there
/// is one.
pub static PUBLISH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("log/common.lua"),
        include_str!("log/trim.lua"),
        include_str!("log/publish.lua")
    ))
});

/// The script that stores broadcasts in the journal.
pub static JOURNAL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("log/journal.lua"),
        include_str!("log/trim.lua"),
        include_str!("log/upkeep.lua")
    ))
});

/// The script that publishes under an idempotency key, and stores in the journal if there is one.
static ONCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        "local function append()\n",
        include_str!("log/journal.lua"),
        include_str!("log/trim.lua"),
        include_str!("log/upkeep.lua"),
        "end\n",
        include_str!("log/once.lua")
    ))
});

/// A script, which Redis knows by the digest of its text once it has run.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    /// Computes the digest.
    pub fn new(text: &'static str) -> Self {
        let sha = redis::Script::new(text).get_hash().to_owned();
        Self { text, sha }
    }

    /// The command that runs it by its digest. All keys must be in one slot.
    pub fn command(&self, keys: &[&str], args: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut command = vec![
            b"EVALSHA".to_vec(),
            self.sha.as_bytes().to_vec(),
            keys.len().to_string().into_bytes(),
        ];
        command.extend(keys.iter().map(|key| key.as_bytes().to_vec()));
        command.extend(args.iter().map(|arg| arg.to_vec()));
        command
    }

    /// Whether Redis no longer has the script. Then nothing was executed, and the command
    /// can be sent once more [with its text](Self::spell_out).
    pub fn is_forgotten<T>(replied: &Result<T, PublishError>) -> bool {
        matches!(replied, Err(PublishError::Refused(reason)) if reason.starts_with("NOSCRIPT"))
    }

    /// Makes a command run the script by its text.
    pub fn spell_out(&self, command: &mut [Vec<u8>]) {
        command[0] = b"EVAL".to_vec();
        command[1] = self.text.into();
    }
}

/// The bounds of a journal. The oldest entries are removed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalLimits {
    /// Maximum number of broadcasts. Default 10,000.
    pub messages: usize,
    /// Maximum size of the broadcasts, in bytes as they are stored. The newest one is kept
    /// regardless of its size. Default 16 MiB.
    pub bytes: usize,
    /// How long a broadcast is kept, in whole seconds, at least one. Default 10 minutes.
    pub age: Duration,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self {
            messages: 10_000,
            bytes: 16 << 20,
            age: Duration::from_secs(600),
        }
    }
}

impl JournalLimits {
    /// The command with which a node announces to emitters that the namespace has a journal, and
    /// whether its broadcasts can be emitted at least once.
    pub fn announce(&self, key: &str, at_least_once: bool) -> [String; 5] {
        let Self {
            messages, bytes, ..
        } = self;
        let mut limits = format!("{messages} {bytes} {}", seconds(self.age));
        if at_least_once {
            // Emitters without this feature read three numbers, and stop.
            limits += AT_LEAST_ONCE;
        }
        ["SET", key, &limits, "EX", LIMITS_LIFE].map(str::to_owned)
    }

    /// The arguments of the script about the bounds of the journal.
    fn numbers(&self) -> [String; 4] {
        let age = seconds(self.age);
        let numbers = [
            age.saturating_add(COUNTER_LIFE),
            self.messages.max(1) as u64,
            self.bytes as u64,
            age,
        ];
        numbers.map(|number| number.to_string())
    }

    /// Reads the value that [`announce`](Self::announce) has written.
    pub fn read(text: &str) -> Option<(Self, bool)> {
        let mut numbers = text.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let [messages, bytes, age] = [next()?, next()?, next()?];
        let limits = Self {
            messages: usize::try_from(messages).unwrap_or(usize::MAX),
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            age: Duration::from_secs(age),
        };
        Some((limits, text.ends_with(AT_LEAST_ONCE)))
    }
}

/// The names of a namespace's logs. Finding them takes many hashes, so they are kept.
#[derive(Debug, Clone)]
pub struct Names {
    /// The channel on which everything is published.
    pub channel: Box<str>,
    /// The key of the counter, with which the keys of the rooms begin.
    pub counter: Box<str>,
    /// The key of the journal.
    pub journal: Box<str>,
    /// The key of the limits of the journal.
    pub limits: Box<str>,
    /// The command by which scripts publish.
    pub publish: &'static str,
}

/// A broadcast that is published once, however often it is tried.
#[derive(Debug, Clone)]
pub struct Once {
    /// The idempotency key.
    pub key: Box<str>,
    /// How long its result is kept.
    pub lifetime: Duration,
    /// The [fingerprint](roomcast_protocol::receipt::fingerprint) of the broadcast.
    pub fingerprint: Box<str>,
}

/// The outcome of publishing once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedOnce {
    /// Its place in the journal, if there is one.
    pub position: Option<Position>,
    /// The id of its entry in the streams dialect.
    pub entry: Option<Box<str>>,
    /// The number of connections that received it.
    pub receivers: u64,
    /// Whether it was published before, and this is the first result.
    pub is_replayed: bool,
    /// The receipt of the first one, if the nodes were asked.
    pub receipt: Option<Receipt>,
}

/// Another broadcast has the same idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyReused;

impl Once {
    /// The command of the script, and its first key. `payload` has no position, and is
    /// made to be appended to a journal if there is one. `None` if it has to be signed
    /// and Redis's time is not known.
    pub fn command(
        &self,
        result: &str,
        names: &Names,
        payload: &[u8],
        journal: Option<JournalLimits>,
        signer: Option<&Signer>,
    ) -> Option<Vec<Vec<u8>>> {
        let lifetime = self.lifetime.as_millis().max(1).to_string();
        let own = [self.fingerprint.as_bytes(), lifetime.as_bytes()];
        let Some((limits, head)) = journal.zip(unplaced(payload)) else {
            let sealed = match signer {
                Some(signer) => Cow::Owned(signer.seal(&names.channel, payload)?),
                None => Cow::Borrowed(payload),
            };
            let args = [names.publish.as_bytes(), names.channel.as_bytes(), &sealed];
            return Some(ONCE.command(&[result], &[&own[..], &args].concat()));
        };
        let head = match signer {
            Some(signer) => signer.seal_head(&names.channel, &head)?,
            None => head,
        };
        let numbers = limits.numbers();
        let args = names.arguments(&head, &numbers);
        let keys = [result, &names.counter, &names.journal];
        Some(ONCE.command(&keys, &[&own[..], &args].concat()))
    }

    /// The command of the script in the streams dialect. `append` is the command that appends the entry, and `members`
    /// the number of nodes that read the stream.
    pub fn entry_command(
        &self,
        result: &str,
        append: &[impl AsRef<[u8]>],
        members: usize,
    ) -> Vec<Vec<u8>> {
        let lifetime = self.lifetime.as_millis().max(1).to_string();
        let members = members.to_string();
        let own = [&*self.fingerprint, &lifetime, &members].map(str::as_bytes);
        let append: Vec<_> = append.iter().map(AsRef::as_ref).collect();
        let stream = append.get(1).and_then(|key| str::from_utf8(key).ok());
        let args = [&own[..], &append].concat();
        ONCE.command(&[result, stream.unwrap_or_default()], &args)
    }

    /// The command that adds the receipt to the result, if the result exists and has none.
    pub fn keep(&self, result: &str, receipt: &Receipt) -> [String; 6] {
        const KEEP: &str = "local kept = redis.call('GET', KEYS[1]) \
            if kept and string.match(kept, '^' .. ARGV[1] .. ' %S+ %S+ %S+$') then \
            redis.call('SET', KEYS[1], kept .. ' ' .. ARGV[2], 'KEEPTTL') end return 1";
        let receipt = serde_json::to_string(receipt).unwrap_or_default();
        ["EVAL", KEEP, "1", result, &self.fingerprint, &receipt].map(str::to_owned)
    }

    /// Makes a command run the script by its text.
    pub fn spell_out(command: &mut [Vec<u8>]) {
        ONCE.spell_out(command);
    }

    /// Reads the reply of the script.
    pub fn read(&self, reply: &Value) -> Result<Result<PublishedOnce, KeyReused>, PublishError> {
        let read = || {
            let [is_replayed, kept] = reply.list()? else {
                return None;
            };
            let mut words = kept.text()?.splitn(5, ' ');
            if words.next()? != &*self.fingerprint {
                return Some(Err(KeyReused));
            }
            let [id, time, receivers] = [words.next()?, words.next()?, words.next()?];
            let is_entry = id.contains('-');
            let position = match (is_entry, id) {
                (true, _) | (false, "0") => None,
                (false, id) => Some(Position {
                    id: id.parse().ok()?,
                    time: time.parse().ok()?,
                    after: None,
                }),
            };
            let receipt = words.next().map(serde_json::from_str::<Receipt>);
            Some(Ok(PublishedOnce {
                position,
                entry: is_entry.then(|| id.into()),
                receivers: receivers.parse().ok()?,
                is_replayed: is_replayed.integer()? > 0,
                receipt: receipt.and_then(Result::ok),
            }))
        };
        read().ok_or_else(unexpected)
    }
}

impl Names {
    /// Finds the names.
    pub fn new(channels: &Channels, namespace: &str) -> Self {
        Self {
            channel: channels.broadcast(namespace).into(),
            counter: channels.log(namespace).into(),
            journal: channels.journal(namespace).into(),
            limits: channels.journal_limits(namespace).into(),
            publish: match channels.dialect() {
                Dialect::Classic | Dialect::Streams => "PUBLISH",
                Dialect::Sharded(_) => "SPUBLISH",
            },
        }
    }

    /// The command that stores a broadcast in the journal and publishes it. `head` is the payload
    /// [without its position](roomcast_protocol::wire::Wire::unplaced).
    pub fn append(&self, head: &[u8], limits: JournalLimits) -> Vec<Vec<u8>> {
        let numbers = limits.numbers();
        let args = self.arguments(head, &numbers);
        JOURNAL.command(&[&self.counter, &self.journal], &args)
    }

    fn arguments<'a>(&'a self, head: &'a [u8], numbers: &'a [String]) -> Vec<&'a [u8]> {
        let mut args = vec![self.channel.as_bytes(), self.publish.as_bytes()];
        args.extend(numbers.iter().map(String::as_bytes));
        args.push(head);
        args
    }
}

/// The position of a broadcast, and the number of connections that received it.
pub type Placed = (Position, u64);

/// Reads the reply of the script that stores one broadcast in the log of a room.
pub fn published(reply: &Value) -> Result<Placed, PublishError> {
    let number = |value: &Value| u64::try_from(value.integer()?).ok();
    let read = || {
        let (id, time, receivers, after) = match reply.list()? {
            [id, time, receivers] => (id, time, receivers, None),
            [id, time, receivers, after] => (id, time, receivers, Some(number(after)?)),
            _ => return None,
        };
        let (id, time) = (number(id)?, number(time)?);
        Some((Position { id, time, after }, number(receivers)?))
    };
    read().ok_or_else(unexpected)
}

/// Reads the reply of the script that stores broadcasts in the journal. If Redis has
/// refused one, an error takes its place, and it is that of all later ones, so the
/// outcomes have no end. Anything else is unexpected.
pub fn appended(reply: &Value) -> impl Iterator<Item = Result<Placed, PublishError>> {
    let (first, more) = match reply.list() {
        Some([first, more @ ..]) => (first, more),
        _ => (reply, &[][..]),
    };
    let mut next = first.text().and_then(read_first);
    let mut more = more.iter();
    let mut end = None;
    from_fn(move || {
        let Some((position, receivers)) = next.take() else {
            return Some(Err(end.get_or_insert_with(unexpected).clone()));
        };
        next = more.next().and_then(|value| {
            let Some(receivers) = value.integer() else {
                end = value.text().map(|why| PublishError::Refused(why.into()));
                return None;
            };
            let position = Position {
                id: position.id + 1,
                after: Some(position.id),
                ..position
            };
            Some((position, u64::try_from(receivers).ok()?))
        });
        Some(Ok((position, receivers)))
    })
}

fn read_first(text: &str) -> Option<Placed> {
    let mut numbers = text.split(' ').map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    let (time, after, id) = (next()?, Some(next()?), next()?);
    Some((Position { id, time, after }, next()?))
}

/// Redis has executed a command and returned something else than was expected.
pub fn unexpected() -> PublishError {
    PublishError::Unconfirmed("an unexpected reply".into())
}

/// A time in seconds, at least one: Redis counts streams' lifetimes so.
pub fn seconds(age: Duration) -> u64 {
    age.as_secs().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    type Short = (u64, Option<u64>, u64);

    fn outcomes(reply: &Value, count: usize) -> Vec<Result<Short, PublishError>> {
        let short = |(position, receivers): Placed| (position.id, position.after, receivers);
        let outcomes = appended(reply).take(count);
        outcomes.map(|placed| placed.map(short)).collect()
    }

    #[test]
    fn broadcasts_of_one_call_have_consecutive_places() {
        let expected = [(7, Some(4), 2), (8, Some(7), 2), (9, Some(8), 3)].map(Ok);
        let reply = vec![text("9000 4 7 2"), Value::Int(2), Value::Int(3)];
        assert_eq!(outcomes(&Value::Array(reply), 3), expected);
        assert_eq!(outcomes(&text("9000 4 7 2"), 1), expected[..1]);
    }

    #[test]
    fn what_redis_refuses_in_the_middle_is_refused_with_all_that_comes_later() {
        let reply = Value::Array(vec![text("9000 4 7 2"), text("NOPERM this user")]);
        let refused = Err(PublishError::Refused("NOPERM this user".into()));
        let expected = [Ok((7, Some(4), 2)), refused.clone(), refused];
        assert_eq!(outcomes(&reply, 3), expected);
    }

    #[test]
    fn another_reply_leaves_every_broadcast_unconfirmed() {
        let replies = [
            text(""),
            text("9000 4 7"),
            Value::Int(1),
            Value::Array(vec![]),
            Value::Nil,
        ];
        for reply in replies {
            for outcome in outcomes(&reply, 2) {
                assert!(matches!(outcome, Err(PublishError::Unconfirmed(_))));
            }
        }
    }
}
