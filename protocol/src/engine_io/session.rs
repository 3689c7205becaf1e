//! The heartbeat of one Engine.IO session as a state machine, and the meaning of each packet that a
//! client sends. Times are arguments; actions are return values.
//!
//! The owner calls [`Session::receive`] for each packet and [`Session::tick`] no later
//! than [`Session::deadline`]. There is a single deadline per session, because the server
//! keeps one timer entry per connection and an idle connection costs nothing else.
//!
//! Revision 4, where the server pings:
//!
//! ```text
//!              tick at ping_at: SendPing
//!        ┌────────────────────────────────────┐
//!        │                                    ▼
//!   Idle { ping_at }                  Waiting { pong_by }
//!        ▲                                    │      │
//!        └────────────────────────────────────┘      │ tick at pong_by
//!          Pong: ping_at = now + interval            ▼
//!                                                 TimedOut
//! ```
//!
//! Only a pong counts as a pong: messages do not move the deadline, as in Node's server. A pong in
//! `Idle` restarts the interval; a ping from the client is an error.
//!
//! Revision 3, where the client pings:
//!
//! ```text
//!   { ping_by } ── Ping: reply with Pong, ping_by = now + interval + timeout ──▶ { ping_by }
//!        │
//!        └── tick at ping_by ──▶ TimedOut
//! ```
//!
//! A pong from the client is an error. In both revisions `Close` ends the session, and `Open`,
//! `Upgrade` and `Noop` are ignored, as in Node's server.

use std::time::Duration;

use super::{
    open::Revision,
    packet::{Message, Packet},
};
use crate::time::Time;

/// The intervals of the heartbeat, as the handshake announced them.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    /// The time from the last pong to the next ping.
    pub interval: Duration,
    /// The time that the other side has for its reply.
    pub timeout: Duration,
}

/// The state of one session's heartbeat.
#[derive(Debug)]
pub enum Session {
    /// Of revision 4.
    V4(SessionV4),
    /// Of revision 3.
    V3(SessionV3),
}

/// The owner's task after a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// Pass the message to the layer above.
    Message(Message<'a>),
    /// Reply with a pong that carries this text (revision 3).
    Pong(&'a str),
    /// Nothing.
    Nothing,
    /// Close the session: the client requested it.
    Close,
}

/// The client sent a packet that only a server may send. It ends the session.
#[derive(Debug, PartialEq, Eq)]
pub struct UnexpectedPacket;

/// The owner's task at a point in time.
#[derive(Debug, PartialEq, Eq)]
pub enum Tick {
    /// Nothing; the deadline has not come.
    Nothing,
    /// Send a ping.
    SendPing,
    /// Close the session: the client did not reply in time.
    TimedOut,
}

impl Session {
    /// A session that was opened at `now`.
    pub fn new(revision: Revision, heartbeat: Heartbeat, now: Time) -> Self {
        match revision {
            Revision::V4 => Self::V4(SessionV4::Idle {
                ping_at: now.after(heartbeat.interval),
            }),
            Revision::V3 => Self::V3(SessionV3::renewed(heartbeat, now)),
        }
    }

    /// When [`tick`](Self::tick) must be called next.
    pub fn deadline(&self) -> Time {
        match *self {
            Self::V4(SessionV4::Idle { ping_at: at } | SessionV4::Waiting { pong_by: at })
            | Self::V3(SessionV3 { ping_by: at }) => at,
        }
    }

    /// Advances the heartbeat to `now`. Before the deadline this does nothing.
    pub fn tick(&mut self, heartbeat: Heartbeat, now: Time) -> Tick {
        if now < self.deadline() {
            return Tick::Nothing;
        }
        match self {
            Self::V4(state @ SessionV4::Idle { .. }) => {
                *state = SessionV4::Waiting {
                    pong_by: now.after(heartbeat.timeout),
                };
                Tick::SendPing
            }
            Self::V4(SessionV4::Waiting { .. }) | Self::V3(_) => Tick::TimedOut,
        }
    }

    /// Interprets a packet that came at `now`.
    ///
    /// # Errors
    ///
    /// A ping in revision 4 or a pong in revision 3; the session must be closed.
    pub fn receive<'a>(
        &mut self,
        packet: Packet<'a>,
        heartbeat: Heartbeat,
        now: Time,
    ) -> Result<Received<'a>, UnexpectedPacket> {
        match (packet, self) {
            (Packet::Message(message), _) => Ok(Received::Message(message)),
            (Packet::Close, _) => Ok(Received::Close),
            // Node's server ignores these, too.
            (Packet::Open(_) | Packet::Upgrade | Packet::Noop, _) => Ok(Received::Nothing),
            (Packet::Pong(_), Self::V4(state)) => {
                *state = SessionV4::Idle {
                    ping_at: now.after(heartbeat.interval),
                };
                Ok(Received::Nothing)
            }
            (Packet::Ping(text), Self::V3(state)) => {
                *state = SessionV3::renewed(heartbeat, now);
                Ok(Received::Pong(text))
            }
            (Packet::Ping(_), Self::V4(_)) | (Packet::Pong(_), Self::V3(_)) => {
                Err(UnexpectedPacket)
            }
        }
    }
}

/// The heartbeat of revision 4, in which the server pings.
#[derive(Debug)]
pub enum SessionV4 {
    /// Between a pong and the next ping.
    Idle {
        /// When to ping.
        ping_at: Time,
    },
    /// A ping was sent.
    Waiting {
        /// When the session times out without a pong.
        pong_by: Time,
    },
}

/// The heartbeat of revision 3, in which the client pings.
#[derive(Debug)]
pub struct SessionV3 {
    ping_by: Time,
}

impl SessionV3 {
    fn renewed(heartbeat: Heartbeat, now: Time) -> Self {
        Self {
            ping_by: now.after(heartbeat.interval).after(heartbeat.timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Heartbeat = Heartbeat {
        interval: Duration::from_secs(25),
        timeout: Duration::from_secs(20),
    };

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    #[test]
    fn the_server_pings_and_waits_for_the_pong() {
        let mut session = Session::new(Revision::V4, HEARTBEAT, at(0));
        assert_eq!(session.tick(HEARTBEAT, at(24)), Tick::Nothing);
        assert_eq!(session.tick(HEARTBEAT, at(25)), Tick::SendPing);
        assert_eq!(session.tick(HEARTBEAT, at(44)), Tick::Nothing);
        assert_eq!(
            session.receive(Packet::Pong(""), HEARTBEAT, at(44)),
            Ok(Received::Nothing)
        );
        assert_eq!(
            session.deadline(),
            at(69),
            "the next ping counts from the pong"
        );
        assert_eq!(session.tick(HEARTBEAT, at(69)), Tick::SendPing);
        assert_eq!(session.tick(HEARTBEAT, at(89)), Tick::TimedOut);
    }

    #[test]
    fn only_a_pong_counts_as_a_pong() {
        let mut session = Session::new(Revision::V4, HEARTBEAT, at(0));
        assert_eq!(session.tick(HEARTBEAT, at(25)), Tick::SendPing);
        let message = Message::Text("2[\"x\"]".into());
        let received = session.receive(Packet::Message(message), HEARTBEAT, at(30));
        assert!(matches!(received, Ok(Received::Message(_))));
        assert_eq!(session.tick(HEARTBEAT, at(45)), Tick::TimedOut);
    }

    #[test]
    fn a_client_of_revision_4_must_not_ping() {
        let mut session = Session::new(Revision::V4, HEARTBEAT, at(0));
        assert_eq!(
            session.receive(Packet::Ping(""), HEARTBEAT, at(1)),
            Err(UnexpectedPacket)
        );
    }

    #[test]
    fn a_client_of_revision_3_pings_and_gets_its_text_back() {
        let mut session = Session::new(Revision::V3, HEARTBEAT, at(0));
        assert_eq!(
            session.receive(Packet::Ping("x"), HEARTBEAT, at(40)),
            Ok(Received::Pong("x"))
        );
        assert_eq!(session.tick(HEARTBEAT, at(84)), Tick::Nothing);
        assert_eq!(session.tick(HEARTBEAT, at(85)), Tick::TimedOut);
        assert_eq!(
            session.receive(Packet::Pong(""), HEARTBEAT, at(85)),
            Err(UnexpectedPacket)
        );
    }

    #[test]
    fn a_close_packet_closes_and_odd_packets_are_ignored() {
        let mut session = Session::new(Revision::V4, HEARTBEAT, at(0));
        for packet in [Packet::Open(""), Packet::Upgrade, Packet::Noop] {
            assert_eq!(
                session.receive(packet, HEARTBEAT, at(1)),
                Ok(Received::Nothing)
            );
        }
        assert_eq!(
            session.receive(Packet::Close, HEARTBEAT, at(1)),
            Ok(Received::Close)
        );
    }
}
