//! RESP2 as Redis speaks it, cut anywhere, and as nobody should speak it.

use proptest::prelude::*;

use super::*;

fn whole(input: &[u8]) -> Reply<'_> {
    match parse(input, &Limits::default()).unwrap() {
        Parsed::Whole(reply, length) => {
            assert_eq!(length, input.len());
            reply
        }
        Parsed::Incomplete(needed) => panic!("needs {needed} bytes"),
    }
}

#[track_caller]
fn check_broken(input: &[u8], error: RespError) {
    assert_eq!(parse(input, &Limits::default()), Err(error));
}

fn encoded(reply: &Reply<'_>, out: &mut Vec<u8>) {
    match reply {
        Reply::Simple(bytes) => out.extend([b"+", *bytes, b"\r\n"].concat()),
        Reply::Error(bytes) => out.extend([b"-", *bytes, b"\r\n"].concat()),
        Reply::Integer(number) => out.extend(format!(":{number}\r\n").into_bytes()),
        Reply::Bulk(bytes) => push_arg(out, bytes),
        Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
        Reply::Array(elements) => {
            begin_command(out, elements.len());
            elements.iter().for_each(|element| encoded(element, out));
        }
    }
}

#[test]
fn every_kind_of_reply_is_read() {
    assert_eq!(whole(b"+OK\r\n"), Reply::Simple(b"OK"));
    assert_eq!(whole(b"-ERR no\r\n").error().unwrap(), "ERR no");
    assert_eq!(whole(b":-12\r\n"), Reply::Integer(-12));
    assert_eq!(whole(b"$4\r\na\r\nb\r\n"), Reply::Bulk(b"a\r\nb"));
    assert_eq!(whole(b"$0\r\n\r\n"), Reply::Bulk(b""));
    assert_eq!(whole(b"$-1\r\n"), Reply::Nil);
    assert_eq!(whole(b"*-1\r\n"), Reply::Nil);
    assert_eq!(whole(b"*0\r\n"), Reply::Array(vec![]));
    assert_eq!(
        whole(b"*2\r\n*1\r\n:1\r\n$2\r\n17\r\n"),
        Reply::Array(vec![
            Reply::Array(vec![Reply::Integer(1)]),
            Reply::Bulk(b"17")
        ])
    );
    assert_eq!(whole(b"$2\r\n17\r\n").integer(), Some(17));
}

#[test]
fn pushes_are_told_apart() {
    let read = |input: &'static [u8]| match parse_push(input, &Limits::default()).unwrap() {
        Parsed::Whole(push, length) => {
            assert_eq!(length, input.len());
            push
        }
        Parsed::Incomplete(needed) => panic!("needs {needed} bytes"),
    };
    let message = Push::Message {
        channel: b"c",
        payload: b"hi",
    };
    assert_eq!(
        read(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n"),
        message
    );
    assert_eq!(
        read(b"*3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n"),
        message
    );
    assert_eq!(
        read(b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nc\r\n$2\r\nhi\r\n"),
        Push::PatternMessage {
            pattern: b"*",
            channel: b"c",
            payload: b"hi"
        }
    );
    let kind = SubscriptionKind::Shard;
    assert_eq!(
        read(b"*3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n"),
        Push::Subscribed { kind, name: b"c" }
    );
    assert_eq!(
        read(b"*3\r\n$12\r\nsunsubscribe\r\n$1\r\nc\r\n:0\r\n"),
        Push::Unsubscribed { kind, name: b"c" }
    );
    assert_eq!(
        read(b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n"),
        Push::Unsubscribed {
            kind: SubscriptionKind::Channel,
            name: b""
        }
    );
    assert_eq!(
        read(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"),
        Push::Reply(Reply::Array(vec![Reply::Bulk(b"pong"), Reply::Bulk(b"")]))
    );
    assert_eq!(read(b"-ERR x\r\n"), Push::Reply(Reply::Error(b"ERR x")));
}

#[test]
fn an_incomplete_string_says_how_long_it_will_be() {
    assert_eq!(
        parse(b"$100\r\nab", &Limits::default()),
        Ok(Parsed::Incomplete(108))
    );
    assert_eq!(
        parse_push(
            b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhi",
            &Limits::default()
        ),
        Ok(Parsed::Incomplete(17 + 7 + 4 + 7))
    );
}

#[test]
fn hostile_bytes_are_errors() {
    check_broken(b"GET / HTTP/1.1\r\n", RespError::InvalidType { byte: b'G' });
    check_broken(b"*1\r\n%1\r\n", RespError::InvalidType { byte: b'%' });
    check_broken(b"$x\r\n", RespError::InvalidNumber);
    check_broken(b"$-2\r\n", RespError::InvalidNumber);
    check_broken(b":\r\n", RespError::InvalidNumber);
    check_broken(b"$\r\n", RespError::InvalidNumber);
    check_broken(b"*99999999999999999999\r\n", RespError::InvalidNumber);
    check_broken(b"$1\r\nabc", RespError::InvalidEnd);
    check_broken(b"+OK\rx", RespError::InvalidEnd);
    check_broken(b"$1\rx", RespError::InvalidEnd);
}

#[test]
fn limits_hold_before_the_bytes_are_there() {
    let limit = 64 << 20;
    check_broken(
        b"$67108865\r\n",
        RespError::BulkTooLong {
            length: limit + 1,
            limit,
        },
    );
    check_broken(
        b"*1048577\r\n",
        RespError::TooManyElements { limit: 1 << 20 },
    );
    check_broken(
        b"*2\r\n*1048576\r\n",
        RespError::TooManyElements { limit: 1 << 20 },
    );
    check_broken(&b"*1\r\n".repeat(9), RespError::TooDeep { limit: 8 });
    check_broken(&[b'+'; 70_000], RespError::LineTooLong { limit: 64 << 10 });
    let long = [b"+".as_slice(), &[b'a'; 65_536], b"\r\n"].concat();
    assert_eq!(whole(&long), Reply::Simple(&[b'a'; 65_536]));
}

#[test]
fn commands_are_arrays_of_strings() {
    let mut out = Vec::new();
    let args: [&[u8]; 3] = [b"PUBLISH", b"", b"0123456789\r\n"];
    encode_command(&mut out, &args);
    assert_eq!(
        out,
        b"*3\r\n$7\r\nPUBLISH\r\n$0\r\n\r\n$12\r\n0123456789\r\n\r\n"
    );
    assert_eq!(out.len(), encoded_len(&args));
}

fn any_reply() -> impl Strategy<Value = Reply<'static>> {
    // The tests are short-lived: what they read may stay.
    let text = "[a-z :$*]{0,20}".prop_map(|text| &*text.into_bytes().leak());
    let bytes = proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| &*bytes.leak());
    let leaf = prop_oneof![
        text.clone().prop_map(Reply::Simple),
        text.prop_map(Reply::Error),
        any::<i64>().prop_map(Reply::Integer),
        bytes.prop_map(Reply::Bulk),
        Just(Reply::Nil),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        proptest::collection::vec(inner, 0..6).prop_map(Reply::Array)
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read_wherever_it_was_cut(reply in any_reply(), tail in 0usize..3) {
        let mut bytes = Vec::new();
        encoded(&reply, &mut bytes);
        let length = bytes.len();
        bytes.extend(std::iter::repeat_n(b'+', tail));
        for cut in 0..length {
            match parse(&bytes[..cut], &Limits::default()).unwrap() {
                Parsed::Incomplete(needed) => prop_assert!(needed > cut && needed <= length),
                Parsed::Whole(reply, _) => prop_assert!(false, "{reply:?} from a part"),
            }
        }
        prop_assert_eq!(parse(&bytes, &Limits::default()), Ok(Parsed::Whole(reply, length)));
    }

    #[test]
    fn no_bytes_make_a_parser_panic(
        head in 0..HEADS.len() + 1,
        bytes in proptest::collection::vec(
            prop_oneof![prop::sample::select(b"*$+-:\r\n0123456789".to_vec()), any::<u8>()],
            0..60,
        ),
    ) {
        let head = HEADS.get(head).map_or(&b""[..], |(head, _)| *head);
        let input = [head, &bytes].concat();
        let length = input.len();
        if let Ok(Parsed::Incomplete(needed)) = parse_push(&input, &Limits::default()) {
            prop_assert!(needed > length);
        }
        if let Ok(Parsed::Incomplete(needed)) = parse(&input, &Limits::default()) {
            prop_assert!(needed > length);
        }
    }
}
