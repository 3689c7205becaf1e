//! The signature of a request, which proves to a backend that it comes from this deployment.

use ring::hmac;

use crate::gateway::clock;

/// The header that carries it.
pub(super) const HEADER: &str = "roomcast-signature";

/// The secret that a hook shares with its backend.
pub(super) struct Secret(hmac::Key);

impl Secret {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Returns `t=<seconds since 1970>,v1=<hex>`, where the hexadecimal digits are the HMAC-SHA256
    /// of the time, a dot and the body.
    pub(super) fn sign(&self, seconds: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(seconds.to_string().as_bytes());
        context.update(b".");
        context.update(body);
        format!("t={seconds},v1={}", hex::encode(context.sign()))
    }
}

/// The host's time in seconds since 1970.
pub(super) fn now() -> u64 {
    clock::unix_time().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_other_languages_compute() {
        // python3 -c 'import hmac; print(hmac.new(b"secret", b"1700000000.[1]",
        // "sha256").hexdigest())'
        let wanted = "b118faa46379a6d905a78493c6f08ac7902e619620150c5b2129a61502e49dde";
        let signature = Secret::new(b"secret").sign(1_700_000_000, b"[1]");
        assert_eq!(signature, format!("t=1700000000,v1={wanted}"));
    }

    #[test]
    fn it_depends_on_the_time_the_body_and_the_secret() {
        let one = Secret::new(b"a").sign(1, b"[]");
        assert_ne!(one, Secret::new(b"b").sign(1, b"[]"));
        assert_ne!(one, Secret::new(b"a").sign(2, b"[]"));
        assert_ne!(one, Secret::new(b"a").sign(1, b"[1]"));
    }
}
