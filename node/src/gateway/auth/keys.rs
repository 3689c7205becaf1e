//! Keys, each pinned to its algorithm.
//!
//! A token names its algorithm itself, in a header that anybody can write. If a key
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
/// A set comes from outside, and each entry is parsed again at each refresh, so their
/// number is bounded.
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
pub(super) mod tests {
    use std::{
        path::PathBuf,
        process::Command,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::{super::user::TokenError, *};

    pub(in super::super) const SECRET: &[u8] = b"a secret of 32 bytes at the least";

    const NOW: u64 = 1_700_000_000;

    fn rules() -> Rules {
        Rules::from(&Settings::default())
    }

    fn hmac(id: Option<&str>, algorithm: Algorithm, bytes: &[u8]) -> Key {
        Key {
            id: id.map(str::to_owned),
            algorithm,
            key: secret(bytes).unwrap(),
        }
    }

    /// A token with the claims, signed with this key.
    pub(in super::super) fn token(
        algorithm: Algorithm,
        id: Option<&str>,
        key: &EncodingKey,
        claims: &Value,
    ) -> String {
        let mut header = Header::new(algorithm);
        header.kid = id.map(str::to_owned);
        encode(&header, claims, key).unwrap()
    }

    fn signed(id: Option<&str>, bytes: &[u8], claims: &Value) -> String {
        let key = EncodingKey::from_secret(bytes).unwrap();
        token(Algorithm::HS256, id, &key, claims)
    }

    fn claims() -> Value {
        json!({ "sub": "ada", "exp": NOW + 60 })
    }

    fn refusal(claims: &Value, rules: &Rules) -> TokenError {
        let key = hmac(None, Algorithm::HS256, SECRET);
        match verify(
            &signed(None, SECRET, claims),
            [&key].into_iter(),
            rules,
            NOW,
        ) {
            Err(Failure::Token(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_key_is_chosen_by_its_id() {
        let other = [7; 32];
        let keys = [
            hmac(Some("a"), Algorithm::HS256, &other),
            hmac(Some("b"), Algorithm::HS256, SECRET),
        ];
        let check = |id: Option<&str>| {
            verify(&signed(id, SECRET, &claims()), keys.iter(), &rules(), NOW).map(|ok| ok.expires)
        };
        assert_eq!(check(Some("b")), Ok(NOW + 60));
        assert_eq!(
            check(None),
            Ok(NOW + 60),
            "a token without an id may fit any key"
        );
        assert_eq!(check(Some("a")), Err(Failure::Token(TokenError::Invalid)));
        assert_eq!(check(Some("c")), Err(Failure::UnknownKey));
    }

    #[test]
    fn the_algorithm_belongs_to_the_key() {
        let key = hmac(None, Algorithm::HS512, SECRET);
        let found = verify(
            &signed(None, SECRET, &claims()),
            [&key].into_iter(),
            &rules(),
            NOW,
        );
        assert_eq!(found, Err(Failure::UnknownKey));
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let unsigned = format!("{}.{}.", part(json!({ "alg": "none" })), part(claims()));
        let found = verify(&unsigned, [&key].into_iter(), &rules(), NOW);
        assert_eq!(found, Err(Failure::Token(TokenError::Invalid)));
    }

    #[test]
    fn a_token_is_signed_with_the_secret_of_a_key() {
        let key = |id: &str, algorithm| KeySettings {
            id: Some(id.into()),
            algorithm,
            secret_file: None,
            secret_env: Some("SECRET".into()),
            public_key_file: None,
        };
        let keys = vec![
            key("p", Algorithm::RS256),
            key("a", Algorithm::HS256),
            key("b", Algorithm::HS512),
        ];
        let settings = Settings {
            keys,
            ..Settings::default()
        };
        let secret = |_: &str| String::from_utf8(SECRET.to_vec()).ok();
        let Value::Object(claims) = claims() else {
            unreachable!("an object")
        };
        for (id, used) in [(None, 1), (Some("b"), 2)] {
            let token = sign(&settings, id, &claims, secret).unwrap();
            let key = Key::read(&settings.keys[used], secret).unwrap();
            let found = verify(&token, [&key].into_iter(), &rules(), NOW);
            assert_eq!(found.unwrap().claims, claims);
        }
        assert!(matches!(
            sign(&settings, Some("p"), &claims, secret),
            Err(KeyError::NoSecret)
        ));
    }

    #[test]
    fn a_changed_token_is_invalid() {
        let key = hmac(None, Algorithm::HS256, SECRET);
        let token = signed(None, SECRET, &claims());
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] ^= 1;
            let Ok(changed) = String::from_utf8(changed) else {
                continue;
            };
            // The last bits of the signature's base64 do not belong to it, but must be zero.
            let found = verify(&changed, [&key].into_iter(), &rules(), NOW);
            assert!(found.is_err(), "byte {at}");
        }
        for broken in ["", ".", "a.b", "a.b.c", "a.b.c.d"] {
            let found = verify(broken, [&key].into_iter(), &rules(), NOW);
            assert_eq!(found, Err(Failure::Token(TokenError::Invalid)), "{broken}");
        }
    }

    #[test]
    fn times_issuer_and_audience_are_checked() {
        let late = |offset: i64| json!({ "sub": "ada", "exp": NOW.saturating_add_signed(offset) });
        assert_eq!(refusal(&late(-30), &rules()), TokenError::Expired);
        let key = hmac(None, Algorithm::HS256, SECRET);
        let within = signed(None, SECRET, &late(-29));
        assert!(verify(&within, [&key].into_iter(), &rules(), NOW).is_ok());
        assert_eq!(refusal(&late(31 * 86_400), &rules()), TokenError::TooLong);
        assert_eq!(
            refusal(&json!({ "sub": "a" }), &rules()),
            TokenError::Claim("exp".into())
        );
        let early = json!({ "exp": NOW + 60, "nbf": NOW + 31 });
        assert_eq!(refusal(&early, &rules()), TokenError::NotYet);
        let strict = Rules {
            issuer: vec!["https://issuer".into()],
            audience: vec!["chat".into()],
            ..rules()
        };
        let without_issuer = json!({ "exp": NOW + 60, "aud": "chat" });
        assert_eq!(refusal(&without_issuer, &strict), TokenError::Issuer);
        let without_audience = json!({ "exp": NOW + 60, "iss": "https://issuer", "aud": null });
        assert_eq!(refusal(&without_audience, &strict), TokenError::Audience);
        let wrong = json!({ "exp": NOW + 60, "iss": "https://issuer", "aud": ["mail"] });
        assert_eq!(refusal(&wrong, &strict), TokenError::Audience);
        assert_eq!(
            refusal(&wrong, &rules()),
            TokenError::Audience,
            "it is for somebody else"
        );
        let right = json!({ "exp": NOW + 60, "iss": "https://issuer", "aud": ["mail", "chat"] });
        let right = signed(None, SECRET, &right);
        assert!(verify(&right, [&key].into_iter(), &strict, NOW).is_ok());
    }

    /// Key pairs of all kinds, made by openssl: the algorithm, the private and the public
    /// key in PEM.
    fn pairs() -> Vec<(Algorithm, Vec<u8>, Vec<u8>)> {
        let rsa = pair(&["-algorithm", "RSA"]);
        let ec = |curve: &str| {
            pair(&[
                "-algorithm",
                "EC",
                "-pkeyopt",
                &format!("ec_paramgen_curve:{curve}"),
            ])
        };
        let (p256, p384, ed) = (ec("P-256"), ec("P-384"), pair(&["-algorithm", "ED25519"]));
        [
            (Algorithm::RS256, &rsa),
            (Algorithm::RS384, &rsa),
            (Algorithm::RS512, &rsa),
            (Algorithm::PS256, &rsa),
            (Algorithm::PS384, &rsa),
            (Algorithm::PS512, &rsa),
            (Algorithm::ES256, &p256),
            (Algorithm::ES384, &p384),
            (Algorithm::EdDSA, &ed),
        ]
        .map(|(algorithm, (private, public))| (algorithm, private.clone(), public.clone()))
        .into()
    }

    fn pair(options: &[&str]) -> (Vec<u8>, Vec<u8>) {
        // Tests run at the same time, and each makes its own.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = scratch().join(format!("{count}.pem"));
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            output.stdout
        };
        run(Command::new("openssl")
            .arg("genpkey")
            .args(options)
            .arg("-out")
            .arg(&file));
        let public = run(Command::new("openssl")
            .args(["pkey", "-pubout", "-in"])
            .arg(&file));
        (fs::read(&file).unwrap(), public)
    }

    fn scratch() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("roomcast-keys-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn private_key(algorithm: Algorithm, pem: &[u8]) -> EncodingKey {
        match algorithm.family() {
            AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(pem),
            AlgorithmFamily::Ec => EncodingKey::from_ec_pem(pem),
            _ => EncodingKey::from_ed_pem(pem),
        }
        .unwrap()
    }

    #[test]
    fn every_kind_of_public_key_verifies_its_tokens_from_a_file_and_from_a_set() {
        for (algorithm, private, public) in pairs() {
            let signing = private_key(algorithm, &private);
            let token = token(algorithm, Some("k"), &signing, &claims());
            let file = scratch().join(format!("{algorithm:?}.public.pem"));
            fs::write(&file, &public).unwrap();
            let settings = KeySettings {
                id: Some("k".into()),
                algorithm,
                secret_file: None,
                secret_env: None,
                public_key_file: Some(file),
            };
            let key = Key::read(&settings, |_| None).unwrap();
            let found = verify(&token, [&key].into_iter(), &rules(), NOW);
            assert!(found.is_ok(), "{algorithm:?}: {found:?}");

            let mut jwk = Jwk::from_encoding_key(&signing, algorithm).unwrap();
            jwk.common.key_id = Some("k".into());
            let set = serde_json::to_vec(&json!({ "keys": [{ "kty": "strange" }, jwk] })).unwrap();
            let keys = read_set(&set, &[algorithm]).unwrap();
            let found = verify(&token, keys.iter(), &rules(), NOW);
            assert!(found.is_ok(), "{algorithm:?} of a set: {found:?}");
            assert!(read_set(&set, &[Algorithm::HS256]).is_err(), "not allowed");

            // A public key is no secret of an HMAC.
            let forged = signed(Some("k"), &public, &claims());
            let found = verify(&forged, [&key].into_iter(), &rules(), NOW);
            assert_eq!(found, Err(Failure::UnknownKey), "{algorithm:?}");
        }
    }

    #[test]
    fn a_set_gives_no_secrets_and_no_keys_for_encryption() {
        let secret = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET), "alg": "HS256" });
        let set = serde_json::to_vec(&json!({ "keys": [secret] })).unwrap();
        assert!(read_set(&set, &[Algorithm::HS256]).is_err());
        let (_, private, _) = pairs().remove(0);
        let mut jwk =
            Jwk::from_encoding_key(&private_key(Algorithm::RS256, &private), Algorithm::RS256)
                .unwrap();
        jwk.common.public_key_use = Some(PublicKeyUse::Encryption);
        let set = serde_json::to_vec(&json!({ "keys": [jwk] })).unwrap();
        assert!(read_set(&set, &[Algorithm::RS256]).is_err());
        assert!(read_set(b"[]", &[Algorithm::RS256]).is_err());
    }

    #[test]
    fn a_key_that_cannot_be_used_names_what_is_wrong() {
        let key = |algorithm, variable: Option<&str>| KeySettings {
            id: Some("k".into()),
            algorithm,
            secret_file: None,
            secret_env: variable.map(str::to_owned),
            public_key_file: None,
        };
        let error = |settings: &KeySettings, value: Option<&str>| {
            Key::read(settings, |_| value.map(str::to_owned))
                .unwrap_err()
                .to_string()
        };
        let hs256 = key(Algorithm::HS256, Some("SECRET"));
        assert_eq!(
            error(&hs256, None),
            "[[jwt.keys]] k: the environment variable SECRET is not set"
        );
        assert!(error(&hs256, Some("short")).contains("has 5 bytes: use at least 32"));
        assert!(
            error(&key(Algorithm::RS256, Some("SECRET")), None).contains("needs public_key_file")
        );
        assert!(
            error(&key(Algorithm::HS256, None), None).contains("needs secret_file or secret_env")
        );
        let secret = String::from_utf8(SECRET.to_vec()).unwrap();
        let shown = format!("{:?}", Key::read(&hs256, |_| Some(secret.clone())).unwrap());
        assert!(!shown.contains("secret of"), "{shown}");
    }
}
