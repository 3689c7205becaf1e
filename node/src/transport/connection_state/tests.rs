//! A server machine and a small model client, joined by a pipe of bounded size. No runtime: the
//! steps determine when the lane, the driver, the client and the clock continue.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::transport::frame::WireForm;
use crate::transport::websocket::append_text;
use roomcast_protocol::engine_io::{packet::decode_text, payload::BodyWriter};

const FORM: Wire<'static> = Wire::EngineIo(WireForm {
    revision: Revision::V4,
    base64: false,
});

/// Times advance by this, as the ticks of a lane do.
const TICK: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
enum Step {
    /// Somebody else queues a packet of this size.
    Push {
        size: usize,
        volatile: bool,
        by_lane: bool,
    },
    /// The driver takes its turn; its handlers reply and others queue, in this order.
    Turn(Vec<InTurn>),
    Lane,
    ClientReads(usize),
    ClientPolls,
    ClientAnswersPings,
    Upgrade,
    Ticks(usize),
    Close(CloseReason),
    Abort,
}

#[derive(Debug, Clone)]
enum InTurn {
    Reply(usize),
    Push {
        size: usize,
        by_lane: bool,
    },
    BeginReplies,
    /// The lane runs while the driver is in its turn.
    Lane,
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 5_usize..40, 2 => 100_usize..3_000, 1 => 8_000_usize..40_000]
}

fn reasons() -> impl Strategy<Value = CloseReason> {
    prop::sample::select(vec![
        CloseReason::ServerDisconnect,
        CloseReason::ServerShutdown,
        CloseReason::OverlappingRequests,
        CloseReason::LimitReached(Limit::MessageSize),
        CloseReason::ParseError {
            kind: "bad_utf8",
            code: Some(1007),
        },
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let in_turn = prop_oneof![
        3 => sizes().prop_map(InTurn::Reply),
        1 => (sizes(), any::<bool>()).prop_map(|(size, by_lane)| InTurn::Push { size, by_lane }),
        1 => Just(InTurn::BeginReplies),
        1 => Just(InTurn::Lane),
    ];
    prop_oneof![
        8 => (sizes(), prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(size, volatile, by_lane)| Step::Push { size, volatile, by_lane }),
        8 => prop::collection::vec(in_turn, 0..4).prop_map(Step::Turn),
        6 => Just(Step::Lane),
        6 => (1_usize..30_000).prop_map(Step::ClientReads),
        3 => Just(Step::ClientPolls),
        3 => Just(Step::ClientAnswersPings),
        1 => Just(Step::Upgrade),
        2 => (1_usize..20).prop_map(Step::Ticks),
        1 => reasons().prop_map(Step::Close),
        1 => Just(Step::Abort),
    ]
}

/// The state of the client at the other end of its transport.
#[derive(Default)]
struct Client {
    bytes: Vec<u8>,
    /// Numbers of the packets it has received.
    received: Vec<usize>,
    pings: usize,
    /// The code of the close frame.
    closed: Option<Option<u16>>,
}

impl Client {
    /// Reads frames of a server, which are not masked.
    fn read(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while let Some((opcode, payload, len)) = frame(&self.bytes) {
            assert!(self.closed.is_none(), "nothing follows a close frame");
            match opcode {
                1 => {
                    let text = String::from_utf8(payload).expect("text is UTF-8");
                    self.packet(&text);
                }
                8 => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    self.closed = Some(code);
                }
                other => panic!("a frame of kind {other} was not sent"),
            }
            self.bytes.drain(..len);
        }
    }

    fn packet(&mut self, text: &str) {
        match decode_text(text).expect("the server sends packets") {
            Packet::Ping(_) => self.pings += 1,
            Packet::Message(_) => {
                let number = text[1..].split(':').next().expect("a number");
                self.received.push(number.parse().expect("a number"));
            }
            other => panic!("{other:?} was not sent"),
        }
    }
}

fn frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert!(
        first & 0xf0 == 0x80 && second & 0x80 == 0,
        "a whole frame, not masked"
    );
    let (head, len) = match second {
        126 => (
            4,
            usize::from(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?)),
        ),
        127 => {
            let len = u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?);
            (10, usize::try_from(len).expect("a size of this test"))
        }
        len => (2, usize::from(len)),
    };
    Some((
        first & 0x0f,
        bytes.get(head..head + len)?.to_vec(),
        head + len,
    ))
}

struct Pair {
    config: Config,
    state: ConnectionState,
    reach: Reach,
    client: Client,
    /// The bytes that the system buffers between server and client, and their maximum.
    pipe: VecDeque<u8>,
    capacity: usize,
    now: Time,
    /// The deadline for which the timer was set.
    armed: Time,
    lane_has_it: bool,
    driver_is_woken: bool,
    /// Packets that were accepted, in order.
    accepted: Vec<usize>,
    next: usize,
    /// Of the packets that were accepted when the connection closed.
    closed_after: Option<(CloseReason, usize)>,
    last_pong: Time,
    /// When the client last took something.
    last_taken: Time,
}

impl Pair {
    fn new(polling: bool, capacity: usize, interval: Duration) -> Self {
        let mut config = Config::default();
        config.heartbeat.interval = interval;
        config.limits.outbox_bytes = 200_000;
        config.limits.stall_timeout = Duration::from_secs(15);
        config.max_payload = 50_000;
        let now = Time::from_millis(0);
        let mut state = ConnectionState::new(Revision::V4, config.heartbeat, &config, now);
        state.claim();
        let armed = state.deadline();
        Self {
            config,
            state,
            reach: if polling {
                Reach::BetweenPolls
            } else {
                Reach::WebSocket
            },
            client: Client::default(),
            pipe: VecDeque::new(),
            capacity,
            now,
            armed,
            lane_has_it: false,
            driver_is_woken: true,
            accepted: Vec::new(),
            next: 0,
            closed_after: None,
            last_pong: now,
            last_taken: now,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push {
                size,
                volatile,
                by_lane,
            } => {
                let number = self.packet(size);
                self.push(&number, volatile, by_lane);
            }
            Step::Turn(work) => self.turn(&work),
            Step::Lane => self.lane(),
            Step::ClientReads(count) => self.client_reads(count),
            Step::ClientPolls => self.poll(),
            Step::ClientAnswersPings => self.answer_pings(),
            Step::Upgrade if self.reach != Reach::WebSocket && !self.state.is_expired() => {
                self.reach = Reach::WebSocket;
                self.state.attach();
                self.driver_is_woken = true;
            }
            Step::Upgrade => {}
            Step::Ticks(count) => (0..count).for_each(|_| self.tick()),
            Step::Close(reason) => {
                let todo = self.state.close(reason, self.reach, self.now);
                self.carry_out(todo);
            }
            Step::Abort => {
                let todo = self.state.abort(CloseReason::TransportError, self.now);
                self.carry_out(todo);
            }
        }
        self.check();
    }

    /// The text of the next packet: its number, and filling.
    fn packet(&mut self, size: usize) -> String {
        self.next += 1;
        let filling = "x".repeat(size);
        format!("{}:{filling}", self.next)
    }

    fn push(&mut self, text: &str, volatile: bool, by_lane: bool) {
        let frame = Frame::message(|out| out.extend_from_slice(text.as_bytes()), &[]);
        self.push_frame(&frame, volatile, by_lane, Some(self.next));
    }

    fn push_frame(&mut self, frame: &Frame, volatile: bool, by_lane: bool, number: Option<usize>) {
        let now = self.now;
        let queued = self.state.outbox.bytes();
        let push = self
            .state
            .push(frame, volatile, by_lane, self.reach, &self.config, || now);
        match push {
            Push::Queued { flush, waits } => {
                assert!(!(flush && waits), "what cannot be written is not flushed");
                self.lane_has_it |= flush;
                self.accepted.extend(number);
            }
            Push::Dropped => assert!(volatile, "only a volatile packet is dropped"),
            Push::Closed => assert!(self.state.closing().is_some()),
            Push::Cut(todo) => {
                let is_full = queued + frame.cost() > self.config.limits.outbox_bytes;
                assert!(is_full || self.is_stalled(), "only a slow client is cut");
                self.carry_out(todo);
            }
        }
    }

    /// Whether the client has read nothing for so long that it counts as slow.
    fn is_stalled(&self) -> bool {
        self.now >= self.last_taken.after(self.config.limits.stall_timeout)
    }

    fn carry_out(&mut self, todo: Todo) {
        if todo.arm {
            self.armed = self.state.deadline();
        }
        self.driver_is_woken |= todo.wake;
        if todo.wake && self.reach == Reach::WaitingPoll {
            self.fetch();
        }
    }

    fn tick(&mut self) {
        self.now = self.now.after(TICK);
        if self.now < self.armed || self.state.is_expired() {
            return;
        }
        match self.state.tick(self.reach, &self.config, self.now) {
            Due::Nothing => {}
            Due::Ping => self.push_frame(&Frame::packet("2"), false, true, None),
            Due::Closed(todo) => {
                let is_slow = matches!(self.state.closing(), Some(CloseReason::LimitReached(_)));
                let is_right = !is_slow || self.is_stalled() || self.closed_after.is_some();
                assert!(is_right, "only a slow client is cut");
                self.carry_out(todo);
            }
        }
        self.armed = self.state.deadline();
    }

    fn answer_pings(&mut self) {
        if std::mem::take(&mut self.client.pings) > 0 && self.state.closing().is_none() {
            let pong = Packet::Pong("");
            let (received, todo) = self.state.receive(pong, &self.config, self.now);
            assert_eq!(received, Ok(Received::Nothing));
            self.last_pong = self.now;
            self.carry_out(todo);
        }
    }

    fn lane(&mut self) {
        if !std::mem::take(&mut self.lane_has_it) {
            return;
        }
        let may_write = self.state.begin_flush();
        match self.reach {
            Reach::WebSocket if may_write => self.write(),
            Reach::WaitingPoll => self.fetch(),
            _ => {}
        }
    }

    fn turn(&mut self, work: &[InTurn]) {
        self.driver_is_woken = false;
        self.state.begin_turn();
        self.state.begin_replies(self.reach);
        let mut replies = Vec::new();
        for step in work {
            match step {
                InTurn::BeginReplies => self.state.begin_replies(self.reach),
                InTurn::Lane => self.lane(),
                InTurn::Push { size, by_lane } => {
                    let packet = self.packet(*size);
                    self.push(&packet, false, *by_lane);
                }
                InTurn::Reply(size) => {
                    let packet = self.packet(*size);
                    if self.state.may_reply_directly() {
                        append_text(&mut replies, |out| {
                            out.extend_from_slice(format!("4{packet}").as_bytes());
                        });
                        self.accepted.push(self.next);
                    } else {
                        self.push(&packet, false, false);
                    }
                }
            }
            self.check();
        }
        self.state.end_turn(&mut replies, FORM);
        if !replies.is_empty() {
            let count = self.fill(&replies).unwrap_or_default();
            self.state.replied(&replies, count);
        }
        if self.reach == Reach::WebSocket && self.state.driver_writes() {
            self.write();
        }
        if self.reach == Reach::WaitingPoll {
            self.fetch();
        }
    }

    /// Puts bytes into the pipe; none if it is full.
    fn fill(&mut self, bytes: &[u8]) -> Option<usize> {
        let count = bytes.len().min(self.capacity - self.pipe.len());
        self.pipe.extend(&bytes[..count]);
        if count > 0 {
            self.last_taken = self.now;
        }
        (count > 0).then_some(count)
    }

    fn write(&mut self) {
        let (mut scratch, mut progressed) = (Vec::new(), false);
        while let Some(bytes) = self.state.next_write(FORM, &mut scratch) {
            let bytes = bytes.to_vec();
            let Some(count) = self.fill(&bytes) else {
                self.state.block(progressed, self.now);
                return;
            };
            progressed = true;
            self.state.wrote(count, FORM);
        }
    }

    /// A poll fetches the queued packets, or waits.
    fn poll(&mut self) {
        if self.reach == Reach::BetweenPolls {
            self.reach = Reach::WaitingPoll;
            self.fetch();
        }
    }

    fn fetch(&mut self) {
        if !self.state.has_frames() {
            return;
        }
        let mut body = BodyWriter::new();
        for frame in self.state.take_frames(16, self.config.max_payload) {
            frame.write_polling_v4(&mut body);
        }
        let body = String::from_utf8(body.finish()).expect("text packets");
        body.split('\x1e')
            .for_each(|packet| self.client.packet(packet));
        self.reach = Reach::BetweenPolls;
        self.state.poll_ended(self.now);
        self.last_taken = self.now;
    }

    fn client_reads(&mut self, count: usize) {
        let count = count.min(self.pipe.len());
        let bytes: Vec<u8> = self.pipe.drain(..count).collect();
        self.client.read(&bytes);
        // The system tells the driver, which waits for it.
        self.driver_is_woken |= count > 0 && self.state.blocked;
    }

    /// The invariants after every step.
    fn check(&mut self) {
        let state = &self.state;
        let is_closing = state.closing.is_some();
        assert!(
            !state.direct
                || state.in_turn && state.outbox.is_empty() && !state.blocked && !is_closing,
            "replies go ahead of nothing"
        );
        assert!(
            !(state.dirty && state.blocked) || is_closing,
            "a full pipe is left to the driver"
        );
        assert!(
            !state.expired || is_closing,
            "only a closing connection expires"
        );
        assert!(
            !state.dirty || self.lane_has_it,
            "a dirty connection is on the lane's list"
        );
        let is_promised = state.outbox.is_empty()
            || state.dirty
            || state.in_turn
            || state.blocked
            || state.expired
            || self.driver_is_woken
            || self.reach == Reach::BetweenPolls;
        assert!(is_promised, "somebody writes what is queued");
        assert!(
            state.expired || self.armed <= state.deadline(),
            "the timer comes in time"
        );
        if let (Some(reason), None) = (state.closing(), self.closed_after) {
            self.closed_after = Some((reason, self.accepted.len()));
        }
        let silence = self.now.as_millis() - self.last_pong.as_millis();
        let heartbeat = self.config.heartbeat;
        let patience = (heartbeat.interval + heartbeat.timeout).as_millis();
        match state.closing() {
            None => assert!(u128::from(silence) <= patience + 2 * TICK.as_millis()),
            Some(CloseReason::PingTimeout) => assert!(u128::from(silence) >= patience),
            Some(_) => {}
        }
    }

    /// All parts continue until nothing is left; the client reads well now.
    fn finish(&mut self) {
        self.capacity = usize::MAX;
        for _ in 0..1_000 {
            self.lane();
            self.turn(&[]);
            self.client_reads(usize::MAX);
            self.poll();
            self.check();
            if self.pipe.is_empty() && !self.state.has_frames() && !self.lane_has_it {
                return;
            }
        }
        panic!("writing has no end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_is_accepted_arrives_once_in_order_and_before_the_close_frame_of_its_reason(
        polling in prop::bool::weighted(0.3),
        interval in 1_u64..30,
        capacity in prop_oneof![1_usize..400, 4_000_usize..60_000],
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut pair = Pair::new(polling, capacity, Duration::from_secs(interval));
        for step in steps {
            pair.step(step);
        }
        pair.finish();
        let received = &pair.client.received;
        prop_assert!(pair.accepted.starts_with(received), "{received:?} of {:?}", pair.accepted);
        match pair.closed_after {
            None => {
                prop_assert_eq!(received, &pair.accepted);
                prop_assert_eq!(pair.client.closed, None);
            }
            Some((reason, accepted)) => {
                prop_assert_eq!(accepted, pair.accepted.len(), "a closed connection takes nothing");
                if reason.flushes() && !pair.state.is_expired() {
                    prop_assert_eq!(received, &pair.accepted);
                }
                if let Some(code) = pair.client.closed {
                    prop_assert_eq!(code, reason.websocket_code());
                    prop_assert!(pair.client.bytes.is_empty());
                } else {
                    let is_cut = pair.state.is_expired() || !pair.client.bytes.is_empty();
                    prop_assert!(is_cut || pair.reach != Reach::WebSocket);
                    let torn = pair.client.bytes.get(4..).unwrap_or_default();
                    let is_torn = torn.ends_with(&[0x88, 0]);
                    prop_assert!(!is_torn, "no close frame goes into the middle of another");
                }
            }
        }
    }
}

#[test]
fn a_client_that_takes_a_little_is_not_slow_and_one_that_takes_nothing_is() {
    for reads in [true, false] {
        let mut pair = Pair::new(false, 1_000, Duration::from_secs(300));
        pair.push("1:", false, true);
        pair.step(Step::Push {
            size: 40_000,
            volatile: false,
            by_lane: true,
        });
        pair.step(Step::Lane);
        for _ in 0..30 {
            pair.step(Step::Ticks(2));
            if reads {
                pair.step(Step::ClientReads(10));
                pair.step(Step::Turn(Vec::new()));
            }
            pair.step(Step::Push {
                size: 10,
                volatile: false,
                by_lane: false,
            });
        }
        let slow = CloseReason::LimitReached(Limit::Outbox);
        assert_eq!(pair.state.closing(), (!reads).then_some(slow));
        let backlog = pair.state.take_backlog();
        assert_eq!(backlog.is_some(), !reads, "{backlog:?}");
    }
}

#[test]
fn a_closed_client_that_goes_on_reading_gets_the_time_for_what_was_queued() {
    for reads in [true, false] {
        let mut pair = Pair::new(false, 1_000, Duration::from_secs(25));
        for _ in 0..3 {
            pair.step(Step::Push {
                size: 10_000,
                volatile: false,
                by_lane: true,
            });
        }
        pair.step(Step::Lane);
        pair.step(Step::Close(CloseReason::ServerDisconnect));
        // Three times the time for which a client may read nothing.
        for _ in 0..15 {
            pair.step(Step::Ticks(2));
            if reads {
                pair.step(Step::ClientReads(1_000));
            }
            pair.step(Step::Turn(Vec::new()));
        }
        assert_eq!(pair.state.is_expired(), !reads);
        pair.step(Step::Close(CloseReason::ServerShutdown));
        pair.step(Step::Ticks(5));
        assert!(pair.state.is_expired(), "a shutdown does not wait");
    }
}

#[test]
fn volatile_packets_wait_for_the_next_poll_as_long_as_they_fit_into_it() {
    let mut pair = Pair::new(true, 100, Duration::from_secs(25));
    for _ in 0..10 {
        pair.step(Step::Push {
            size: 20_000,
            volatile: true,
            by_lane: true,
        });
    }
    pair.step(Step::ClientPolls);
    assert_eq!(pair.client.received, [1, 2]);
    assert_eq!(pair.accepted, [1, 2]);
}

#[test]
fn the_first_reason_counts_and_a_shutdown_shortens_the_wait() {
    let mut pair = Pair::new(true, 100, Duration::from_secs(25));
    pair.step(Step::Close(CloseReason::ServerDisconnect));
    let before = pair.state.deadline();
    pair.step(Step::Close(CloseReason::ServerShutdown));
    assert_eq!(pair.state.closing(), Some(CloseReason::ServerDisconnect));
    assert!(pair.state.deadline() < before && pair.armed == pair.state.deadline());
}

#[test]
fn a_connection_that_is_never_claimed_is_closed_after_the_connect_timeout() {
    let config = Config::default();
    let now = Time::from_millis(0);
    let mut state = ConnectionState::new(Revision::V4, config.heartbeat, &config, now);
    let due = now.after(config.connect_timeout);
    assert!(state.deadline() <= due);
    let (_, todo) = state.receive(Packet::Noop, &config, now);
    assert_eq!(todo, Todo::default());
    assert!(matches!(
        state.tick(Reach::WebSocket, &config, due),
        Due::Closed(_)
    ));
    assert_eq!(state.closing(), Some(CloseReason::ConnectTimeout));
}
