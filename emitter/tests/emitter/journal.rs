//! Emits to a namespace with a journal are stored there.

use std::time::Duration;

use roomcast_emitter::{
    Delivery, EmitError, Emitter, JournalLimits, Position, Receipt, redis::Reply as _,
};
use roomcast_emitter::{Signing, membership, signing::Signer};
use roomcast_protocol::{
    channel::{Channels, Dialect, Kind, Mode},
    message::Message,
    msgpack::TranscodeLimits,
    question::{Answer, Question, REACHED_NOW},
    wire::{Incoming, Parser, Reply, Wire},
};

use crate::{
    ear::Ear,
    member::{Kin, Member, Noticed, connect},
    support::{Redis, assert_matches},
};

const DIALECTS: [Dialect; 2] = [Dialect::Classic, Dialect::Sharded(Mode::Dynamic)];

/// A Redis whose main namespace has a journal.
struct Journal {
    redis: Redis,
    wire: Wire,
    ear: Ear,
    /// The keys and the clock with which the emitter signs.
    signing: Option<(Signing, Signer)>,
}

impl Journal {
    async fn start(dialect: Dialect, parser: Parser) -> Self {
        let redis = Redis::start();
        let channels = Channels::new("socket.io", dialect);
        let announce = JournalLimits::default().announce(&channels.journal_limits("/"), false);
        redis.command(&announce.each_ref().map(String::as_str));
        let subscribe = match dialect {
            Dialect::Classic | Dialect::Streams => "SUBSCRIBE",
            Dialect::Sharded(_) => "SSUBSCRIBE",
        };
        let ear = Ear::open(&redis.url(), &[(subscribe, &channels.broadcast("/"))]).await;
        let wire = Wire::new(channels, parser, TranscodeLimits::default());
        Self {
            redis,
            wire,
            ear,
            signing: None,
        }
    }

    /// With an emitter that signs.
    async fn signed(self) -> Self {
        let signing = Signing::new("0123456789abcdef0123456789abcdef".parse().unwrap());
        let signer = Signer::new(&signing, "ear");
        let mut redis = connect(&self.redis.url()).await;
        let time = redis.command(&membership::TIME).await.unwrap();
        signer.set_time(membership::read_time(&time).unwrap());
        let signing = Some((signing, signer));
        Self { signing, ..self }
    }

    async fn emitter(&self, parser: Parser) -> Emitter {
        let dialect = self.wire.channels().dialect();
        let mut builder = Emitter::builder().dialect(dialect).parser(parser);
        if let Some((signing, _)) = &self.signing {
            builder = builder.signing(signing.clone());
        }
        builder.connect(&self.redis.url()).await.unwrap()
    }

    /// The next broadcast: its event, and its place.
    async fn hear(&mut self) -> (Box<str>, Option<Position>) {
        let (channel, mut payload) = self.ear.next().await;
        if let Some((_, signer)) = &self.signing {
            payload = signer.open(&channel, &payload).unwrap().into_owned();
        }
        let read = self.wire.read("/", Kind::Broadcast, &payload).unwrap();
        match read {
            Incoming::Message {
                message: Message::Broadcast(broadcast),
                position,
                ..
            } => (broadcast.event, position),
            other => panic!("{other:?}"),
        }
    }

    async fn len(&self) -> i64 {
        let key = self.wire.channels().journal("/");
        let mut redis = connect(&self.redis.url()).await;
        let len = redis.command(&["XLEN", &key]).await.unwrap();
        len.integer().unwrap()
    }
}

#[tokio::test]
async fn events_are_emitted_at_least_once_where_nodes_tell_that_it_is_turned_on() {
    for dialect in DIALECTS {
        let mut journal = Journal::start(dialect, Parser::Msgpack).await;
        let emitter = journal.emitter(Parser::Msgpack).await;
        let is_refused = |error: EmitError| matches!(error, EmitError::AtLeastOnce(_));
        let off = emitter.of("/").at_least_once().emit("a", 1).await;
        assert!(is_refused(off.unwrap_err()), "{dialect:?}");
        let key = journal.wire.channels().journal_limits("/");
        let announce = JournalLimits::default().announce(&key, true);
        let announce = announce.each_ref().map(String::as_str);
        journal.redis.command(&announce);
        // The first one believes for a moment what it has read.
        let emitter = journal.emitter(Parser::Msgpack).await;
        let on = || emitter.of("/").at_least_once();
        let volatile = on().volatile().emit("b", 1).await;
        assert!(is_refused(volatile.unwrap_err()));
        let awaited = on().emit_with_ack::<()>("c", 1).await;
        assert!(is_refused(awaited.unwrap_err()));
        let stored = on().to("room").emit("d", 1).await.unwrap();
        // Those that were refused were not published.
        let (_, payload) = journal.ear.next().await;
        let read = journal.wire.read("/", Kind::Broadcast, &payload).unwrap();
        let Incoming::Message {
            message: Message::Broadcast(broadcast),
            position,
            ..
        } = read
        else {
            panic!("{read:?}");
        };
        assert_eq!((&*broadcast.event, position), ("d", stored.position));
        assert!(position.is_some() && broadcast.target.flags.at_least_once);
    }
}

#[tokio::test]
async fn broadcasts_to_a_namespace_with_a_journal_are_stored_in_their_order() {
    for (dialect, parser, is_signed) in [
        (DIALECTS[0], Parser::Msgpack, false),
        (DIALECTS[0], Parser::Json, false),
        (DIALECTS[1], Parser::Msgpack, false),
        (DIALECTS[0], Parser::Msgpack, true),
        (DIALECTS[1], Parser::Msgpack, true),
    ] {
        let mut journal = Journal::start(dialect, parser).await;
        if is_signed {
            journal = journal.signed().await;
        }
        let emitter = journal.emitter(parser).await;
        let first = emitter.emit("a", 1).await.unwrap();
        journal.redis.command(&["SCRIPT", "FLUSH"]);
        let second = emitter.to("room").emit("b", 1).await.unwrap();
        let volatile = emitter.of("/").volatile().emit("c", 1).await.unwrap();
        let elsewhere = emitter.of("/other").emit("a", 1).await.unwrap();
        assert_eq!(
            (elsewhere.position, volatile.position),
            (None, None),
            "{dialect:?}"
        );
        journal.redis.command(&["SCRIPT", "FLUSH"]);
        let mut batch = emitter.batch();
        batch.emit("d", 1).unwrap();
        batch.of("/other").emit("d", 1).unwrap();
        for _ in 0..300 {
            batch.to("room").emit("e", 1).unwrap();
        }
        batch.of("/").volatile().emit("f", 1).unwrap();
        batch.emit("g", 1).unwrap();
        let sent = batch.send().await.into_iter();
        let sent: Vec<_> = sent.map(|sent| sent.unwrap().position).collect();
        assert_eq!((sent[1], sent[302]), (None, None));

        let places = [first.position, second.position].into_iter().chain(sent);
        let places: Vec<_> = places.flatten().collect();
        let mut heard = Vec::new();
        for event in ["a", "b", "c", "d"]
            .into_iter()
            .chain(["e"; 300])
            .chain(["f", "g"])
        {
            let (name, position) = journal.hear().await;
            assert_eq!(&*name, event, "{dialect:?}");
            heard.extend(position);
        }
        assert_eq!(heard, places);
        for pair in places.windows(2) {
            assert_eq!(pair[1].after, Some(pair[0].id));
        }
        assert_eq!(journal.len().await, 304);
        assert_eq!(Receipt::from(first).position, Some(places[0]));
    }
}

#[tokio::test]
async fn a_confirmed_broadcast_is_stored_once_and_asked_about() {
    for dialect in DIALECTS {
        let mut journal = Journal::start(dialect, Parser::Msgpack).await;
        let url = journal.redis.url();
        // In the sharded dialect, who listens to broadcasts counts as a server of Node's.
        journal.ear = Ear::open(&url, &[]).await;
        let reached = |_: &_| vec![Reply::Answer(Answer::Reached(2))];
        let mut one = Member::join(&url, dialect, Kin::Own("one"), reached).await;
        let emitter = journal.emitter(Parser::Msgpack).await;
        let receipt = emitter.of("/").emit_confirmed("a", 1).await.unwrap();
        assert_eq!(
            (receipt.sockets, receipt.nodes),
            (Some(2), 1),
            "{dialect:?}"
        );
        assert_eq!(receipt.silent_nodes, [""; 0]);
        assert!(receipt.position.is_some());
        assert_eq!(one.noticed.recv().await, Some(Noticed::Broadcast(None)));
        let asked = one.noticed.recv().await;
        assert_matches!(
            asked,
            Some(Noticed::Question(id, Question::Reached(_))) if id.ends_with(REACHED_NOW)
        );
        assert_eq!(journal.len().await, 1);
        // Under a key, the whole receipt is kept.
        let once = || emitter.of("/").idempotency_key("k");
        let first = once().emit_confirmed("b", 1).await.unwrap();
        let other = journal.emitter(Parser::Msgpack).await;
        let repeat = other.of("/").idempotency_key("k").emit_confirmed("b", 1);
        let again = repeat.await.unwrap();
        assert_eq!((first.sockets, first.is_replayed), (Some(2), false));
        assert_eq!((again.sockets, again.is_replayed), (Some(2), true));
        let id = |receipt: &Receipt| receipt.position.map(|position| position.id);
        assert_eq!((id(&again), again.nodes), (id(&first), first.nodes));
        assert_eq!(journal.len().await, 2);
    }
}

#[cfg(feature = "pool")]
#[tokio::test]
async fn a_pool_stores_what_it_emits_too() {
    let mut journal = Journal::start(Dialect::Classic, Parser::Msgpack).await;
    let emitter = Emitter::new(crate::pool::pool(&journal.redis.url()));
    let first = emitter.emit("a", 1).await.unwrap();
    let mut batch = emitter.batch();
    batch.emit("b", 1).unwrap();
    let second = batch.send().await.pop().unwrap().unwrap();
    assert_eq!(journal.hear().await, ("a".into(), first.position));
    assert_eq!(journal.hear().await, ("b".into(), second.position));
    assert_eq!(journal.len().await, 2);
}

#[tokio::test]
async fn a_retry_under_an_idempotency_key_is_published_once_whoever_makes_it() {
    for (dialect, has_journal) in [
        (DIALECTS[0], true),
        (DIALECTS[0], false),
        (DIALECTS[1], true),
        (DIALECTS[1], false),
    ] {
        let mut journal = Journal::start(dialect, Parser::Msgpack).await;
        if !has_journal {
            let key = journal.wire.channels().journal_limits("/");
            journal.redis.command(&["DEL", &key]);
        }
        let (one, two) = (
            journal.emitter(Parser::Msgpack).await,
            journal.emitter(Parser::Msgpack).await,
        );
        let emit = |emitter: &Emitter, key: &str, event: &'static str| {
            let to = emitter.to(["a", "b"]).idempotency_key(key);
            async move { to.emit(event, 1).await }
        };
        let first = emit(&one, "k", "first").await.unwrap();
        assert_eq!((first.nodes, first.is_replayed), (1, false), "{dialect:?}");
        assert_eq!(first.position.is_some(), has_journal);
        journal.redis.command(&["SCRIPT", "FLUSH"]);
        let again = emit(&two, "k", "first").await.unwrap();
        assert_eq!((again.nodes, again.is_replayed), (1, true), "{dialect:?}");
        let id = |delivery: &Delivery| delivery.position.map(|position| position.id);
        assert_eq!(id(&again), id(&first));
        // In another order, and confirmed: it is the same broadcast, and nobody is asked.
        let to = two.to(["b", "a"]).idempotency_key("k");
        let receipt = to.emit_confirmed("first", 1).await.unwrap();
        assert_eq!((receipt.sockets, receipt.is_replayed), (None, true));
        let reused = emit(&one, "k", "other").await;
        assert_matches!(reused, Err(EmitError::KeyReused(key)) if &**key == "k");
        let other = emit(&one, "l", "other").await.unwrap();
        assert!(!other.is_replayed);
        // Keys belong to a namespace.
        let elsewhere = two.of("/other").idempotency_key("l").emit("other", 1);
        assert!(!elsewhere.await.unwrap().is_replayed);
        // In a batch each message has its own key, or none.
        journal.redis.command(&["SCRIPT", "FLUSH"]);
        let mut batch = two.batch();
        let mut add = |key: &str, event: &str| {
            let to = batch.to(["a", "b"]).idempotency_key(key);
            to.emit(event, 1).unwrap();
        };
        add("k", "first");
        add("k", "wrong");
        add("m", "new");
        batch.emit("plain", 1).unwrap();
        let sent = batch.send().await;
        let [Ok(known), Err(EmitError::KeyReused(_)), Ok(new), Ok(plain)] = &sent[..] else {
            panic!("{sent:?}")
        };
        assert_eq!((id(known), known.is_replayed), (id(&first), true));
        assert_eq!((new.is_replayed, plain.is_replayed), (false, false));
        for event in ["first", "other", "new", "plain"] {
            let (name, position) = journal.hear().await;
            assert_eq!((&*name, position.is_some()), (event, has_journal));
        }
        assert_eq!(journal.len().await, if has_journal { 4 } else { 0 });
    }
}

#[tokio::test]
async fn a_key_may_be_used_again_when_its_time_is_over_or_nothing_was_published() {
    let journal = Journal::start(Dialect::Classic, Parser::Msgpack).await;
    let builder = Emitter::builder().idempotency_time(Duration::from_millis(1));
    let emitter = builder.connect(&journal.redis.url()).await.unwrap();
    let emit = || emitter.of("/").idempotency_key("k").emit("a", 1);
    loop {
        if !emit().await.unwrap().is_replayed && !emit().await.unwrap().is_replayed {
            break;
        }
    }
    let emitter = journal.emitter(Parser::Msgpack).await;
    for (right, key) in [("publish", "unpublished"), ("xadd", "unstored")] {
        let emit = || emitter.of("/").idempotency_key(key).emit("a", 1);
        let set = |sign: char| {
            let right = format!("{sign}{right}");
            journal
                .redis
                .command(&["ACL", "SETUSER", "default", &right]);
        };
        set('-');
        for _ in 0..2 {
            assert_matches!(emit().await, Err(EmitError::Refused(_)));
        }
        set('+');
        assert!(!emit().await.unwrap().is_replayed);
    }
}
