//! `roomcast token key`: creates keys and secrets as files that only their owner can
//! read, and prints the settings for them.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, ValueEnum};
use ring::{
    rand::{SecureRandom as _, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair as _},
};

use crate::gateway::api::Hash;

/// Bytes of entropy in a key: 256 bits, as SHA-256 and Ed25519 have.
const KEY_BYTES: usize = 32;

/// The bytes before the 32 of an Ed25519 key in DER (RFC 8410): a private key in the first
/// version of PKCS #8, because many libraries refuse the second, and a public key.
const PRIVATE_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const PUBLIC_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The options of `roomcast token key`.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeyOptions {
    /// Use of the key
    #[arg(value_enum, value_name = "KIND")]
    kind: Kind,

    /// Name of the key: its files, its name or id in the settings
    #[arg(long, value_name = "NAME", default_value = "application", value_parser = name)]
    name: String,

    /// Folder for the files
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A key of the HTTP API
    Api,
    /// A secret that signs tokens (HS256), which the application and the nodes share
    Jwt,
    /// A key pair that signs tokens (EdDSA); nodes have the public key only
    Ed25519,
    /// A secret that signs the requests of a hook
    Hook,
}

/// The name becomes part of file names and of TOML.
fn name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_allowed) {
        return Err("a name has letters, digits, - and _".to_owned());
    }
    Ok(text.to_owned())
}

/// Creates the files, and writes the settings for them to standard output. Existing files are not
/// replaced, because a lost key cannot be restored.
pub(crate) fn create_key(options: &KeyOptions) -> Result<(), Box<dyn std::error::Error>> {
    let settings = create(options)?;
    Ok(io::stdout().write_all(settings.as_bytes())?)
}

fn create(options: &KeyOptions) -> Result<String, Box<dyn std::error::Error>> {
    let mut entropy = [0; KEY_BYTES];
    let filled = SystemRandom::new().fill(&mut entropy);
    filled.map_err(|_| "the system has no entropy")?;
    let (name, text) = (&options.name, hex::encode(entropy));
    // Absolute, because the settings may be read from another folder.
    let folder = fs::canonicalize(&options.folder)
        .map_err(|error| format!("{}: {error}", options.folder.display()))?;
    let file = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    Ok(match options.kind {
        Kind::Api => {
            let path = file("api-key");
            write_new(&path, PRIVATE, &text)?;
            let hash = Hash::of(text.as_bytes());
            format!(
                "# The key is in {path}. Give it to the application, which sends it as\n\
                 # `Authorization: Bearer KEY`. Nodes need only the hash.\n\
                 [[api.keys]]\nname = \"{name}\"\nhash = \"sha256:{hash}\"\n\
                 namespaces = [\"/\"]\nverbs = [\"emit\"]\n",
                path = path.display()
            )
        }
        Kind::Jwt => {
            let path = file("jwt-secret");
            write_new(&path, PRIVATE, &text)?;
            format!(
                "# The application signs tokens with the same secret, the text of the file without its line break.\n\
                 [[jwt.keys]]\nid = \"{name}\"\nalgorithm = \"HS256\"\nsecret_file = {quoted}\n",
                quoted = quoted(&path)
            )
        }
        Kind::Ed25519 => {
            let (private, public) = (file("jwt-private.pem"), file("jwt-public.pem"));
            let pair = Ed25519KeyPair::from_seed_unchecked(&entropy);
            let pair = pair.map_err(|error| error.to_string())?;
            // The frame of DER is constant for keys of this length, so no encoder is
            // needed.
            let public_key = [&PUBLIC_PREFIX, pair.public_key().as_ref()].concat();
            let private_key = [&PRIVATE_PREFIX[..], &entropy].concat();
            write_new(&private, PRIVATE, &pem("PRIVATE", &private_key))?;
            write_new(&public, PUBLIC, &pem("PUBLIC", &public_key))?;
            format!(
                "# The application signs tokens with {private}. Keep it away from the nodes.\n\
                 [[jwt.keys]]\nid = \"{name}\"\nalgorithm = \"EdDSA\"\npublic_key_file = {quoted}\n",
                private = private.display(),
                quoted = quoted(&public)
            )
        }
        Kind::Hook => {
            let path = file("hook-secret");
            write_new(&path, PRIVATE, &text)?;
            format!(
                "# The application verifies `Roomcast-Signature` with the same secret, the text of the file without\n\
                 # its line break.\n\
                 [hooks.{name}]\nurl = \"http://127.0.0.1:8080/roomcast\"\nsecret_file = {quoted}\n",
                quoted = quoted(&path)
            )
        }
    })
}

/// A path as a text of TOML.
fn quoted(path: &Path) -> toml::Value {
    path.to_string_lossy().into_owned().into()
}

/// Only the owner can read it.
const PRIVATE: u32 = 0o600;

const PUBLIC: u32 = 0o644;

/// Writes a new file with a mode, which the process's umask may reduce.
fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), String> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| writeln!(file, "{text}"));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => format!(
            "{} exists and is not replaced: choose another --name or --folder",
            path.display()
        ),
        _ => format!("{}: {error}", path.display()),
    })
}

/// A key in the form of RFC 7468. Its base64 fits into one line.
fn pem(kind: &str, der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    format!("-----BEGIN {kind} KEY-----\n{body}\n-----END {kind} KEY-----")
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn names_are_safe_in_paths_and_in_toml() {
        assert_eq!(name("web-1_b"), Ok("web-1_b".to_owned()));
        for wrong in ["", "../a", "a b", "a.b", "\"", "ä"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_of_the_private_key_is_verified_by_the_public_key() {
        let seed = [7; KEY_BYTES];
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let private = pem("PRIVATE", &[&PRIVATE_PREFIX[..], &seed].concat());
        let public = [&PUBLIC_PREFIX, pair.public_key().as_ref()].concat();
        let signing = EncodingKey::from_ed_pem(private.as_bytes()).unwrap();
        let claims = json!({"sub": "ada", "exp": u32::MAX});
        let token = encode(&Header::new(Algorithm::EdDSA), &claims, &signing).unwrap();
        let verifying = DecodingKey::from_ed_pem(pem("PUBLIC", &public).as_bytes()).unwrap();
        let rules = Validation::new(Algorithm::EdDSA);
        let verified = decode::<Value>(&token, &verifying, &rules).unwrap();
        assert_eq!(verified.claims, claims);
    }
}
