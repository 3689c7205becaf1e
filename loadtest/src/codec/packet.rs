//! Socket.IO packets (revision 5) for a client of one namespace, and Engine.IO payloads (revision
//! 4).

/// A packet of the client's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) kind: Kind,
    pub(crate) ack: Option<u64>,
    /// JSON, may be empty.
    pub(crate) body: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Connect,
    Disconnect,
    Event,
    Ack,
    ConnectError,
    /// An event or an acknowledgement whose attachments follow as separate messages.
    Binary,
}

/// Parses a packet without the `4` of the Engine.IO message. Returns `None` if it is malformed or
/// does not belong to the client's `namespace`.
pub(crate) fn read<'a>(message: &'a [u8], namespace: &str) -> Option<Packet<'a>> {
    let (kind, mut rest) = message.split_first()?;
    let kind = match kind {
        b'0' => Kind::Connect,
        b'1' => Kind::Disconnect,
        b'2' => Kind::Event,
        b'3' => Kind::Ack,
        b'4' => Kind::ConnectError,
        b'5' | b'6' => {
            let dash = rest.iter().position(|byte| *byte == b'-')?;
            rest = &rest[dash + 1..];
            Kind::Binary
        }
        _ => return None,
    };
    if rest.first() == Some(&b'/') {
        let end = rest.iter().position(|byte| *byte == b',');
        if &rest[..end.unwrap_or(rest.len())] != namespace.as_bytes() {
            return None;
        }
        rest = end.map_or(&[], |end| &rest[end + 1..]);
    } else if namespace != "/" {
        return None;
    }
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, body) = rest.split_at(digits);
    let ack = match digits {
        [] => None,
        digits => Some(number(digits)?),
    };
    Some(Packet { kind, ack, body })
}

/// Appends the head of a packet, including the `4` of the Engine.IO message.
pub(crate) fn write_head(out: &mut Vec<u8>, kind: u8, namespace: &str, ack: Option<u64>) {
    out.extend_from_slice(&[b'4', kind]);
    if namespace != "/" {
        out.extend_from_slice(namespace.as_bytes());
        out.push(b',');
    }
    if let Some(ack) = ack {
        out.extend_from_slice(ack.to_string().as_bytes());
    }
}

/// Splits a polling body into packets.
pub(crate) fn split_payload(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|byte| *byte == SEPARATOR)
}

/// Separates the packets of a polling body.
pub(crate) const SEPARATOR: u8 = 0x1e;

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets as the official encoder writes them: the message, namespace, id and body.
    const VECTORS: &str = r#"
        0                                           | /       |    |
        0{"sid":"abc"}                              | /       |    | {"sid":"abc"}
        0/chat,{"sid":"abc"}                        | /chat   |    | {"sid":"abc"}
        0/chat                                      | /chat   |    |
        1                                           | /       |    |
        1/chat,                                     | /chat   |    |
        2["a"]                                      | /       |    | ["a"]
        2["a",1,"b",null,true,{"c":[]}]             | /       |    | ["a",1,"b",null,true,{"c":[]}]
        2/chat,["a"]                                | /chat   |    | ["a"]
        20["a"]                                     | /       | 0  | ["a"]
        212["a"]                                    | /       | 12 | ["a"]
        2/chat,12["a"]                              | /chat   | 12 | ["a"]
        2/é ?x=1,["é€😀"]                           | /é ?x=1 |    | ["é€😀"]
        30[]                                        | /       | 0  | []
        3/chat,7["x",1]                             | /chat   | 7  | ["x",1]
        4{"message":"no"}                           | /       |    | {"message":"no"}
        4/chat,"text"                               | /chat   |    | "text"
        51-["a",{"_placeholder":true,"num":0}]      | /       |    | ["a",{"_placeholder":true,"num":0}]
        61-/chat,9["x"]                             | /chat   | 9  | ["x"]
    "#;

    /// Message, namespace, and the packet.
    fn vectors() -> impl Iterator<Item = (&'static str, &'static str, Packet<'static>)> {
        use Kind::{Ack, Binary, Connect, ConnectError, Disconnect, Event};
        VECTORS.trim().lines().map(|line| {
            let mut cells = line.split('|').map(str::trim);
            let [message, namespace, ack, body] = [(); 4].map(|()| cells.next().unwrap());
            let number = usize::from(message.as_bytes()[0] - b'0');
            let kinds = [
                Connect,
                Disconnect,
                Event,
                Ack,
                ConnectError,
                Binary,
                Binary,
            ];
            let packet = Packet {
                kind: kinds[number],
                ack: ack.parse().ok(),
                body: body.as_bytes(),
            };
            (message, namespace, packet)
        })
    }

    #[test]
    fn packets_of_the_official_encoder_are_read() {
        assert_eq!(vectors().count(), 19);
        for (message, namespace, packet) in vectors() {
            let found = read(message.as_bytes(), namespace);
            assert_eq!(found, Some(packet), "{message}");
            let elsewhere = read(message.as_bytes(), "/elsewhere");
            assert_eq!(elsewhere, None, "{message}");
        }
    }

    #[test]
    fn events_and_acks_are_written_as_the_official_encoder_writes_them() {
        for (message, namespace, packet) in vectors() {
            if matches!(packet.kind, Kind::Event | Kind::Ack) {
                let mut out = Vec::new();
                write_head(&mut out, message.as_bytes()[0], namespace, packet.ack);
                out.extend_from_slice(packet.body);
                assert_eq!(String::from_utf8(out).unwrap(), format!("4{message}"));
            }
        }
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        for message in ["", "7", "a", "5[\"a\"]", "399999999999999999999999[]"] {
            assert_eq!(read(message.as_bytes(), "/"), None, "{message}");
        }
    }

    #[test]
    fn a_payload_is_split_at_its_separators() {
        let packets: Vec<_> = split_payload("2\u{1e}4é\u{1e}6".as_bytes()).collect();
        assert_eq!(packets, ["2".as_bytes(), "4é".as_bytes(), "6".as_bytes()]);
    }
}
