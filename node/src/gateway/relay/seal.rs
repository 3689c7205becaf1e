//! Seals the records that two nodes exchange, and opens those of the other one.
//!
//! A connection begins as a signed request (`key`), and the receiver responds with a
//! nonce. From the key of the cluster, the header of the request and the nonce, both
//! derive a key for each direction. So:
//!
//! - only a node with the key of the cluster can write a record, or read one: AES-256-GCM does both
//!   for a fraction of the cost of an HMAC for each request, and once for all frames of a record;
//! - a record is good for its place in its connection only, because its number is the
//!   nonce of the cipher. It can be neither repeated, nor left out, nor reordered, nor
//!   sent back;
//! - no two connections have the same keys, because the sender numbers its requests under
//!   a name that is new at each start, and the receiver draws its nonce.
//!
//! A node that has the key is trusted. The key of a connection lasts as long as the
//! connection, so an attacker who obtains the key of the cluster can read previously recorded
//! connections.

use ring::{
    aead::{self, Aad, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey},
    error::Unspecified,
};

/// The key of one direction of a connection.
pub(super) type Secret = [u8; 32];

/// One direction of a connection: the records are numbered, in the order in which they are written.
struct Numbered {
    key: LessSafeKey,
    number: u64,
}

/// Seals this node's output.
pub(super) struct Sealer(Numbered);

/// Opens the other node's output.
pub(super) struct Opener(Numbered);

impl Numbered {
    fn new(secret: &Secret) -> Result<Self, Unspecified> {
        let key = UnboundKey::new(&aead::AES_256_GCM, secret)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            number: 0,
        })
    }

    /// The nonce of the next record. There are more than a connection can carry.
    fn next(&mut self) -> Nonce {
        let mut nonce = [0; aead::NONCE_LEN];
        nonce[aead::NONCE_LEN - 8..].copy_from_slice(&self.number.to_be_bytes());
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Sealer {
    pub(super) fn new(secret: &Secret) -> Result<Self, Unspecified> {
        Numbered::new(secret).map(Self)
    }

    /// Encrypts a record in place and fills its tag.
    pub(super) fn seal(&mut self, frames: &mut [u8], tag: &mut [u8]) -> Result<(), Unspecified> {
        let nonce = self.0.next();
        let sealed = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), frames)?;
        if tag.len() != MAX_TAG_LEN {
            return Err(Unspecified);
        }
        tag.copy_from_slice(sealed.as_ref());
        Ok(())
    }
}

impl Opener {
    pub(super) fn new(secret: &Secret) -> Result<Self, Unspecified> {
        Numbered::new(secret).map(Self)
    }

    /// Decrypts a record with its tag in place and returns its frames.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<&'a [u8], Unspecified> {
        let nonce = self.0.next();
        let frames = self.0.key.open_in_place(nonce, Aad::empty(), record)?;
        Ok(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = [7; 32];

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut record = text.to_vec();
        let mut tag = [0; MAX_TAG_LEN];
        sealer.seal(&mut record, &mut tag).unwrap();
        record.extend(tag);
        record
    }

    #[test]
    fn records_open_in_their_order_and_once() {
        let mut sealer = Sealer::new(&SECRET).unwrap();
        let (mut first, mut second) = (sealed(&mut sealer, b"a"), sealed(&mut sealer, b"b"));
        let mut opener = Opener::new(&SECRET).unwrap();
        assert_eq!(opener.open(&mut first), Ok(&b"a"[..]));
        let mut replayed = Opener::new(&SECRET).unwrap();
        assert!(
            replayed.open(&mut second.clone()).is_err(),
            "one is missing"
        );
        assert_eq!(opener.open(&mut second.clone()), Ok(&b"b"[..]));
        assert!(opener.open(&mut second).is_err(), "it was repeated");
    }

    #[test]
    fn a_record_that_was_changed_or_is_of_another_key_does_not_open() {
        let mut record = sealed(&mut Sealer::new(&SECRET).unwrap(), b"frames");
        assert!(!record.windows(6).any(|part| part == b"frames"));
        for at in 0..record.len() {
            let mut changed = record.clone();
            changed[at] ^= 1;
            assert!(Opener::new(&SECRET).unwrap().open(&mut changed).is_err());
        }
        let mut other = Opener::new(&[8; 32]).unwrap();
        assert!(other.open(&mut record).is_err());
    }
}
