//! The subscriptions of a node: the channels of each namespace and of its rooms.
//!
//! ```text
//! attach   ──► request, broadcast, response, response of this node   (base channels, a pattern)
//! changed  ──► take_changes ──► first member: channel of the room
//!                               last member: queued in `Interest`
//! sweep    ──► what was left a second ago and is still empty is given up
//! retire   ──► the request channel (classic) is given up: the node is not asked any more
//! detach   ──► everything of the namespace is given up
//! ```
//!
//! Two namespaces can need the same channel, because names of namespaces and rooms may contain `#`.
//! Each holder is counted; a channel is unsubscribed with its last holder. All of this happens
//! under one lock, which no await and no message waits for: joins, namespaces that come and go, and
//! the sweep cannot overtake each other.

mod interest;
mod namespace;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join;
use parking_lot::{Mutex, RwLock};
use roomcast_protocol::{
    channel::{self, Channels, Dialect, Mode},
    id::NodeId,
    wire::Wire,
};
use tokio::time::Instant;

use self::namespace::{AllRoomsPattern, NamespaceChannels, Reached};
pub(super) use self::namespace::{AttachedNamespace, Private};
use super::config::PrivateRooms;
use crate::{
    bus::{Attachment, BusError, Listener},
    subscriber::{ConfirmError, Priority, Subscriber},
};

/// The characters at the beginning of a node's name and of all its sockets' ids.
const TAG_LEN: usize = 4;

/// The number of patterns, of all nodes and namespaces, up to which Redis is not noticeably slower.
const MAX_PATTERNS: usize = 50;

/// How long a join may take to be confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the pattern of all rooms is kept after the rooms' own channels were subscribed again.
const OVERLAP: Duration = Duration::from_secs(10);

/// Number of channels whose memory is kept although it is not needed at the moment.
const KEPT: usize = 1024;

/// The namespaces of this node and its subscriptions for them.
pub(super) struct Subscriptions {
    pub(super) subscriber: Subscriber,
    node: NodeId,
    wire: Arc<Wire>,
    private_rooms: PrivateRooms,
    namespaces: RwLock<HashMap<Arc<str>, Arc<AttachedNamespace>>>,
    /// Taken before all other locks.
    holders: Mutex<Holders>,
    /// The patterns that Redis had when this node came, and those that this node has added.
    patterns: AtomicUsize,
    /// Whether the user may subscribe the patterns of all rooms.
    can_hear_all_rooms: AtomicBool,
    /// The number of namespaces with all rooms subscribed.
    all_rooms: AtomicUsize,
}

/// Whether all rooms of a namespace are subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AllRooms {
    /// They are.
    Heard,
    /// They will be, once that is confirmed.
    Begun,
    /// They cannot be: only rooms with members are subscribed.
    Never,
}

/// How many namespaces hold each name.
#[derive(Default)]
struct Holders {
    channels: HashMap<Arc<str>, u32>,
    patterns: HashMap<Arc<str>, u32>,
    /// Namespaces that are attached from now on are not asked.
    has_retired: bool,
}

impl Subscriptions {
    pub(super) fn new(
        subscriber: Subscriber,
        node: NodeId,
        wire: Arc<Wire>,
        private_rooms: PrivateRooms,
        patterns: usize,
        can_hear_all_rooms: bool,
    ) -> Self {
        // After the channels without which the node cannot take part.
        let own = wire.channels().node(&node);
        subscriber.subscribe(Priority::Room, [own.into()]);
        Self {
            subscriber,
            node,
            wire,
            private_rooms,
            namespaces: RwLock::default(),
            holders: Mutex::default(),
            patterns: patterns.into(),
            can_hear_all_rooms: can_hear_all_rooms.into(),
            all_rooms: AtomicUsize::new(0),
        }
    }

    /// Sets whether the user may subscribe the patterns of all rooms.
    pub(super) fn allow_all_rooms(&self, is_allowed: bool) {
        self.can_hear_all_rooms.store(is_allowed, Ordering::Relaxed);
    }

    /// Returns the namespace of this name, if it is attached.
    pub(super) fn namespace(&self, name: &str) -> Option<Arc<AttachedNamespace>> {
        self.namespaces.read().get(name).cloned()
    }

    /// Returns all attached namespaces.
    pub(super) fn namespaces(&self) -> Vec<Arc<AttachedNamespace>> {
        self.namespaces.read().values().cloned().collect()
    }

    /// Attaches a namespace and subscribes its channels. If one of this name is attached, the new
    /// one takes its place, and the old one gives up its channels when it is detached.
    pub(super) fn attach(&self, attachment: Attachment<'_>) -> Arc<AttachedNamespace> {
        let dialect = self.channels().dialect();
        let uid = channel::uid(&self.node, attachment.namespace, dialect);
        let namespace = Arc::new(AttachedNamespace {
            name: attachment.namespace.into(),
            echo: self.wire.echo(attachment.namespace, uid.as_str()),
            private_rooms: self.private_rooms(attachment.namespace, attachment.is_dynamic),
            channels: Mutex::new(self.base_channels(attachment.namespace, uid.as_str())),
            uid,
            listener: attachment.listener,
            reached: Mutex::<Reached>::default(),
            since: Instant::now(),
            is_dynamic: attachment.is_dynamic,
        });
        let holders = &mut *self.holders.lock();
        self.namespaces
            .write()
            .insert(Arc::clone(&namespace.name), Arc::clone(&namespace));
        let channels = &mut *namespace.channels.lock();
        // A node that leaves must not be counted for questions in a namespace that
        // begins just now.
        if holders.has_retired {
            channels.asked.clear();
        }
        // The node's own channel comes last: Node servers are counted as the subscribers of the
        // common channels minus the nodes whose own channel is subscribed.
        let base = channels.asked.iter().chain(&channels.staying);
        self.hold(holders, Priority::Control, base.map(Arc::clone));
        if let Private::Pattern { pattern, .. } = &namespace.private_rooms {
            self.hold_pattern(holders, pattern);
        }
        Arc::clone(&namespace)
    }

    /// Removes the namespace and unsubscribes its channels.
    pub(super) fn detach(&self, namespace: &Arc<AttachedNamespace>) {
        let holders = &mut *self.holders.lock();
        let mut namespaces = self.namespaces.write();
        let current = namespaces.get(&namespace.name);
        if current.is_some_and(|current| Arc::ptr_eq(current, namespace)) {
            namespaces.remove(&namespace.name);
        }
        drop(namespaces);
        let channels = std::mem::take(&mut *namespace.channels.lock());
        if !channels.is_by_pattern() {
            self.release_rooms(holders, namespace, &channels);
        }
        if let Some(pattern) = &channels.all_rooms {
            self.release_all_rooms(holders, pattern);
        }
        let base = channels.asked.into_iter().chain(channels.staying);
        self.release(holders, base);
    }

    /// Subscribes all rooms of a namespace, at least until then. Dynamic namespaces
    /// are left out, because a pattern that was removed keeps costing every publish.
    pub(super) fn hear_all_rooms(
        &self,
        namespace: &Arc<AttachedNamespace>,
        until: Instant,
    ) -> AllRooms {
        // With `#` in its name, the rooms of another namespace could match the pattern.
        let is_allowed = self.can_hear_all_rooms.load(Ordering::Relaxed);
        if !is_allowed || namespace.is_dynamic || namespace.name.contains('#') {
            return AllRooms::Never;
        }
        let holders = &mut *self.holders.lock();
        let channels = &mut *namespace.channels.lock();
        if let Some(pattern) = &mut channels.all_rooms {
            pattern.until = pattern.until.max(until);
            return if pattern.is_alone {
                AllRooms::Heard
            } else {
                AllRooms::Begun
            };
        }
        let current = self.namespace(&namespace.name);
        if !current.is_some_and(|current| Arc::ptr_eq(&current, namespace)) {
            return AllRooms::Never;
        }
        let name = self.channels().rooms_pattern(&namespace.name).into();
        // Before the first message can come twice.
        self.all_rooms.fetch_add(1, Ordering::AcqRel);
        self.hold_pattern(holders, &name);
        channels.all_rooms = Some(AllRoomsPattern {
            name,
            until,
            is_alone: false,
        });
        AllRooms::Begun
    }

    /// The pattern of all rooms is confirmed: the channels of single rooms are given up.
    pub(super) fn all_rooms_are_heard(&self, namespace: &AttachedNamespace) {
        let holders = &mut *self.holders.lock();
        let channels = &mut *namespace.channels.lock();
        if let Some(pattern) = &mut channels.all_rooms
            && !pattern.is_alone
        {
            pattern.is_alone = true;
            self.release_rooms(holders, namespace, channels);
        }
    }

    /// Gives up the pattern of all rooms when its time has passed, after the channels of single
    /// rooms have been subscribed again.
    fn end_all_rooms(
        &self,
        holders: &mut Holders,
        namespace: &AttachedNamespace,
        channels: &mut NamespaceChannels,
    ) {
        let now = Instant::now();
        let Some(mut pattern) = channels.all_rooms.take_if(|pattern| pattern.until <= now) else {
            return;
        };
        if !pattern.is_alone {
            self.release_all_rooms(holders, &pattern);
            return;
        }
        pattern.is_alone = false;
        pattern.until = now + OVERLAP;
        channels.all_rooms = Some(pattern);
        self.hold(holders, Priority::Room, channels.rooms.channels());
        if let Private::Pattern { pattern, .. } = &namespace.private_rooms {
            self.hold_pattern(holders, pattern);
        }
    }

    /// Gives up the channels of single rooms and the pattern of private ones.
    fn release_rooms(
        &self,
        holders: &mut Holders,
        namespace: &AttachedNamespace,
        channels: &NamespaceChannels,
    ) {
        self.release(holders, channels.rooms.channels());
        if let Private::Pattern { pattern, .. } = &namespace.private_rooms {
            self.release_pattern(holders, pattern);
        }
    }

    /// Returns whether all rooms of a namespace are subscribed, so that messages may arrive twice.
    pub(super) fn hears_all_rooms(&self) -> bool {
        self.all_rooms.load(Ordering::Acquire) > 0
    }

    /// Returns whether the pattern covers all rooms of a channel's namespace.
    pub(super) fn hears_by_pattern(&self, channel: &str) -> bool {
        let mut places = self.channels().parse(channel);
        places.any(|place| {
            self.namespace(place.namespace)
                .is_some_and(|namespace| namespace.channels.lock().all_rooms.is_some())
        })
    }

    /// Returns whether a message that arrives by the pattern of all rooms also arrives by the
    /// pattern of private rooms.
    pub(super) fn is_private_copy(&self, channel: &str) -> bool {
        let mut places = self.channels().parse(channel);
        places.any(|place| {
            self.namespace(place.namespace).is_some_and(|namespace| {
                namespace.is_covered(self.channels(), channel)
                    && !namespace.channels.lock().is_by_pattern()
            })
        })
    }

    fn release_all_rooms(&self, holders: &mut Holders, pattern: &AllRoomsPattern) {
        self.release_pattern(holders, &pattern.name);
        self.all_rooms.fetch_sub(1, Ordering::AcqRel);
    }

    fn hold_pattern(&self, holders: &mut Holders, pattern: &Arc<str>) {
        let count = holders.patterns.entry(Arc::clone(pattern)).or_default();
        *count += 1;
        if *count == 1 {
            self.subscriber.subscribe_pattern(Arc::clone(pattern));
        }
    }

    fn release_pattern(&self, holders: &mut Holders, pattern: &Arc<str>) {
        if let Some(count) = holders.patterns.get_mut(pattern) {
            *count -= 1;
            if *count == 0 {
                holders.patterns.remove(pattern);
                self.subscriber.unsubscribe_pattern(pattern);
            }
        }
    }

    /// Applies the listener's changes.
    pub(super) fn update(&self, namespace: &AttachedNamespace) {
        // Dropped last, and not under the lock: its end may detach the namespace.
        if let Some(listener) = namespace.listener.upgrade() {
            let holders = &mut *self.holders.lock();
            self.take_changes(holders, namespace, &*listener);
        }
    }

    /// Applies changes that were not reported, and gives up rooms that have been empty for long
    /// enough. Returns whether there are more.
    pub(super) fn sweep(&self, namespace: &AttachedNamespace) -> bool {
        let Some(listener) = namespace.listener.upgrade() else {
            return false;
        };
        let holders = &mut *self.holders.lock();
        self.take_changes(holders, namespace, &*listener);
        let channels = self.channels();
        let has_members = |channel: &str| {
            let room = channels.room_of(channel, &namespace.name).flatten();
            room.is_some_and(|room| listener.has_room(room))
        };
        let now = Instant::now();
        let channels = &mut *namespace.channels.lock();
        let given_up = channels.rooms.give_up(now, has_members);
        if !channels.is_by_pattern() {
            self.release(holders, given_up);
        }
        self.end_all_rooms(holders, namespace, channels);
        channels.rooms.is_due(now)
    }

    /// Subscribes a room that is about to get its first member, and unsubscribes it again if none
    /// joins. Returns `false` if the room has no separate channel.
    pub(super) fn expect(&self, namespace: &AttachedNamespace, room: &str) -> bool {
        let Some(channel) = namespace.channel_of(self.channels(), room) else {
            return false;
        };
        let channel: Arc<str> = channel.into();
        let holders = &mut *self.holders.lock();
        let channels = &mut *namespace.channels.lock();
        let is_new = channels.rooms.occupied(&channel);
        if is_new && !channels.is_by_pattern() {
            self.hold(holders, Priority::Room, [Arc::clone(&channel)]);
        }
        channels.rooms.vacated(&channel, Instant::now());
        true
    }

    fn take_changes(
        &self,
        holders: &mut Holders,
        namespace: &AttachedNamespace,
        listener: &dyn Listener,
    ) {
        let (channels, now) = (self.channels(), Instant::now());
        let of_namespace = &mut *namespace.channels.lock();
        let rooms = &mut of_namespace.rooms;
        let mut wanted: Vec<Arc<str>> = Vec::new();
        listener.take_changes(&mut |room, has_members| {
            let Some(channel) = namespace.channel_of(channels, room) else {
                return;
            };
            if !has_members {
                rooms.vacated(&channel, now);
                return;
            }
            let channel = channel.into();
            if rooms.occupied(&channel) {
                wanted.push(channel);
            }
        });
        if !of_namespace.is_by_pattern() {
            self.hold(holders, Priority::Room, wanted);
        }
    }

    /// Adds a holder to each name, and subscribes those that had none.
    fn hold(
        &self,
        holders: &mut Holders,
        priority: Priority,
        names: impl IntoIterator<Item = Arc<str>>,
    ) {
        let mut fresh = Vec::new();
        for name in names {
            let count = holders.channels.entry(Arc::clone(&name)).or_default();
            *count += 1;
            if *count == 1 {
                fresh.push(name);
            }
        }
        if !fresh.is_empty() {
            self.subscriber.subscribe(priority, fresh);
        }
    }

    /// Removes a holder from each name, and unsubscribes those that have none left.
    fn release(&self, holders: &mut Holders, names: impl IntoIterator<Item = Arc<str>>) {
        let channels = &mut holders.channels;
        let mut free = Vec::new();
        for name in names {
            let Some(count) = channels.get_mut(&name) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                channels.remove(&name);
                free.push(name);
            }
        }
        if channels.capacity() > KEPT && channels.len() < channels.capacity() / 4 {
            channels.shrink_to(channels.len() * 2);
        }
        if !free.is_empty() {
            self.subscriber.unsubscribe(free);
        }
    }

    /// Resolves once everything that is published to the namespace and to these rooms of it is
    /// delivered.
    pub(super) fn confirm(
        &self,
        namespace: &AttachedNamespace,
        rooms: &[Box<str>],
    ) -> impl Future<Output = Result<(), BusError>> + Send + use<> {
        // Another thread may be about to report changes.
        self.update(namespace);
        let mut patterns = Vec::new();
        let names = {
            let channels = namespace.channels.lock();
            let base = channels.staying.iter().chain(&channels.asked);
            let mut names: Vec<Arc<str>> = base.cloned().collect();
            if let Some(pattern) = &channels.all_rooms {
                patterns.push(Arc::clone(&pattern.name));
            }
            if !channels.is_by_pattern() {
                let rooms = rooms.iter();
                let rooms = rooms.filter_map(|room| namespace.channel_of(self.channels(), room));
                names.extend(rooms.map(Arc::from));
                if let Private::Pattern { pattern, .. } = &namespace.private_rooms {
                    patterns.push(Arc::clone(pattern));
                }
            }
            names
        };
        let subscriber = self.subscriber.clone();
        async move {
            let by_pattern = async {
                for pattern in patterns {
                    subscriber.confirm_pattern(pattern, CONFIRM_TIMEOUT).await?;
                }
                Ok(())
            };
            let by_channel = subscriber.confirm(names, CONFIRM_TIMEOUT);
            let confirmed = try_join(by_pattern, by_channel).await;
            let unconfirmed = |error: ConfirmError| BusError::Unconfirmed(error.to_string().into());
            confirmed.map(drop).map_err(unconfirmed)
        }
    }

    /// Returns the number of subscriptions by which this node receives its own messages on the
    /// channel: Redis counts it that many times.
    pub(super) fn own_subscriptions(&self, namespace: &AttachedNamespace, channel: &str) -> usize {
        let by_channel = self.subscriber.is_confirmed(channel);
        let is_covered = namespace.is_covered(self.channels(), channel);
        if !self.hears_all_rooms() {
            return usize::from(by_channel) + usize::from(is_covered);
        }
        let is_room = self.channels().room_of(channel, &namespace.name).flatten();
        let channels = namespace.channels.lock();
        let by_private = is_covered && !channels.is_by_pattern();
        let by_all = is_room.is_some() && channels.all_rooms.is_some();
        usize::from(by_channel) + usize::from(by_private) + usize::from(by_all)
    }

    /// Gives up the channels on which nodes are asked and counted, and returns them. The sharded
    /// dialect asks on the channel that carries broadcasts, so everything but rooms is given up.
    pub(super) fn retire(&self) -> Vec<Arc<str>> {
        let holders = &mut *self.holders.lock();
        holders.has_retired = true;
        let mut left: Vec<Arc<str>> = Vec::new();
        for namespace in self.namespaces() {
            let channels = &mut *namespace.channels.lock();
            left.append(&mut channels.asked);
            if self.channels().dialect() != Dialect::Classic {
                left.append(&mut channels.staying);
            }
        }
        self.release(holders, left.iter().map(Arc::clone));
        left
    }

    /// How private rooms are received. A dynamic namespace gets channels: a pattern that was
    /// removed keeps costing every publish until Redis restarts.
    fn private_rooms(&self, namespace: &str, is_dynamic: bool) -> Private {
        match self.channels().dialect() {
            Dialect::Sharded(Mode::DynamicPrivate) => return Private::Channels,
            Dialect::Sharded(_) | Dialect::Streams => return Private::Elsewhere,
            Dialect::Classic => {}
        }
        let wants_pattern = match self.private_rooms {
            PrivateRooms::Channel => false,
            PrivateRooms::Pattern => true,
            PrivateRooms::Auto => {
                !is_dynamic && self.patterns.load(Ordering::Relaxed) < MAX_PATTERNS
            }
        };
        if !wants_pattern {
            return Private::Channels;
        }
        self.patterns.fetch_add(1, Ordering::Relaxed);
        let tag = tag(&self.node);
        Private::Pattern {
            pattern: self.channels().private_rooms_pattern(namespace, tag).into(),
            tag: tag.into(),
        }
    }

    fn base_channels(&self, namespace: &str, uid: &str) -> NamespaceChannels {
        let channels = self.channels();
        let mut staying: Vec<Arc<str>> = vec![channels.broadcast(namespace).into()];
        staying.extend(channels.response(namespace).map(Arc::from));
        staying.push(channels.response_of(namespace, uid).into());
        let asked = match channels.dialect() {
            Dialect::Classic => vec![channels.request(namespace).into()],
            // The same channel carries broadcasts.
            Dialect::Sharded(_) | Dialect::Streams => Vec::new(),
        };
        NamespaceChannels {
            staying,
            asked,
            ..NamespaceChannels::default()
        }
    }

    /// Returns the names of channels, if the dialect is the classic one.
    pub(super) fn classic_channels(&self) -> Option<&Channels> {
        let channels = self.channels();
        (channels.dialect() == Dialect::Classic).then_some(channels)
    }

    fn channels(&self) -> &Channels {
        self.wire.channels()
    }
}

/// Returns the prefix of a node's name and of the ids of all its sockets.
pub(super) fn tag(node: &NodeId) -> &str {
    node.as_str().get(..TAG_LEN).unwrap_or_default()
}
