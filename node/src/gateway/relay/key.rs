//! Signs and verifies relayed requests with the key of the cluster.
//!
//! The header `roomcast-relay` has the sender, its number, the time and the signature:
//! `NODE.NUMBER.MILLISECONDS.HEX`. The signature is an HMAC-SHA256 of all of these, the name of
//! the receiver, and the path with its query. So a request that was recorded is good for nothing
//! but itself: no other node accepts it, nor one that was started again at the same address,
//! because every start draws a new name. Signed requests have the method GET and no body.
//!
//! A link begins with such a request, whose header and a nonce of the receiver make the
//! keys for all that follows (`seal`).

use std::time::Duration;

use hex::FromHex as _;
use ring::{digest::SHA256_OUTPUT_LEN, hmac};
use roomcast::signing::Stamp;

use super::seal::Secret;

/// The header of a relayed request.
pub(super) const HEADER: &str = "roomcast-relay";

/// The first part of the signed bytes, which no other use of the key has.
const PURPOSE: &str = "roomcast relay 3";

/// The same for the keys of a link.
const LINK_PURPOSE: &str = "roomcast relay 3 keys";

/// How far the time of a request may be from that of the receiver. Both are Redis's.
pub(super) const TOLERANCE: Duration = Duration::from_secs(30);

/// The content of a valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verified<'a> {
    /// Its time is in milliseconds of the cluster's time since 1970.
    pub(super) stamp: Stamp<'a>,
    /// The place of the key that fits.
    pub(super) key: usize,
}

/// The keys of the cluster: the first one signs, all verify.
pub(super) struct Keys(Vec<hmac::Key>);

impl Keys {
    pub(super) fn new(keys: &[Box<[u8]>]) -> Self {
        let keys = keys
            .iter()
            .map(|key| hmac::Key::new(hmac::HMAC_SHA256, key));
        Self(keys.collect())
    }

    /// Returns the header of a request to a node, at a path with its query.
    pub(super) fn sign(&self, receiver: &str, path: &str, stamp: Stamp<'_>) -> String {
        let Stamp {
            sender,
            number,
            time,
        } = stamp;
        let stated = format!("{sender}.{number}.{time}");
        let text = signed(receiver, path, &stated);
        let signature = self.0.first().map(|key| hmac::sign(key, text.as_bytes()));
        let signature = signature.map(hex::encode).unwrap_or_default();
        format!("{stated}.{signature}")
    }

    /// Checks a header, but not whether the request came before. The error is a label of the
    /// metric.
    pub(super) fn verify<'a>(
        &self,
        receiver: &str,
        path: &str,
        header: &'a str,
        now: Duration,
    ) -> Result<Verified<'a>, &'static str> {
        let verified = self.read(receiver, path, header).ok_or("signature")?;
        if now.abs_diff(Duration::from_millis(verified.stamp.time)) > TOLERANCE {
            return Err("time");
        }
        Ok(verified)
    }

    /// Returns `None` if the header has another form, or no key fits.
    fn read<'a>(&self, receiver: &str, path: &str, header: &'a str) -> Option<Verified<'a>> {
        let (stated, signature) = header.rsplit_once('.')?;
        let signature = <[u8; SHA256_OUTPUT_LEN]>::from_hex(signature).ok()?;
        let text = signed(receiver, path, stated);
        // In constant time.
        let fits = |key: &hmac::Key| hmac::verify(key, text.as_bytes(), &signature).is_ok();
        let key = self.0.iter().position(fits)?;
        let mut parts = stated.split('.');
        let stamp = Stamp {
            sender: parts.next()?,
            number: parts.next()?.parse().ok()?,
            time: parts.next()?.parse().ok()?,
        };
        Some(Verified { stamp, key })
    }

    /// The secrets of a link: for records of the node that has sent this header, and for
    /// those of the node that has responded with the nonce. `key` is the place of the key that
    /// has signed the header.
    pub(super) fn of_link(&self, header: &str, nonce: &str, key: usize) -> Option<[Secret; 2]> {
        let key = self.0.get(key)?;
        let derive = |direction: &str| {
            let text = format!("{LINK_PURPOSE}\n{direction}\n{header}\n{nonce}");
            let secret = hmac::sign(key, text.as_bytes());
            Secret::try_from(secret.as_ref()).ok()
        };
        Some([derive("requests")?, derive("responses")?])
    }
}

/// The signed bytes. None of the parts contains a line feed.
fn signed(receiver: &str, path: &str, stated: &str) -> String {
    format!("{PURPOSE}\n{receiver}\n{path}\n{stated}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_millis(1_700_000_000_123);

    const PATH: &str = "/socket.io/?EIO=4&sid=x";

    const STAMP: Stamp<'_> = Stamp {
        sender: "sender",
        number: 7,
        time: 1_700_000_000_123,
    };

    fn keys(keys: &[&str]) -> Keys {
        let keys: Vec<Box<[u8]>> = keys.iter().map(|key| key.as_bytes().into()).collect();
        Keys::new(&keys)
    }

    #[test]
    fn it_is_what_other_languages_compute() {
        // printf 'roomcast relay 3\nowner\n/socket.io/?EIO=4&sid=x\nsender.7.1700000000123' |
        //   openssl dgst -sha256 -hmac key
        let header = keys(&["key"]).sign("owner", PATH, STAMP);
        assert_eq!(
            header,
            "sender.7.1700000000123.ac39178e6370c1ea7dd2ddf6ab8da78e6f4396a8bde7f8a74ce27fa71bccb6b2"
        );
    }

    #[test]
    fn what_is_signed_is_verified_with_every_key_of_the_receiver() {
        let header = keys(&["new", "old"]).sign("owner", PATH, STAMP);
        for (receiver, key) in [(keys(&["new"]), 0), (keys(&["newer", "new"]), 1)] {
            let verified = receiver.verify("owner", PATH, &header, NOW + TOLERANCE);
            assert_eq!(verified, Ok(Verified { stamp: STAMP, key }));
        }
        let refused = keys(&["old"]).verify("owner", PATH, &header, NOW);
        assert_eq!(refused, Err("signature"), "the second key signs nothing");
    }

    #[test]
    fn another_path_time_or_receiver_is_refused() {
        let keys = keys(&["key"]);
        let header = keys.sign("owner", PATH, STAMP);
        let verify = |receiver, path, now| keys.verify(receiver, path, &header, now);
        assert_eq!(verify("other", PATH, NOW), Err("signature"));
        assert_eq!(verify("owner", "/", NOW), Err("signature"));
        assert_eq!(verify("owner", PATH, NOW + TOLERANCE * 2), Err("time"));
        assert_eq!(verify("owner", PATH, NOW - TOLERANCE * 2), Err("time"));
    }

    #[test]
    fn a_header_that_was_changed_anywhere_is_refused() {
        let keys = keys(&["key"]);
        let header = keys.sign("owner", PATH, STAMP);
        let mut wrong: Vec<_> = ["", ".", "a.b.c.d", "ä", "...."].map(str::to_owned).into();
        wrong.extend((0..header.len()).map(|at| {
            let other = if &header[at..=at] == "0" { "1" } else { "0" };
            [&header[..at], other, &header[at + 1..]].concat()
        }));
        for wrong in wrong {
            let refused = keys.verify("owner", PATH, &wrong, NOW);
            assert_eq!(refused, Err("signature"), "{wrong}");
        }
    }
}
