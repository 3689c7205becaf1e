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
    aead::{
        AES_256_GCM, Aad, BoundKey, NONCE_LEN, Nonce, NonceSequence, OpeningKey, SealingKey,
        UnboundKey,
    },
    error::Unspecified,
};

/// The key of one direction of a connection.
pub(super) type Secret = [u8; 32];

/// Seals this node's output.
pub(super) type Sealer = SealingKey<Numbers>;

/// Opens the other node's output.
pub(super) type Opener = OpeningKey<Numbers>;

/// Numbers the records of one direction in the order in which they are written.
/// There are more numbers than a connection can carry records.
pub(super) struct Numbers(u64);

impl NonceSequence for Numbers {
    fn advance(&mut self) -> Result<Nonce, Unspecified> {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.0.to_be_bytes());
        self.0 += 1;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// The ciphers of a connection: for this node's output, and for the other node's.
pub(super) fn ciphers(written: &Secret, read: &Secret) -> Option<(Sealer, Opener)> {
    Some((cipher(written).ok()?, cipher(read).ok()?))
}

fn cipher<K: BoundKey<Numbers>>(secret: &Secret) -> Result<K, Unspecified> {
    Ok(K::new(UnboundKey::new(&AES_256_GCM, secret)?, Numbers(0)))
}

/// Encrypts a record in place and fills its tag.
pub(super) fn seal(
    sealer: &mut Sealer,
    frames: &mut [u8],
    tag: &mut [u8],
) -> Result<(), Unspecified> {
    let sealed = sealer.seal_in_place_separate_tag(Aad::empty(), frames)?;
    tag.copy_from_slice(sealed.as_ref());
    Ok(())
}

/// Decrypts a record with its tag in place and returns its frames.
pub(super) fn open<'a>(opener: &mut Opener, record: &'a mut [u8]) -> Result<&'a [u8], Unspecified> {
    let frames = opener.open_in_place(Aad::empty(), record)?;
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use ring::aead::MAX_TAG_LEN;

    use super::*;

    const SECRET: Secret = [7; 32];

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut record = text.to_vec();
        let mut tag = [0; MAX_TAG_LEN];
        seal(sealer, &mut record, &mut tag).unwrap();
        record.extend(tag);
        record
    }

    #[test]
    fn records_open_in_their_order_and_once() {
        let (mut sealer, mut opener) = ciphers(&SECRET, &SECRET).unwrap();
        let (mut first, mut second) = (sealed(&mut sealer, b"a"), sealed(&mut sealer, b"b"));
        assert_eq!(open(&mut opener, &mut first), Ok(&b"a"[..]));
        let mut other: Opener = cipher(&SECRET).unwrap();
        let mut again = second.clone();
        assert!(open(&mut other, &mut again).is_err(), "one is missing");
        let mut again = second.clone();
        assert_eq!(open(&mut opener, &mut second), Ok(&b"b"[..]));
        assert!(open(&mut opener, &mut again).is_err(), "it was repeated");
    }

    #[test]
    fn a_record_that_was_changed_or_is_of_another_key_does_not_open() {
        let mut record = sealed(&mut cipher(&SECRET).unwrap(), b"frames");
        assert!(!record.windows(6).any(|part| part == b"frames"));
        for at in 0..record.len() {
            let mut changed = record.clone();
            changed[at] ^= 1;
            assert!(open(&mut cipher(&SECRET).unwrap(), &mut changed).is_err());
        }
        assert!(open(&mut cipher(&[8; 32]).unwrap(), &mut record).is_err());
    }
}
