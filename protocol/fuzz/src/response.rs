//! The reader of responses to what the program posts and relays.
//!
//! It belongs to the program, which has no library, so its file is compiled here once more.

#[path = "../../../node/src/gateway/outbound/response.rs"]
mod reader;

use reader::Reader;

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
    match (at_once, in_parts.unwrap_or(Ok(None))) {
        (Ok(Some((status, body))), Ok(Some((same, parts)))) => {
            assert_eq!(status, same);
            assert!(body == parts || !is_success(same));
            assert!(parts.len() <= max || !is_success(same));
        }
        // The body of an error's status may be wrong where it was not read.
        (Err(_), Ok(Some((status, _)))) => assert!(!is_success(status)),
        (one, other) => assert_eq!(one, other),
    }
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

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}
