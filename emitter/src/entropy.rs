//! The random numbers of this crate and of the crates above it: names, and delays that are spread.
//!
//! Nothing else here draws any.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the place that makes entropy"
)]

use rand::RngExt;
use roomcast_protocol::id::name_from;

/// A name of `N` URL-safe characters with six random bits each.
pub fn name<const N: usize>() -> String {
    let random: [u8; N] = rand::rng().random();
    name_from(random).map(char::from).iter().collect()
}

/// A number from 0 to 1, 1 excluded.
pub fn fraction() -> f64 {
    rand::rng().random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_url_safe_and_differ() {
        let (a, b) = (name::<20>(), name::<20>());
        assert_ne!(a, b);
        assert_eq!((a.len(), b.len()), (20, 20));
        let url_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        assert!(a.bytes().all(url_safe));
    }

    #[test]
    fn fractions_lie_between_zero_and_one() {
        assert!((0..100).all(|_| (0.0..1.0).contains(&fraction())));
    }
}
