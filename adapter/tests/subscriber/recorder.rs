//! A sink that records what it receives, and a subscriber that feeds it.

use std::{
    sync::{Arc, Condvar, Mutex},
    time::{Duration, SystemTime},
};

use roomcast_adapter::subscriber::{
    DownReason, Priority, Sink, Subscriber, SubscriberConfig, SubscriberEvent, SubscriberState,
};
use roomcast_emitter::redis::Endpoint;
use tokio::runtime::{Builder, Runtime};

use crate::{
    redis::{Redis, until},
    server::{DEADLINE, Prober, wait_until},
};

pub(crate) const PROBE: &str = "probe#1#";

/// What has come over a subscriber, in order.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    Message { channel: String, payload: Vec<u8> },
    Event(SubscriberEvent),
}

#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    records: Vec<Record>,
    /// Messages on this channel are not taken.
    blocked: Option<String>,
    /// A message waits to be taken.
    is_blocking: bool,
}

impl Recorder {
    /// Waits until the records have what is looked for.
    #[track_caller]
    pub(crate) fn wait<T>(&self, what: &str, find: impl Fn(&[Record]) -> Option<T>) -> T {
        let mut state = self.0.state.lock().unwrap();
        loop {
            if let Some(found) = find(&state.records) {
                return found;
            }
            let (next, timeout) = self.0.changed.wait_timeout(state, DEADLINE).unwrap();
            state = next;
            assert!(
                !timeout.timed_out(),
                "{what}: {} records",
                state.records.len()
            );
        }
    }

    #[track_caller]
    pub(crate) fn wait_for_message(&self, channel: &str, payload: &str) {
        self.wait(payload, |records| {
            messages(records, channel)
                .any(|found| found == payload.as_bytes())
                .then_some(())
        });
    }

    /// Waits for the n-th time that everything was subscribed.
    #[track_caller]
    pub(crate) fn wait_for_up(&self, n: usize) -> (usize, Duration) {
        self.wait("Up", |records| {
            let mut ups = events(records).filter_map(|event| match event {
                SubscriberEvent::Up { resubscribed, took } => Some((*resubscribed, *took)),
                _ => None,
            });
            ups.nth(n - 1)
        })
    }

    #[track_caller]
    pub(crate) fn wait_for_gap(&self) -> (SystemTime, SystemTime) {
        self.wait("Gap", |records| gaps(records).next())
    }

    #[track_caller]
    pub(crate) fn wait_for_down(&self) -> DownReason {
        self.wait("Down", |records| {
            events(records).find_map(|event| match event {
                SubscriberEvent::Down { reason } => Some(reason.clone()),
                _ => None,
            })
        })
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        self.0.state.lock().unwrap().records.clone()
    }

    /// From now on the sink blocks at the first message on the channel.
    pub(crate) fn block(&self, channel: &str) {
        self.0.state.lock().unwrap().blocked = Some(channel.to_owned());
    }

    #[track_caller]
    pub(crate) fn wait_until_blocked(&self) {
        wait_until("a message comes to a blocked sink", || {
            self.0.state.lock().unwrap().is_blocking
        });
    }

    pub(crate) fn unblock(&self) {
        self.0.state.lock().unwrap().blocked = None;
        self.0.changed.notify_all();
    }

    fn add(&self, record: Record) {
        self.0.state.lock().unwrap().records.push(record);
        self.0.changed.notify_all();
    }
}

impl Sink for Recorder {
    fn message(&self, channel: &[u8], payload: &[u8]) {
        let channel = String::from_utf8(channel.to_vec()).unwrap();
        let mut state = self.0.state.lock().unwrap();
        while state.blocked.as_ref() == Some(&channel) {
            state.is_blocking = true;
            state = self.0.changed.wait(state).unwrap();
        }
        state.is_blocking = false;
        drop(state);
        self.add(Record::Message {
            channel,
            payload: payload.to_vec(),
        });
    }

    fn event(&self, event: SubscriberEvent) {
        self.add(Record::Event(event));
    }
}

pub(crate) fn messages<'a>(
    records: &'a [Record],
    wanted: &'a str,
) -> impl Iterator<Item = &'a [u8]> {
    records.iter().filter_map(move |record| match record {
        Record::Message { channel, payload } if channel == wanted => Some(&payload[..]),
        _ => None,
    })
}

pub(crate) fn events(records: &[Record]) -> impl Iterator<Item = &SubscriberEvent> {
    records.iter().filter_map(|record| match record {
        Record::Event(event) => Some(event),
        Record::Message { .. } => None,
    })
}

pub(crate) fn gaps(records: &[Record]) -> impl Iterator<Item = (SystemTime, SystemTime)> {
    events(records).filter_map(|event| match event {
        SubscriberEvent::Gap { from, to } => Some((*from, *to)),
        _ => None,
    })
}

/// A subscriber under test.
pub(crate) struct Link {
    pub(crate) recorder: Recorder,
    pub(crate) subscriber: Subscriber,
    pub(crate) runtime: Runtime,
}

impl Link {
    pub(crate) fn of(server: &Redis) -> Self {
        Self::start(&server.url(), server.port, |_| ())
    }

    /// A subscriber of `url` whose probes go straight to the server at `port`.
    pub(crate) fn start(url: &str, port: u16, change: impl FnOnce(&mut SubscriberConfig)) -> Self {
        let prober = Prober::new(port, "PUBLISH");
        let send_probe = Arc::new(move |channel: &str, number| prober.send(channel, number));
        let mut config = SubscriberConfig::new(Arc::new(|_| PROBE.into()), send_probe);
        config.probe_interval = Duration::from_millis(50);
        change(&mut config);
        Self::launch(Endpoint::new(url.parse().unwrap()), config)
    }

    /// With the channel `a`, when a probe has come back.
    #[track_caller]
    pub(crate) fn with_a(self) -> Self {
        self.subscribe_confirmed(["a"]);
        self.wait_until_healthy();
        self
    }

    pub(crate) fn launch(endpoint: Endpoint, config: SubscriberConfig) -> Self {
        let runtime = runtime();
        let recorder = Recorder::default();
        let guard = runtime.enter();
        let subscriber = Subscriber::start(endpoint, config, recorder.clone());
        drop(guard);
        Self {
            recorder,
            subscriber,
            runtime,
        }
    }

    pub(crate) fn subscribe(&self, names: impl IntoIterator<Item = impl Into<Arc<str>>>) {
        let names = names.into_iter().map(Into::into);
        self.subscriber.subscribe(Priority::Room, names);
    }

    #[track_caller]
    pub(crate) fn subscribe_confirmed(&self, names: impl IntoIterator<Item = impl Into<Arc<str>>>) {
        let names: Vec<Arc<str>> = names.into_iter().map(Into::into).collect();
        self.subscribe(names.iter().cloned());
        self.confirm(&names);
    }

    /// Waits until Redis has confirmed what was asked for last.
    #[track_caller]
    pub(crate) fn confirm(&self, names: &[Arc<str>]) {
        let confirmed = self.subscriber.confirm(names.to_vec(), DEADLINE);
        assert_eq!(self.runtime.block_on(confirmed), Ok(()));
    }

    #[track_caller]
    pub(crate) fn wait_until_healthy(&self) {
        wait_until("the subscriber gets healthy", || {
            matches!(self.subscriber.state(), SubscriberState::Up { .. })
        });
    }

    #[track_caller]
    pub(crate) fn wait_until_down(&self) -> DownReason {
        until("the subscriber is down", || match self.subscriber.state() {
            SubscriberState::Down { reason } => Some(reason),
            SubscriberState::Up { .. } => None,
        })
    }

    /// Waits until Redis refuses a channel, and returns its name.
    #[track_caller]
    pub(crate) fn wait_until_refused(&self) -> Arc<str> {
        until("a channel is refused", || match self.subscriber.state() {
            SubscriberState::Down {
                reason: DownReason::Refused { name, .. },
            } => Some(name),
            _ => None,
        })
    }

    /// How many connections have subscribed everything.
    pub(crate) fn connections(&self) -> usize {
        let records = self.recorder.records();
        let ups = events(&records).filter(|event| matches!(event, SubscriberEvent::Up { .. }));
        ups.count()
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}
