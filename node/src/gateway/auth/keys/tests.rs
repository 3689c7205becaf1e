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

        // A public key is not a secret of an HMAC.
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
        Jwk::from_encoding_key(&private_key(Algorithm::RS256, &private), Algorithm::RS256).unwrap();
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
    assert!(error(&key(Algorithm::RS256, Some("SECRET")), None).contains("needs public_key_file"));
    assert!(error(&key(Algorithm::HS256, None), None).contains("needs secret_file or secret_env"));
    let secret = String::from_utf8(SECRET.to_vec()).unwrap();
    let shown = format!("{:?}", Key::read(&hs256, |_| Some(secret.clone())).unwrap());
    assert!(!shown.contains("secret of"), "{shown}");
}
