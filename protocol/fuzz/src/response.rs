//! The reader of responses to what the program posts and relays.
//!
//! It belongs to the program, which has no library, so its file is compiled here once more.

#[path = "../../../node/src/gateway/outbound/response.rs"]
#[expect(dead_code, reason = "a part of it is for other files of the program")]
mod reader;

use reader::{Reader, StreamedHead};

/// The status and the body of a response that is whole, or why there is none.
type Outcome = Result<Option<(u16, Vec<u8>)>, String>;

/// The first byte chooses the largest body, and whether the connection ends. It does not matter how a response
/// is split, except for the body of an error's status, which is not waited for.
pub(crate) fn http_response(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let (max, is_end) = (1 << (first % 12), first & 0x80 != 0);
    let at_once = go_on(&mut Reader::new(max), data, is_end);
    let mut reader = Reader::new(max);
    let parts = (0..data.len()).map(|end| (end, false));
    let mut parts = parts.chain([(data.len(), is_end)]);
    let in_parts = parts.find_map(|(end, is_end)| {
        let outcome = go_on(&mut reader, &data[..end], is_end);
        (outcome != Ok(None)).then_some(outcome)
    });
    match (&at_once, in_parts.unwrap_or(Ok(None))) {
        (Ok(Some((status, body))), Ok(Some((same, parts)))) => {
            assert_eq!(*status, same);
            assert!(*body == parts || !is_success(same));
            assert!(parts.len() <= max || !is_success(same));
        }
        // The body of an error's status may be wrong where it was not read.
        (Err(_), Ok(Some((status, _)))) => assert!(!is_success(status)),
        (one, other) => assert_eq!(*one, other),
    }
    streamed(data, is_end, at_once);
}

fn go_on(reader: &mut Reader, data: &[u8], is_end: bool) -> Outcome {
    let whole = reader
        .read(data, is_end)
        .map_err(|error| error.to_string())?;
    Ok(whole.map(|whole| {
        let body = reader.body(data, &whole);
        (whole.status.as_u16(), body.to_vec())
    }))
}

/// The head is the same in parts, and the body behind it is that of the other reader.
fn streamed(data: &[u8], is_end: bool, whole: Outcome) {
    let read = |end: usize, is_end| {
        let head = StreamedHead::read(&data[..end], is_end);
        head.map_err(|error| error.to_string())
    };
    let early = (0..data.len()).find_map(|end| read(end, false).transpose());
    let Ok(Some(head)) = read(data.len(), is_end) else {
        assert!(!matches!(early, Some(Ok(_))), "only a part has a head");
        return;
    };
    if let Some(early) = early {
        let early = early.expect("what is right as a whole is right in part");
        assert_eq!(early.status, head.status);
        assert_eq!(early.headers, head.headers);
        assert_eq!((early.body_at, early.length), (head.body_at, head.length));
    }
    if let Ok(Some((status, body))) = whole
        && is_success(status)
    {
        assert_eq!(body, data[head.body_at..][..head.length]);
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}
