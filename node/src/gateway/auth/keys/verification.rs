//! The verification of a token with keys.
//!
//! The claims are trusted only after the signature has been verified. Of the header,
//! only `kid` and `alg` are read before that, and they only choose among the configured
//! keys.

use jsonwebtoken::{Validation, decode, decode_header, errors::ErrorKind};

use super::Key;
use crate::gateway::{
    auth::{
        Settings,
        user::{TokenError, seconds},
    },
    policy::Claims,
};

/// The keys that are tried for one token, because each attempt costs up to 0.2 ms.
/// A token without a `kid` matches all keys of its algorithm, and any client can send such tokens.
const MAX_ATTEMPTS: usize = 8;

/// The checks of a token in addition to its signature.
/// Empty lists of issuers and audiences permit any issuer, but only tokens without an
/// audience: a token that names one is for another service, unless that is ours.
#[derive(Clone, Debug)]
pub(in crate::gateway::auth) struct Rules {
    pub(super) issuer: Vec<String>,
    pub(super) audience: Vec<String>,
    pub(super) leeway: u64,
    pub(super) max_lifetime: u64,
}

impl From<&Settings> for Rules {
    fn from(settings: &Settings) -> Self {
        Self {
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            leeway: settings.leeway.as_secs(),
            max_lifetime: settings.max_lifetime.as_secs(),
        }
    }
}

/// The claims of a token whose signature and times are right.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::gateway::auth) struct Verified {
    pub(in crate::gateway::auth) claims: Claims,
    pub(in crate::gateway::auth) expires: u64,
}

/// Why a token is not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway::auth) enum Failure {
    /// No key has the id and the algorithm of the token. A newer set of keys may have one.
    UnknownKey,
    Token(TokenError),
}

/// Verifies a token. `now` is in seconds since 1970.
/// The first key whose signature fits decides. If no key has the id of the token, the
/// failure is [`Failure::UnknownKey`], after which the caller reads the set of keys
/// again: an issuer may have rotated them. A wrong signature does not cause that,
/// because a newer set would not make it right.
pub(in crate::gateway::auth) fn verify<'a>(
    token: &str,
    keys: impl Iterator<Item = &'a Key>,
    rules: &Rules,
    now: u64,
) -> Result<Verified, Failure> {
    let header = decode_header(token).map_err(|_| Failure::Token(TokenError::Invalid))?;
    let fitting = keys.filter(|key| key.fits(header.kid.as_deref(), header.alg));
    let mut failure = Failure::UnknownKey;
    for key in fitting.take(MAX_ATTEMPTS) {
        match verify_with(token, key, rules) {
            Ok(claims) => return check_times(claims, rules, now).map_err(Failure::Token),
            Err(error) => failure = Failure::Token(error),
        }
    }
    Err(failure)
}

fn verify_with(token: &str, key: &Key, rules: &Rules) -> Result<Claims, TokenError> {
    let mut validation = Validation::new(key.algorithm);
    // Times are checked by a clock that is passed in.
    // The tests pass a fixed time, and the error distinguishes an expired token from one that is
    // not yet valid.
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    if !rules.issuer.is_empty() {
        validation.set_issuer(&rules.issuer);
        validation.required_spec_claims.insert("iss".to_owned());
    }
    if !rules.audience.is_empty() {
        validation.set_audience(&rules.audience);
        validation.required_spec_claims.insert("aud".to_owned());
    }
    let decoded = decode::<Claims>(token, &key.key, &validation);
    decoded
        .map(|token| token.claims)
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidIssuer => TokenError::Issuer,
            ErrorKind::InvalidAudience => TokenError::Audience,
            ErrorKind::MissingRequiredClaim(name) => match name.as_str() {
                "iss" => TokenError::Issuer,
                _ => TokenError::Audience,
            },
            _ => TokenError::Invalid,
        })
}

/// Every token must expire, because a server that keeps connections open cannot rely on a
/// login at the next one.
fn check_times(claims: Claims, rules: &Rules, now: u64) -> Result<Verified, TokenError> {
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => match seconds(value) {
            Some(time) => Ok(Some(time)),
            None => Err(TokenError::Claim(name.to_owned())),
        },
    };
    let expires = time("exp")?.ok_or_else(|| TokenError::Claim("exp".to_owned()))?;
    // The leeway covers clocks of issuer and node that differ.
    if expires.saturating_add(rules.leeway) <= now {
        return Err(TokenError::Expired);
    }
    // A user's revocation is forgotten after `max_lifetime`, so no token may outlive
    // it.
    if expires.saturating_sub(now) > rules.max_lifetime.saturating_add(rules.leeway) {
        return Err(TokenError::TooLong);
    }
    if time("nbf")?.is_some_and(|start| start > now.saturating_add(rules.leeway)) {
        return Err(TokenError::NotYet);
    }
    Ok(Verified { claims, expires })
}
