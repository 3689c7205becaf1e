//! `roomcast token`: signs a token with a key of the file, to try out a server before the
//! application issues tokens. `roomcast token key` creates keys.

mod key;

use std::{
    env,
    io::{self, Write as _},
};

use clap::{Args, Subcommand};
use jsonwebtoken::get_current_timestamp;
use serde_json::{Map, Value, json};

use super::{
    auth::{self, sign},
    config::Source,
    values::Span,
};
use key::{KeyOptions, create_key};

/// The options of `roomcast token`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct TokenOptions {
    #[command(subcommand)]
    job: Option<TokenJob>,

    /// Id of the user
    #[arg(long, value_name = "ID", required = true)]
    user: Option<String>,

    /// How long the token is valid
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    valid_for: Span,

    /// Rooms that the client joins when it connects; repeat the flag
    #[arg(long, value_name = "ROOM")]
    room: Vec<String>,

    /// Patterns of rooms that the client may join; repeat the flag
    #[arg(long, value_name = "PATTERN")]
    join: Vec<String>,

    /// Patterns of rooms that the client may send to; repeat the flag
    #[arg(long, value_name = "PATTERN")]
    send: Vec<String>,

    /// Further claims, such as team="red"; a value that is not JSON is taken as text; repeat the
    /// flag
    #[arg(long, value_name = "NAME=JSON", value_parser = claim)]
    claim: Vec<Claim>,

    /// Id of the key, if the file has several
    #[arg(long, value_name = "ID")]
    key: Option<String>,

    // The last one, because its heading applies to all options after it.
    #[command(flatten)]
    source: Source,

    /// The file's section.
    #[arg(skip)]
    pub(crate) settings: auth::Settings,
}

#[derive(Clone, Debug, Subcommand)]
enum TokenJob {
    /// Create a key or a secret as files, and print the settings for it
    ///
    /// Only the owner of the private files can read them. Existing files are not replaced.
    Key(KeyOptions),
}

#[derive(Clone, Debug, PartialEq)]
struct Claim(String, Value);

/// Reads a claim. A value that is not JSON is text, because shells remove quotes.
fn claim(text: &str) -> Result<Claim, String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=JSON")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok(Claim(name.to_owned(), value))
}

/// Writes the token that the options describe to standard output, or creates a key.
pub(crate) fn print_token(options: &TokenOptions) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(TokenJob::Key(options)) = &options.job {
        return create_key(options);
    }
    if options.source.config.0.is_none() {
        return Err(
            "the key is in the settings file: name it with --config or ROOMCAST_CONFIG".into(),
        );
    }
    let claims = claims(options, get_current_timestamp());
    let key = options.key.as_deref();
    let token = sign(&options.settings, key, &claims, |name| env::var(name).ok())?;
    Ok(writeln!(io::stdout(), "{token}")?)
}

/// The claims that the options describe, under the names that the settings give them.
/// Further claims come last, so that they can replace any of the others.
fn claims(options: &TokenOptions, now: u64) -> Map<String, Value> {
    let names = &options.settings.claims;
    let mut claims = Map::new();
    let mut set = |name: &str, value: Value| drop(claims.insert(name.to_owned(), value));
    set(&names.user, options.user.as_deref().into());
    set("iat", now.into());
    set(
        "exp",
        now.saturating_add(options.valid_for.0.as_secs()).into(),
    );
    let lists = [
        (&names.rooms, &options.room),
        (&names.join, &options.join),
        (&names.send, &options.send),
    ];
    for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        set(name, json!(list));
    }
    for (name, values) in [
        ("iss", &options.settings.issuer),
        ("aud", &options.settings.audience),
    ] {
        if let Some(first) = values.first() {
            set(name, first.as_str().into());
        }
    }
    for Claim(name, value) in &options.claim {
        set(name, value.clone());
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_json_or_a_text() {
        assert_eq!(
            claim("team=\"red\""),
            Ok(Claim("team".into(), json!("red")))
        );
        assert_eq!(claim("team=red"), Ok(Claim("team".into(), json!("red"))));
        assert_eq!(claim("n=[1]"), Ok(Claim("n".into(), json!([1]))));
        assert!(claim("team").is_err());
    }
}
