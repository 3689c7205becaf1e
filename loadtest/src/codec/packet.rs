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

    /// Packets as the official encoder writes them: messages, then kind, namespace, id and body.
    const VECTORS: [(&str, Kind, &str, Option<u64>, &str); 19] = [
        ("0", Kind::Connect, "/", None, ""),
        (
            r#"0{"sid":"abc"}"#,
            Kind::Connect,
            "/",
            None,
            r#"{"sid":"abc"}"#,
        ),
        (
            r#"0/chat,{"sid":"abc"}"#,
            Kind::Connect,
            "/chat",
            None,
            r#"{"sid":"abc"}"#,
        ),
        ("0/chat", Kind::Connect, "/chat", None, ""),
        ("1", Kind::Disconnect, "/", None, ""),
        ("1/chat,", Kind::Disconnect, "/chat", None, ""),
        (r#"2["a"]"#, Kind::Event, "/", None, r#"["a"]"#),
        (
            r#"2["a",1,"b",null,true,{"c":[]}]"#,
            Kind::Event,
            "/",
            None,
            r#"["a",1,"b",null,true,{"c":[]}]"#,
        ),
        (r#"2/chat,["a"]"#, Kind::Event, "/chat", None, r#"["a"]"#),
        (r#"20["a"]"#, Kind::Event, "/", Some(0), r#"["a"]"#),
        (r#"212["a"]"#, Kind::Event, "/", Some(12), r#"["a"]"#),
        (
            r#"2/chat,12["a"]"#,
            Kind::Event,
            "/chat",
            Some(12),
            r#"["a"]"#,
        ),
        ("30[]", Kind::Ack, "/", Some(0), "[]"),
        (
            r#"3/chat,7["x",1]"#,
            Kind::Ack,
            "/chat",
            Some(7),
            r#"["x",1]"#,
        ),
        (
            r#"4{"message":"no"}"#,
            Kind::ConnectError,
            "/",
            None,
            r#"{"message":"no"}"#,
        ),
        (
            r#"4/chat,"text""#,
            Kind::ConnectError,
            "/chat",
            None,
            r#""text""#,
        ),
        (
            r#"51-["a",{"_placeholder":true,"num":0}]"#,
            Kind::Binary,
            "/",
            None,
            r#"["a",{"_placeholder":true,"num":0}]"#,
        ),
        (
            r#"61-/chat,9["x"]"#,
            Kind::Binary,
            "/chat",
            Some(9),
            r#"["x"]"#,
        ),
        (
            "2/é ?x=1,[\"é€😀\"]",
            Kind::Event,
            "/é ?x=1",
            None,
            "[\"é€😀\"]",
        ),
    ];

    #[test]
    fn packets_of_the_official_encoder_are_read() {
        for (message, kind, namespace, ack, body) in VECTORS {
            let body = body.as_bytes();
            let packet = Packet { kind, ack, body };
            assert_eq!(
                read(message.as_bytes(), namespace),
                Some(packet),
                "{message}"
            );
            let elsewhere = read(message.as_bytes(), "/elsewhere");
            assert_eq!(elsewhere, None, "{message}");
        }
    }

    #[test]
    fn events_and_acks_are_written_as_the_official_encoder_writes_them() {
        for (message, kind, namespace, ack, body) in VECTORS {
            if matches!(kind, Kind::Event | Kind::Ack) {
                let mut out = Vec::new();
                write_head(&mut out, message.as_bytes()[0], namespace, ack);
                out.extend_from_slice(body.as_bytes());
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
