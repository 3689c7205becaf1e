//! Keys, each pinned to its algorithm.
//!
//! A token names its algorithm itself, in a header that anyone can write. If a key
//! accepted any algorithm, an attacker could sign a token by HMAC with the published
//! RSA key as the secret. So each [`Key`] has one algorithm, and a token with another
//! one finds no key.
//!
//! ```text
//!  [[jwt.keys]] ── secret_file, secret_env ──► HMAC ──┐
//!             └── public_key_file ──► RSA, EC, EdDSA ─┼─► Key ─► verification
//!  [jwt.jwks] ─── a set: public keys only ────────────┘
//! ```
//!
//! Secrets are read from files and variables at the start and at each reload, so that
//! the settings can be shown and stored without them.

mod verification;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

pub(crate) use jsonwebtoken::Algorithm;
use jsonwebtoken::{
    AlgorithmFamily, DecodingKey, EncodingKey, Header, encode,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

pub(super) use verification::{Failure, Rules, Verified, verify};

use super::{KeySettings, Settings};
use crate::gateway::policy::Claims;

/// A shorter secret can be guessed from one token. RFC 7518 demands it for HS256.
const MIN_SECRET: usize = 32;

/// The keys of one set that are kept.
/// A set is external input, and each entry is parsed again at each refresh, so their number is
/// limited.
const MAX_KEYS: usize = 100;

/// A key and the one algorithm that it may be used with.
#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl fmt::Debug for Key {
    /// The key itself may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Why a key cannot be used.
/// The texts name the section and the id of the key, because a file may have several.
/// They never contain the key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("[[jwt.keys]] {2}: {path} cannot be read: {1}", path = .0.display())]
    File(PathBuf, std::io::Error, String),
    #[error("[[jwt.keys]] {1}: the environment variable {0} is not set")]
    Variable(String, String),
    #[error("[[jwt.keys]] {1}: {0}")]
    Invalid(String, String),
    #[error("[jwt.jwks] {0}")]
    Set(String),
    #[error("the file has no [[jwt.keys]] with a secret, which could sign a token")]
    NoSecret,
    #[error("a namespace has the access jwt, but [jwt] has neither [[jwt.keys]] nor [jwt.jwks]")]
    None,
}

impl Key {
    /// Reads a key of the file's section. `variable` looks up the environment.
    pub(super) fn read(
        settings: &KeySettings,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, KeyError> {
        let name = settings.id.clone().unwrap_or_default();
        let read = |path: &Path| {
            fs::read(path).map_err(|error| KeyError::File(path.to_owned(), error, name.clone()))
        };
        // Exactly one source is permitted, of the kind that the algorithm needs, so
        // that a public key never becomes the secret of an HMAC.
        let invalid = |what: String| KeyError::Invalid(what, name.clone());
        let algorithm = settings.algorithm;
        let is_hmac = algorithm.family() == AlgorithmFamily::Hmac;
        let key = match (
            &settings.secret_file,
            &settings.secret_env,
            &settings.public_key_file,
        ) {
            (Some(path), None, None) if is_hmac => secret(&read(path)?).map_err(invalid)?,
            (None, Some(name_of), None) if is_hmac => {
                let value = variable(name_of)
                    .ok_or_else(|| KeyError::Variable(name_of.clone(), name.clone()))?;
                secret(value.as_bytes()).map_err(invalid)?
            }
            (None, None, Some(path)) if !is_hmac => {
                public_key(algorithm, &read(path)?).map_err(invalid)?
            }
            _ => {
                let needed = if is_hmac {
                    "secret_file or secret_env"
                } else {
                    "public_key_file"
                };
                return Err(invalid(format!(
                    "a key for {algorithm:?} needs {needed}, and nothing else"
                )));
            }
        };
        Ok(Self {
            id: settings.id.clone(),
            algorithm,
            key,
        })
    }

    /// Whether the key may verify a token with this header.
    /// A key or a token without an id fits any, because issuers with a single key need
    /// not send one. Then the signature decides.
    fn fits(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        let has_id = match (&self.id, id) {
            (Some(own), Some(id)) => own == id,
            (None, _) | (_, None) => true,
        };
        has_id && self.algorithm == algorithm
    }
}

/// The secret without the line end that editors add.
fn secret(bytes: &[u8]) -> Result<DecodingKey, String> {
    let bytes = bytes.trim_ascii_end();
    if bytes.len() < MIN_SECRET {
        return Err(format!(
            "the secret has {} bytes: use at least {MIN_SECRET}, such as the output of `openssl rand -base64 32`",
            bytes.len()
        ));
    }
    DecodingKey::from_secret(bytes).map_err(|error| error.to_string())
}

fn public_key(algorithm: Algorithm, pem: &[u8]) -> Result<DecodingKey, String> {
    let key = match algorithm.family() {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem),
        _ => DecodingKey::from_ed_pem(pem),
    };
    key.map_err(|_| format!("the file has no public key in PEM for {algorithm:?}"))
}

/// Signs claims with the secret of a key: that of this id, or the first one. Public keys
/// cannot sign.
/// It serves `roomcast token`, which issues tokens for tests and for the first steps.
/// It reads the key as a server does, so a token that it signs is verified by a server
/// with the same file.
pub(crate) fn sign(
    settings: &Settings,
    id: Option<&str>,
    claims: &Claims,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, KeyError> {
    let is_wanted = |key: &&KeySettings| {
        key.algorithm.family() == AlgorithmFamily::Hmac && (id.is_none() || key.id.as_deref() == id)
    };
    let chosen = settings
        .keys
        .iter()
        .find(is_wanted)
        .ok_or(KeyError::NoSecret)?;
    let key = Key::read(chosen, variable)?;
    let invalid = |error: jsonwebtoken::errors::Error| {
        KeyError::Invalid(error.to_string(), chosen.id.clone().unwrap_or_default())
    };
    let secret = key.key.try_get_as_bytes().map_err(invalid)?;
    let mut header = Header::new(key.algorithm);
    header.kid = key.id;
    let signing = EncodingKey::from_secret(secret).map_err(invalid)?;
    encode(&header, claims, &signing).map_err(invalid)
}

/// Reads a JSON Web Key Set. Keys that serve another purpose or no allowed algorithm are
/// left out, because publishers add keys that only others understand. Secrets are left
/// out, too, because readers of the set could issue tokens.
pub(super) fn read_set(json: &[u8], allowed: &[Algorithm]) -> Result<Vec<Key>, KeyError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(json)
        .map_err(|error| KeyError::Set(format!("is no key set: {error}")))?;
    let keys: Vec<_> = set
        .keys
        .into_iter()
        .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
        .flat_map(|jwk| keys_of(&jwk, allowed))
        .take(MAX_KEYS)
        .collect();
    if keys.is_empty() {
        return Err(KeyError::Set(format!("has no key for {allowed:?}")));
    }
    Ok(keys)
}

/// The keys of one entry: one for each algorithm that it may be used with.
fn keys_of(jwk: &Jwk, allowed: &[Algorithm]) -> Vec<Key> {
    let is_for_signatures = !matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption));
    let Some(key) = DecodingKey::from_jwk(jwk)
        .ok()
        .filter(|_| is_for_signatures)
    else {
        return Vec::new();
    };
    // RSA keys fit several algorithms, so `allowed` decides. A curve belongs to one
    // algorithm, so a key with another curve would only produce errors at each token.
    let fits = |algorithm: &&Algorithm| {
        let fits_key = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => algorithm.family() == AlgorithmFamily::Rsa,
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => **algorithm == Algorithm::ES256,
                EllipticCurve::P384 => **algorithm == Algorithm::ES384,
                _ => false,
            },
            AlgorithmParameters::OctetKeyPair(_) => **algorithm == Algorithm::EdDSA,
            _ => false,
        };
        let named = jwk.common.key_algorithm;
        fits_key && named.is_none_or(|named| named == KeyAlgorithm::from(**algorithm))
    };
    let algorithms = allowed.iter().filter(fits);
    algorithms
        .map(|algorithm| Key {
            id: jwk.common.key_id.clone(),
            algorithm: *algorithm,
            key: key.clone(),
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests;
