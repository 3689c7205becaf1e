//! Signs and verifies relayed requests with the key of the cluster.
//!
//! The header `roomcast-relay` has the sender, its number, the time, the digest of the
//! body and the signature: `NODE.NUMBER.MILLISECONDS.HEX.HEX`. The signature is an
//! HMAC-SHA256 of all of these, the name of the receiver, the method and the path with
//! its query. So a request that was recorded is good for nothing but itself: no other
//! node accepts it, nor one that was started again at the same address, because every
//! start draws a new name.
//!
//! A link begins with such a request, whose header and a nonce of the receiver make the
//! keys for all that follows (`seal`).
//!
//! The digest is in the header so that a request is verified before its body is read.

use std::time::Duration;

use hex::FromHex as _;
use http::Method;
use ring::{digest, hmac};

use super::seal::Secret;

/// The header of a relayed request.
pub(super) const HEADER: &str = "roomcast-relay";

/// The first part of the signed bytes, which no other use of the key has.
const PURPOSE: &str = "roomcast relay 1";

/// The same for the keys of a link.
const LINK_PURPOSE: &str = "roomcast relay 2 keys";

/// How far the time of a request may be from that of the receiver. Both are Redis's.
pub(super) const TOLERANCE: Duration = Duration::from_secs(30);

const SHA256: &digest::Algorithm = &digest::SHA256;

/// The parts of a request that are signed in addition to the header.
#[derive(Clone, Copy)]
pub(super) struct Signed<'a> {
    /// The node that receives the request.
    pub(super) receiver: &'a str,
    pub(super) method: &'a Method,
    /// With its query.
    pub(super) path: &'a str,
}

/// The content of a valid header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) sender: Box<str>,
    pub(super) number: u64,
    /// When it was signed, in milliseconds of the cluster's time since 1970.
    pub(super) time: u64,
    digest: Digest,
    /// The place of the key that fits.
    key: usize,
}

type Digest = [u8; digest::SHA256_OUTPUT_LEN];

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// The header is missing or has another form, or no key fits.
    Signature,
    /// It was signed too long ago, or in the future.
    Time,
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

    /// Returns the header of a request with this body.
    pub(super) fn sign(
        &self,
        signed: Signed<'_>,
        sender: &str,
        number: u64,
        now: Duration,
        body: &[u8],
    ) -> String {
        let millis = now.as_millis();
        let digest = digest::digest(SHA256, body);
        let stated = format!("{sender}.{number}.{millis}.{}", hex::encode(digest));
        let signature = self
            .0
            .first()
            .map(|key| hmac::sign(key, signed.text(&stated).as_bytes()));
        let signature = signature.map(hex::encode).unwrap_or_default();
        format!("{stated}.{signature}")
    }

    /// Checks a header, but not whether the request came before, nor its body.
    pub(super) fn verify(
        &self,
        signed: Signed<'_>,
        header: &str,
        now: Duration,
    ) -> Result<Verified, Invalid> {
        let (stated, signature) = header.rsplit_once('.').ok_or(Invalid::Signature)?;
        let signature = Digest::from_hex(signature).map_err(|_| Invalid::Signature)?;
        let text = signed.text(stated);
        // In constant time.
        let fits = |key: &hmac::Key| hmac::verify(key, text.as_bytes(), &signature).is_ok();
        let key = self.0.iter().position(fits).ok_or(Invalid::Signature)?;
        let mut parts = stated.split('.');
        let mut next = || parts.next().ok_or(Invalid::Signature);
        let (sender, number, time, digest) = (next()?, next()?, next()?, next()?);
        let number = number.parse().map_err(|_| Invalid::Signature)?;
        let time = time.parse().map_err(|_| Invalid::Signature)?;
        let verified = Verified {
            sender: sender.into(),
            number,
            time,
            digest: Digest::from_hex(digest).map_err(|_| Invalid::Signature)?,
            key,
        };
        if now.abs_diff(Duration::from_millis(time)) > TOLERANCE {
            return Err(Invalid::Time);
        }
        Ok(verified)
    }

    /// The keys of a link: for records of the node that has sent this header, and for
    /// those of the node that has responded with the nonce. `verified` is the latter's result for
    /// the header.
    pub(super) fn of_link(
        &self,
        header: &str,
        nonce: &str,
        verified: Option<&Verified>,
    ) -> Option<[Secret; 2]> {
        let key = self.0.get(verified.map_or(0, |verified| verified.key))?;
        let derive = |direction: &str| {
            let text = format!("{LINK_PURPOSE}\n{direction}\n{header}\n{nonce}");
            let secret = hmac::sign(key, text.as_bytes());
            Secret::try_from(secret.as_ref()).ok()
        };
        Some([derive("requests")?, derive("responses")?])
    }
}

impl Signed<'_> {
    fn text(self, stated: &str) -> String {
        let Self {
            receiver,
            method,
            path,
        } = self;
        // None of the parts contains a line feed.
        format!("{PURPOSE}\n{receiver}\n{method}\n{path}\n{stated}")
    }
}

impl Verified {
    /// Whether this is the body that was signed.
    pub(super) fn has_body(&self, body: &[u8]) -> bool {
        digest::digest(SHA256, body).as_ref() == self.digest
    }
}

impl Invalid {
    /// The label in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Time => "time",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_millis(1_700_000_000_123);

    fn keys(keys: &[&str]) -> Keys {
        let keys: Vec<Box<[u8]>> = keys.iter().map(|key| key.as_bytes().into()).collect();
        Keys::new(&keys)
    }

    const SIGNED: Signed<'_> = Signed {
        receiver: "owner",
        method: &Method::POST,
        path: "/socket.io/?EIO=4&sid=x",
    };

    #[test]
    fn it_is_what_other_languages_compute() {
        // printf 'roomcast relay
        // 1\nowner\nPOST\n/socket.io/?EIO=4&sid=x\nsender.7.1700000000123.'"$(printf body
        // | sha256sum | cut -c1-64)" |
        //   openssl dgst -sha256 -hmac key
        let header = keys(&["key"]).sign(SIGNED, "sender", 7, NOW, b"body");
        let digest = "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5";
        assert_eq!(
            header,
            format!(
                "sender.7.1700000000123.{digest}.feb67ff5eee36895963a434ad8f16520c460bd23ffaf1ae12f6476ae3f911421"
            )
        );
    }

    #[test]
    fn what_is_signed_is_verified_with_every_key_of_the_receiver() {
        let header = keys(&["new", "old"]).sign(SIGNED, "sender", 7, NOW, b"body");
        for receiver in [keys(&["new"]), keys(&["newer", "new"])] {
            let verified = receiver.verify(SIGNED, &header, NOW + TOLERANCE).unwrap();
            assert_eq!((&*verified.sender, verified.number), ("sender", 7));
            assert!(verified.has_body(b"body") && !verified.has_body(b"Body"));
        }
        let refused = keys(&["old"]).verify(SIGNED, &header, NOW);
        assert_eq!(
            refused,
            Err(Invalid::Signature),
            "the second key signs nothing"
        );
    }

    #[test]
    fn another_request_time_or_receiver_is_refused() {
        let keys = keys(&["key"]);
        let header = keys.sign(SIGNED, "sender", 7, NOW, b"");
        for other in [
            Signed {
                receiver: "other",
                ..SIGNED
            },
            Signed {
                method: &Method::GET,
                ..SIGNED
            },
            Signed {
                path: "/socket.io/?EIO=4&sid=y",
                ..SIGNED
            },
        ] {
            assert_eq!(keys.verify(other, &header, NOW), Err(Invalid::Signature));
        }
        for now in [NOW + TOLERANCE * 2, NOW - TOLERANCE * 2] {
            assert_eq!(keys.verify(SIGNED, &header, now), Err(Invalid::Time));
        }
    }

    #[test]
    fn a_header_that_was_changed_anywhere_is_refused() {
        let keys = keys(&["key"]);
        let header = keys.sign(SIGNED, "sender", 7, NOW, b"");
        for at in 0..header.len() {
            let mut changed = header.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(
                keys.verify(SIGNED, &changed, NOW),
                Err(Invalid::Signature),
                "{changed}"
            );
        }
        for wrong in ["", ".", "a.b.c.d.e", "ä", "....."] {
            assert_eq!(keys.verify(SIGNED, wrong, NOW), Err(Invalid::Signature));
        }
    }
}
