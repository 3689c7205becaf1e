//! Signing the messages that a node or emitter publishes, and verifying those that it receives.
//!
//! The seal and the checks are of [`roomcast_protocol::signing`]. Here are the state of
//! one sender, which numbers its messages, and the clock: that of Redis, read now and
//! then and extrapolated, because the clocks of hosts may be wrong by hours while their
//! nodes work.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_protocol::{
    channel::Dialect,
    message::Position,
    signing::{Rejection, Sealed, Senders, SigningKeys, Stamp},
    wire::Parser,
};
use tokio::time::Instant;

/// A difference between two readings of Redis's clock and the time between them that is a
/// jump, in milliseconds.
const JUMP: u64 = 1_000;

/// How long messages are accepted after a jump whose senders have not noticed it. Nodes and
/// emitters read the clock every second.
const UNNOTICED: Duration = Duration::from_secs(10);

/// How the members of a cluster sign their messages. All of them need
/// the same keys; Node's servers and emitters cannot sign, so a cluster that signs has
/// none.
#[derive(Debug, Clone)]
pub struct Signing {
    /// The key that signs, and possibly another one that is accepted, too.
    pub keys: SigningKeys,
    /// How old a message may be, and how far ahead of this process's reading of Redis's
    /// clock. Default 30 s.
    pub tolerance: Duration,
}

impl Signing {
    /// Returns the default settings for these keys.
    pub fn new(keys: SigningKeys) -> Self {
        Self {
            keys,
            tolerance: Duration::from_secs(30),
        }
    }

    /// Whether messages of these formats can be signed. Those that exist for Node's
    /// servers alone cannot: these are harmed by a seal, or read the messages from a
    /// stream.
    pub fn is_possible(dialect: Dialect, parser: Parser) -> bool {
        match dialect {
            Dialect::Classic => parser == Parser::Msgpack,
            Dialect::Sharded(_) => true,
            Dialect::Streams => false,
        }
    }
}

/// Signs for one node or emitter.
#[derive(Debug)]
pub struct Signer {
    keys: SigningKeys,
    /// In milliseconds.
    tolerance: u64,
    sender: Box<str>,
    /// Messages signed so far.
    signed: AtomicU64,
    clock: Mutex<Option<RedisClock>>,
    /// The reading before the last jump of Redis's clock, and when that was.
    before_jump: Mutex<Option<(RedisClock, Instant)>>,
    senders: Mutex<Senders>,
}

/// Redis's clock, extrapolated from a reading of it.
#[derive(Debug, Clone, Copy)]
pub struct RedisClock {
    read: Instant,
    millis: u64,
}

impl Signer {
    /// `sender` is unique in the cluster, and another one for every start of a process.
    pub fn new(signing: &Signing, sender: &str) -> Self {
        Self {
            keys: signing.keys.clone(),
            tolerance: millis(signing.tolerance),
            sender: sender.into(),
            signed: AtomicU64::new(0),
            clock: Mutex::default(),
            before_jump: Mutex::default(),
            senders: Mutex::default(),
        }
    }

    /// Redis's clock has been read. The reading is `millis` milliseconds since 1970.
    pub fn set_time(&self, millis: u64) {
        let clock = RedisClock::read(millis);
        let former = self.clock.lock().replace(clock);
        if let Some(former) = former
            && former.at(clock.read).abs_diff(millis) > JUMP
        {
            *self.before_jump.lock() = Some((former, clock.read));
        }
    }

    /// Returns how long ago Redis's clock was read.
    pub fn clock_age(&self) -> Option<Duration> {
        self.clock.lock().map(|clock| clock.read.elapsed())
    }

    /// Seals a message for a channel. Returns `None` while Redis's time is not known.
    pub fn seal(&self, channel: &str, message: &[u8]) -> Option<Vec<u8>> {
        Some(self.keys.seal(self.stamp()?, &[channel], message))
    }

    /// Seals the head of a broadcast that a log stores.
    pub fn seal_head(&self, channel: &str, head: &[u8]) -> Option<Vec<u8>> {
        Some(self.keys.seal_head(self.stamp()?, &[channel], head))
    }

    /// Verifies a message from a channel, and returns it in the form of an unsigned one.
    pub fn open<'a>(&self, channel: &str, payload: &'a [u8]) -> Result<Cow<'a, [u8]>, Rejection> {
        let sealed = Sealed::read(payload).ok_or(Rejection::Unsigned)?;
        if !self.keys.verify(&sealed, channel) {
            return Err(Rejection::Forged);
        }
        let stamp = sealed.stamp();
        // Without the time, nothing shows that it is new.
        let now = self.now().ok_or(Rejection::Stale)?;
        let admit = |now| self.senders.lock().admit(stamp, now, self.tolerance);
        let is_of_its_position = self.is_of_its_position(&sealed);
        let admitted = match is_of_its_position {
            true => admit(now),
            false => Err(Rejection::Stale),
        };
        match (admitted, self.now_without_jump()) {
            // Its sender has not noticed the jump of the clock.
            (Err(Rejection::Stale), Some(unaware)) => {
                let is_placed = sealed.position().is_none_or(|position| {
                    let apart = position.time.abs_diff(now);
                    is_of_its_position || apart <= self.tolerance
                });
                match is_placed {
                    true => admit(unaware)?,
                    false => return Err(Rejection::Stale),
                }
            }
            (admitted, _) => admitted?,
        }
        Ok(sealed.message())
    }

    /// Verifies an entry that a log has stored for a channel, regardless of its age, and returns
    /// the broadcast with its position.
    pub fn open_head(
        &self,
        channel: &str,
        head: &[u8],
        position: Position,
    ) -> Result<Vec<u8>, Rejection> {
        let sealed = Sealed::read_head(head, position).ok_or(Rejection::Unsigned)?;
        if !self.keys.verify(&sealed, channel) {
            return Err(Rejection::Forged);
        }
        if !self.is_of_its_position(&sealed) {
            return Err(Rejection::Stale);
        }
        Ok(sealed.message().into_owned())
    }

    /// Redis has stored it when it was signed, and not again later. Both times are Redis's.
    fn is_of_its_position(&self, sealed: &Sealed<'_>) -> bool {
        sealed
            .position()
            .is_none_or(|position| position.time.abs_diff(sealed.stamp().time) <= self.tolerance)
    }

    fn stamp(&self) -> Option<Stamp<'_>> {
        Some(Stamp {
            sender: &self.sender,
            number: self.signed.fetch_add(1, Ordering::Relaxed),
            time: self.now()?,
        })
    }

    fn now(&self) -> Option<u64> {
        let clock = (*self.clock.lock())?;
        Some(clock.now())
    }

    /// Returns the time as it would be if Redis's clock had not jumped a moment ago.
    fn now_without_jump(&self) -> Option<u64> {
        let (clock, jumped) = (*self.before_jump.lock())?;
        let now = Instant::now();
        (now - jumped <= UNNOTICED).then(|| clock.at(now))
    }
}

impl RedisClock {
    /// The clock has just been read. It is `millis` milliseconds since 1970.
    pub fn read(millis: u64) -> Self {
        let read = Instant::now();
        Self { read, millis }
    }

    /// Returns the time in milliseconds since 1970.
    pub fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.read);
        self.millis.saturating_add(millis(since))
    }
}

/// Returns the milliseconds of a duration.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signing(keys: &str) -> Signing {
        Signing::new(keys.parse().unwrap())
    }

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const NEXT: &str = "fedcba9876543210fedcba9876543210";

    /// Two members, whose readings of Redis's clock are of the same moment.
    fn pair(keys: [&str; 2]) -> [Signer; 2] {
        let names = ["one", "two"];
        [0, 1].map(|at| {
            let signer = Signer::new(&signing(keys[at]), names[at]);
            signer.set_time(1_700_000_000_000);
            signer
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_accepted_once_and_for_its_channel() {
        let [one, two] = pair([KEY, KEY]);
        let sealed = one.seal("c", b"message").unwrap();
        assert_eq!(two.open("d", &sealed), Err(Rejection::Forged));
        assert_eq!(two.open("c", &sealed).unwrap(), &b"message"[..]);
        assert_eq!(two.open("c", &sealed), Err(Rejection::Replayed));
        assert_eq!(two.open("c", b"message"), Err(Rejection::Unsigned));
        let again = one.seal("c", b"message").unwrap();
        assert!(two.open("c", &again).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_stale_after_the_tolerance_or_while_the_time_is_unknown() {
        let [one, two] = pair([KEY, KEY]);
        let sealed = one.seal("c", b"message").unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(two.open("c", &sealed), Err(Rejection::Stale));
        let young = Signer::new(&signing(KEY), "three");
        assert_eq!(young.open("c", &sealed), Err(Rejection::Stale));
        assert_eq!((young.seal("c", b""), young.clock_age()), (None, None));
        assert_eq!(two.clock_age(), Some(Duration::from_secs(31)));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_jump_of_the_clock_nothing_is_lost_and_nothing_old_is_accepted() {
        for jump in [3_600_000, -3_600_000] {
            let [one, two] = pair([KEY, KEY]);
            let old = one.seal("c", b"old").unwrap();
            tokio::time::advance(Duration::from_secs(31)).await;
            two.set_time(1_700_000_031_000_u64.saturating_add_signed(jump));
            // The sender has not read the clock, and then it has.
            let unaware = one.seal("c", b"message").unwrap();
            assert!(two.open("c", &unaware).is_ok(), "{jump}");
            assert_eq!(two.open("c", &unaware), Err(Rejection::Replayed));
            assert_eq!(two.open("c", &old), Err(Rejection::Stale));
            one.set_time(1_700_000_031_000_u64.saturating_add_signed(jump));
            let aware = one.seal("c", b"message").unwrap();
            assert!(two.open("c", &aware).is_ok(), "{jump}");
            // Later, the jump is past.
            tokio::time::advance(Duration::from_secs(11)).await;
            let late = Signer::new(&signing(KEY), "three");
            late.set_time(1_700_000_042_000);
            let late = late.seal("c", b"message").unwrap();
            assert_eq!(two.open("c", &late), Err(Rejection::Stale), "{jump}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_rotate_without_a_moment_in_which_two_nodes_differ() {
        let (old, both) = (KEY.to_owned(), format!("{KEY},{NEXT}"));
        let (switched, new) = (format!("{NEXT},{KEY}"), NEXT.to_owned());
        // Each step is rolled out node by node.
        for [before, after] in [[&old, &both], [&both, &switched], [&switched, &new]] {
            for keys in [[before, after], [after, before]] {
                let [one, two] = pair(keys.map(String::as_str));
                let sealed = one.seal("c", b"message").unwrap();
                assert!(two.open("c", &sealed).is_ok(), "{keys:?}");
            }
        }
        let [one, two] = pair([&old, &new]);
        let sealed = one.seal("c", b"message").unwrap();
        assert_eq!(two.open("c", &sealed), Err(Rejection::Forged));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_log_has_stored_is_read_later_but_not_under_a_later_position() {
        let [one, two] = pair([KEY, KEY]);
        let head = one.seal_head("c", b"\x94\xa1u\xc0\xc0").unwrap();
        let position = |time| Position {
            id: 1,
            time,
            after: None,
        };
        tokio::time::advance(Duration::from_secs(3600)).await;
        let stored = two.open_head("c", &head, position(1_700_000_000_003));
        assert!(stored.unwrap().starts_with(b"\x94\xa1u\xc0\xc0\x92\xcf"));
        let again = two.open_head("c", &head, position(1_700_003_600_000));
        assert_eq!(again, Err(Rejection::Stale));
        let other = two.open_head("d", &head, position(1_700_000_000_003));
        assert_eq!(other, Err(Rejection::Forged));
    }
}
