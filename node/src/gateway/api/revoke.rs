//! The call that revokes tokens before they expire.
//!
//! A revocation holds in every namespace that requires tokens, so the key must be for all of them.

use std::{fmt, sync::Arc, time::Duration};

use roomcast::Server;
use serde_json::{Number, Value, json};

use super::{
    calls::{fields, of_body, permit},
    keys::Key,
    problem::{Kind, Problem},
};
use crate::gateway::auth::Auth;

/// The longest id of a user or a token, in bytes. Nodes remember up to 100,000 of them.
const MAX_ID: usize = 1024;

/// The latest time of expiry, in seconds since 1970: the end of the year 9999.
/// Milliseconds instead of seconds would be beyond it, which is a common mistake.
const MAX_EXPIRES: u64 = 253_402_300_799;

/// A revocation that has been checked completely.
pub(crate) struct Revoke {
    auth: Arc<Auth>,
    what: What,
}

#[derive(Debug, PartialEq)]
enum What {
    /// All tokens of this user that were issued until now.
    User(String),
    /// The token with this `jti`.
    Token { id: String, expires: Option<u64> },
}

impl Revoke {
    /// Reads and checks a request. Without `auth` there are no tokens to revoke.
    pub(super) fn read(key: &Key, body: &[u8], auth: Option<&Arc<Auth>>) -> Result<Self, Problem> {
        let what = What::read(body)?;
        let auth = auth.ok_or_else(|| {
            Problem::new(
                Kind::NoTokens,
                "a namespace asks for them with access = \"jwt\"",
            )
        })?;
        for namespace in auth.namespaces() {
            permit(key, namespace)?;
        }
        Ok(Self {
            auth: Arc::clone(auth),
            what,
        })
    }

    pub(super) async fn carry_out(self, server: &Server) -> Result<Value, Problem> {
        let revoked = match &self.what {
            What::User(user) => self.auth.revoke_user(server, user).await,
            What::Token { id, expires } => self.auth.revoke_token(server, id, *expires).await,
        };
        match revoked {
            Ok(()) => Ok(json!({ "effect": "done" })),
            Err(error) => Err(Problem::of_revoke(&error)),
        }
    }
}

impl fmt::Debug for Revoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)
    }
}

impl What {
    fn read(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = fields(body)?;
        let mut id = |name| match fields.take::<String>(name).map_err(of_body)? {
            Some(id) if id.is_empty() || id.len() > MAX_ID => {
                let detail = format!("an id has 1 to {MAX_ID} bytes");
                Err(Problem::invalid(name, detail))
            }
            id => Ok(id),
        };
        match (id("user")?, id("token")?) {
            (Some(user), None) => {
                fields.only(&["user"]).map_err(of_body)?;
                Ok(Self::User(user))
            }
            (None, Some(id)) => {
                fields.only(&["token", "expires"]).map_err(of_body)?;
                let expires = fields.take("expires").map_err(of_body)?;
                let expires = expires.as_ref().map(time).transpose()?;
                Ok(Self::Token { id, expires })
            }
            _ => Err(Problem::invalid("", "expected either `user` or `token`")),
        }
    }
}

/// Reads a time in whole seconds. JSON does not distinguish 7 from 7.0.
fn time(number: &Number) -> Result<u64, Problem> {
    let whole = |seconds: f64| {
        let time = Duration::try_from_secs_f64(seconds).ok()?;
        (seconds.fract() == 0.0).then_some(time.as_secs())
    };
    let seconds = number.as_u64().or_else(|| number.as_f64().and_then(whole));
    seconds
        .filter(|seconds| *seconds <= MAX_EXPIRES)
        .ok_or_else(|| {
            let detail = "expected whole seconds since 1970, up to the year 9999";
            Problem::invalid("expires", detail)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_or_a_token_is_revoked() {
        let read = |body: &str| What::read(body.as_bytes()).unwrap();
        assert_eq!(read(r#"{"user": "7"}"#), What::User("7".into()));
        let token = |expires| What::Token {
            id: "t".into(),
            expires,
        };
        assert_eq!(read(r#"{"token": "t"}"#), token(None));
        assert_eq!(
            read(r#"{"token": "t", "expires": 2000000000}"#),
            token(Some(2_000_000_000))
        );
        assert_eq!(
            read(r#"{"token": "t", "expires": 220.0}"#),
            token(Some(220))
        );
    }

    #[test]
    fn anything_else_is_refused_with_its_place() {
        for (body, place) in [
            ("{}", "either"),
            (r#"{"user": "7", "token": "t"}"#, "either"),
            (r#"{"user": ""}"#, r#""field":"user""#),
            (r#"{"token": 7}"#, r#""field":"token""#),
            (r#"{"user": "7", "expires": 1}"#, r#""field":"expires""#),
            (r#"{"token": "t", "expires": -1}"#, r#""field":"expires""#),
            (r#"{"token": "t", "expires": 1.5}"#, r#""field":"expires""#),
            (r#"{"token": "t", "expires": null}"#, r#""field":"expires""#),
            (
                r#"{"token": "t", "expires": 253402300800}"#,
                r#""field":"expires""#,
            ),
            (
                r#"{"user": "7", "namespace": "/"}"#,
                r#""field":"namespace""#,
            ),
        ] {
            let problem = What::read(body.as_bytes()).unwrap_err();
            let text = String::from_utf8(problem.body()).unwrap();
            assert!(text.contains(place), "{body}: {text}");
        }
    }
}
