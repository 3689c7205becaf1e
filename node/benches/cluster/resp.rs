//! Redis's protocol by hand: commands written, replies scanned in place.
//!
//! It shares no code with the library, and is what the floors pay for talking to Redis.

use std::io;

/// One value that is not an array; arrays are scanned as what they hold, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Integer(i64),
    Text(&'a [u8]),
    Error(&'a [u8]),
    Nil,
}

/// Appends a command.
pub(crate) fn command(out: &mut Vec<u8>, args: &[&[u8]]) {
    push_head(out, b'*', args.len());
    for arg in args {
        push_head(out, b'$', arg.len());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// Scans the value at the start of `bytes`, and says where it ends; `None` if it goes on after the
/// end of `bytes`, and then what has been seen of it does not count.
pub(crate) fn scan<'a>(
    bytes: &'a [u8],
    seen: &mut impl FnMut(Piece<'a>),
) -> io::Result<Option<usize>> {
    let Some(line_end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let (kind, line) = (bytes[0], &bytes[1..line_end]);
    let mut end = line_end + 2;
    match kind {
        b'+' => seen(Piece::Text(line)),
        b'-' => seen(Piece::Error(line)),
        b':' => seen(Piece::Integer(number(line)?)),
        b'$' => match usize::try_from(number(line)?) {
            Err(_) => seen(Piece::Nil),
            Ok(length) => {
                let Some(text) = bytes.get(end..end + length) else {
                    return Ok(None);
                };
                end += length + 2;
                if bytes.len() < end {
                    return Ok(None);
                }
                seen(Piece::Text(text));
            }
        },
        b'*' => {
            for _ in 0..number(line)? {
                match scan(&bytes[end..], seen)? {
                    Some(length) => end += length,
                    None => return Ok(None),
                }
            }
        }
        _ => return Err(io::Error::other("what Redis says is no reply")),
    }
    Ok(Some(end))
}

/// A message of a subscription: its channel and what was published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard<'a> {
    pub(crate) channel: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// Scans one value of a connection that subscribes; what is no message is `None`.
pub(crate) fn scan_heard(bytes: &[u8]) -> io::Result<Option<(Option<Heard<'_>>, usize)>> {
    let mut pieces = [Piece::Nil; 3];
    let mut count = 0;
    let mut error = false;
    let end = scan(bytes, &mut |piece| {
        error |= matches!(piece, Piece::Error(_));
        if let Some(place) = pieces.get_mut(count) {
            *place = piece;
        }
        count += 1;
    })?;
    let Some(end) = end else { return Ok(None) };
    if error {
        return Err(io::Error::other("Redis refused a subscription"));
    }
    let heard = match pieces {
        [
            Piece::Text(b"message" | b"smessage"),
            Piece::Text(channel),
            Piece::Text(payload),
        ] => Some(Heard { channel, payload }),
        _ => None,
    };
    Ok(Some((heard, end)))
}

fn number(digits: &[u8]) -> io::Result<i64> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| io::Error::other("what Redis says is no number"))
}

fn push_head(out: &mut Vec<u8>, kind: u8, number: usize) {
    out.push(kind);
    out.extend_from_slice(number.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}
