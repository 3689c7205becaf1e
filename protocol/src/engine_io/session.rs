//! The life of one Engine.IO session as a state machine: the heartbeat, and what each packet from
//! the client means. Times come in as arguments; actions come out as values.
//!
//! Revision 3 stands beside revision 4: there the client sends the pings.

use std::time::Duration;

use super::{
    open::Revision,
    packet::{Message, Packet},
};
use crate::time::Time;

/// How often to ping, and how long to wait for the answer.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    pub interval: Duration,
    pub timeout: Duration,
}

#[derive(Debug)]
pub enum Session {
    V4(SessionV4),
    V3(SessionV3),
}

/// What a packet asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    Message(Message<'a>),
    /// Answer with a pong that carries this text (revision 3).
    Pong(&'a str),
    Nothing,
    Close,
}

/// A packet that a client must not send; ends the session.
#[derive(Debug, PartialEq, Eq)]
pub struct UnexpectedPacket;

/// What the passing of time asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Tick {
    Nothing,
    SendPing,
    TimedOut,
}

impl Session {
    pub fn new(revision: Revision, heartbeat: Heartbeat, now: Time) -> Self {
        match revision {
            Revision::V4 => Self::V4(SessionV4::Idle {
                ping_at: now.after(heartbeat.interval),
            }),
            Revision::V3 => Self::V3(SessionV3::renewed(heartbeat, now)),
        }
    }

    /// When [`tick`](Self::tick) has to be called next.
    pub fn deadline(&self) -> Time {
        match *self {
            Self::V4(SessionV4::Idle { ping_at: at } | SessionV4::Waiting { pong_by: at })
            | Self::V3(SessionV3 { ping_by: at }) => at,
        }
    }

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

    pub fn receive<'a>(
        &mut self,
        packet: Packet<'a>,
        heartbeat: Heartbeat,
        now: Time,
    ) -> Result<Received<'a>, UnexpectedPacket> {
        match (packet, self) {
            (Packet::Message(message), _) => Ok(Received::Message(message)),
            (Packet::Close, _) => Ok(Received::Close),
            // Node's server ignores these, and so do we.
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

/// Revision 4: the server pings.
#[derive(Debug)]
pub enum SessionV4 {
    Idle { ping_at: Time },
    Waiting { pong_by: Time },
}

/// Revision 3: the client pings.
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
