//! What is subscribed: the channels of each namespace, and those of its rooms.
//!
//! Everything here happens under one lock, which no await and no message ever waits for: joins,
//! namespaces that come and go, and the sweep cannot overtake each other. Two namespaces may want
//! the same name, since namespaces and rooms may hold `#`; it is given up by the last of them.

use std::sync::{Arc, atomic::Ordering};

use parking_lot::Mutex;
use roomcast_protocol::channel::{self, Dialect, Kind, Mode};
use tokio::time::{self, Instant};

use super::{
    MAX_PATTERNS, SHUTDOWN_TIMEOUT, Shared,
    config::PrivateRooms,
    namespaces::{Attached, Private, Reached},
    receive::MAX_PLACES,
    tag,
    turnover::COUNTING,
};
use crate::{
    bus::{Attachment, Listener},
    link::Priority,
};

impl Shared {
    pub(super) fn attach(&self, attachment: Attachment<'_>) -> Arc<Attached> {
        let dialect = self.wire.channels().dialect();
        let namespace = attachment.namespace;
        let uid = channel::uid(&self.node, namespace, dialect);
        let attached = Arc::new(Attached {
            namespace: namespace.into(),
            echo: self.wire.echo(namespace, uid.as_str()),
            uid,
            private_rooms: self.private_rooms(namespace, attachment.is_dynamic),
            listener: attachment.listener,
            interest: Mutex::default(),
            reached: Mutex::<Reached>::default(),
            since: Instant::now(),
            is_dynamic: attachment.is_dynamic,
        });
        let _subscribing = self.subscribing.lock();
        let before = self.namespaces.insert(Arc::clone(&attached));
        self.subscribe_namespace(&attached);
        if let Some(before) = before {
            self.take_over(&before, &attached);
        }
        attached
    }

    /// The namespace was made anew before the old one was detached. Its channels are the same;
    /// those of rooms without members are given up in time.
    fn take_over(&self, before: &Attached, attached: &Attached) {
        let now = Instant::now();
        let mut interest = attached.interest.lock();
        for channel in before.interest.lock().take() {
            interest.occupied(&channel);
            interest.vacated(&channel, now);
        }
        if before.private_rooms != attached.private_rooms
            && let Private::Pattern { pattern, .. } = &before.private_rooms
        {
            self.hearing.unsubscribe_pattern(pattern);
        }
    }

    /// Forgets the namespace, unless it has been made anew meanwhile.
    pub(super) fn detach(&self, attached: &Arc<Attached>) {
        let _subscribing = self.subscribing.lock();
        if !self.namespaces.remove(attached) {
            return;
        }
        if let Private::Pattern { pattern, .. } = &attached.private_rooms {
            self.hearing.unsubscribe_pattern(pattern);
        }
        let (staying, asked) = self.base_channels(attached);
        let rooms = attached.interest.lock().take();
        let names = asked.into_iter().chain(staying).map(Arc::from);
        self.unsubscribe(names.chain(rooms));
    }

    /// Brings the subscriptions up to date with the listener's changes.
    pub(super) fn update(&self, attached: &Attached) {
        // Dropped last, and not under the lock: its end detaches the namespace.
        if let Some(listener) = attached.listener.upgrade() {
            let _subscribing = self.subscribing.lock();
            self.take_changes(attached, &*listener);
        }
    }

    /// Takes changes that nobody has told of, and gives up rooms that have been without members for
    /// long enough. True if there are more.
    pub(super) fn sweep(&self, attached: &Attached) -> bool {
        let Some(listener) = attached.listener.upgrade() else {
            return false;
        };
        let _subscribing = self.subscribing.lock();
        self.take_changes(attached, &*listener);
        let channels = self.wire.channels();
        let has_members = |channel: &str| {
            let room = channels.room_of(channel, &attached.namespace).flatten();
            room.is_some_and(|room| listener.has_room(room))
        };
        let now = Instant::now();
        let mut interest = attached.interest.lock();
        let given_up = interest.give_up(now, has_members);
        let is_more = interest.is_due(now);
        drop(interest);
        self.unsubscribe(given_up);
        is_more
    }

    fn take_changes(&self, attached: &Attached, listener: &dyn Listener) {
        let (channels, now) = (self.wire.channels(), Instant::now());
        let mut interest = attached.interest.lock();
        let mut wanted: Vec<Arc<str>> = Vec::new();
        listener.take_changes(&mut |room, has_members| {
            let Some(channel) = attached.channel_of(channels, room) else {
                return;
            };
            if !has_members {
                interest.vacated(&channel, now);
                return;
            }
            let channel = channel.into();
            if interest.occupied(&channel) {
                wanted.push(channel);
            }
        });
        if !wanted.is_empty() {
            self.hearing.subscribe(Priority::Room, wanted);
        }
    }

    /// Gives up names of which a namespace has no more need. Under the lock.
    fn unsubscribe(&self, names: impl IntoIterator<Item = Arc<str>>) {
        let names = names.into_iter().filter(|name| !self.is_wanted(name));
        let names: Vec<_> = names.collect();
        if !names.is_empty() {
            self.hearing.unsubscribe(names);
        }
    }

    /// Whether a namespace wants the name.
    fn is_wanted(&self, name: &str) -> bool {
        let channels = self.wire.channels();
        channels.places(name).take(MAX_PLACES).any(|place| {
            let Some(attached) = self.namespaces.get(place.namespace) else {
                return false;
            };
            match (place.kind, place.rest) {
                (_, None) => true,
                (Kind::Broadcast, Some(room)) => {
                    let is_own = channels.dialect() != Dialect::Classic;
                    (is_own && room == attached.uid.as_str())
                        || attached.interest.lock().holds(name)
                }
                (_, Some(uid)) => uid == attached.uid.as_str(),
            }
        })
    }

    /// A namespace that was made for a client goes again, and a pattern that was removed goes on
    /// costing every publish until Redis restarts: those have channels.
    fn private_rooms(&self, namespace: &str, is_dynamic: bool) -> Private {
        match self.wire.channels().dialect() {
            Dialect::Sharded(Mode::DynamicPrivate) => return Private::Channels,
            Dialect::Sharded(_) => return Private::Elsewhere,
            Dialect::Classic => {}
        }
        let wants_pattern = match self.config.private_rooms {
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
            pattern: self.wire.channels().private_rooms_pattern(namespace, tag),
            tag: tag.into(),
        }
    }

    /// The channels by which the node takes part in a namespace; and those on which it is asked, and
    /// counted by Node's servers, until it retires.
    pub(super) fn base_channels(&self, attached: &Attached) -> (Vec<String>, Vec<String>) {
        let channels = self.wire.channels();
        let namespace = &attached.namespace;
        let mut staying = vec![channels.broadcast(namespace)];
        staying.extend(channels.response(namespace));
        staying.push(channels.response_of(namespace, attached.uid.as_str()));
        let asked = match channels.dialect() {
            Dialect::Classic => vec![channels.request(namespace)],
            // The same channel carries broadcasts.
            Dialect::Sharded(_) => Vec::new(),
        };
        (staying, asked)
    }

    fn subscribe_namespace(&self, attached: &Attached) {
        let (staying, asked) = self.base_channels(attached);
        let asked = asked.into_iter().filter(|_| !self.has_retired());
        // Its own channel at last: who has that one is taken off the number of those that have the
        // others, and what remains is of other make.
        let names = asked.chain(staying).map(Arc::from);
        self.hearing.subscribe(Priority::Control, names);
        if let Private::Pattern { pattern, .. } = &attached.private_rooms {
            self.hearing.subscribe_pattern(pattern.as_str().into());
        }
    }

    /// Gives up the lease and leaves the channels on which nodes are asked and counted, in this
    /// order: who asks meanwhile finds the node on both or on neither. Questions that have been
    /// asked before are still answered.
    pub(super) async fn leave(&self) {
        if self.is_retired.swap(true, Ordering::AcqRel) {
            return;
        }
        match time::timeout(SHUTDOWN_TIMEOUT, self.release()).await {
            Ok(Ok(())) => {}
            _ => tracing::debug!("the lease was not given back; it ends by itself"),
        }
        let patterns = self.hear_uncounted().await;
        let left = self.leave_channels();
        if let Err(error) = self.hearing.confirmed(left, SHUTDOWN_TIMEOUT).await {
            tracing::warn!(%error, "other nodes may wait for answers of this one");
        }
        if !patterns.is_empty() {
            self.turnover.left();
            time::sleep(COUNTING).await;
            for pattern in &patterns {
                self.hearing.unsubscribe_pattern(pattern);
            }
            self.confirm_patterns(&patterns).await;
        }
    }

    /// Hears what is asked through patterns, too, which nobody counts; answers which. Shards have
    /// no patterns, and for dynamic namespaces there would be too many: Redis never forgets one.
    async fn hear_uncounted(&self) -> Vec<Arc<str>> {
        let channels = self.wire.channels();
        if channels.dialect() != Dialect::Classic {
            return Vec::new();
        }
        let namespaces = self.namespaces.all();
        let pattern =
            |attached: &Arc<Attached>| channels.request_pattern(&attached.namespace).into();
        let namespaces = namespaces.iter().filter(|attached| !attached.is_dynamic);
        let patterns: Vec<Arc<str>> = namespaces.map(pattern).collect();
        self.turnover.begin();
        for pattern in &patterns {
            self.hearing.subscribe_pattern(Arc::clone(pattern));
        }
        self.confirm_patterns(&patterns).await;
        patterns
    }

    /// Without patterns, or with late ones, what is asked at this moment may not be heard.
    async fn confirm_patterns(&self, patterns: &[Arc<str>]) {
        for pattern in patterns {
            let pattern = Arc::clone(pattern);
            let confirmed = self.hearing.confirmed_pattern(pattern, SHUTDOWN_TIMEOUT);
            if let Err(error) = confirmed.await {
                tracing::debug!(%error, "a pattern was not confirmed");
                return;
            }
        }
    }

    fn leave_channels(&self) -> Vec<Arc<str>> {
        let _subscribing = self.subscribing.lock();
        let mut left: Vec<Arc<str>> = Vec::new();
        for attached in self.namespaces.all() {
            let (staying, mut asked) = self.base_channels(&attached);
            if self.wire.channels().dialect() != Dialect::Classic {
                asked.extend(staying);
            }
            left.extend(asked.into_iter().map(Arc::from));
        }
        self.hearing.unsubscribe(&left);
        left
    }

    pub(super) fn has_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }
}
