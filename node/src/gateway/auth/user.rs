//! A user, as the claims of a verified token describe it.

use serde_json::Value;

use super::{ClaimSettings, keys::Verified};
use crate::gateway::policy::{Action, Claims, Patterns, RoomPolicy, text_of};

/// The longest id of a user. It is part of the name of a room.
const MAX_USER: usize = 200;

/// The rooms that a token may name.
/// Every connect has a token, and a socket joins all of them.
const MAX_ROOMS: usize = 100;

/// The identity and the rights of a client, until its token expires.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct User {
    pub(crate) id: String,
    /// Rooms to join at the connect.
    pub(crate) rooms: Vec<String>,
    join: Patterns,
    send: Patterns,
    /// When the token expires, in seconds since 1970.
    pub(crate) expires: u64,
    /// When the token was issued, in seconds since 1970; zero if it is missing.
    pub(crate) issued: u64,
    pub(crate) token_id: Option<String>,
    pub(crate) claims: Claims,
}

/// Why a token is not accepted. The text is shown to the client.
/// It never contains the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("a token is needed")]
    Missing,
    #[error("the token is invalid")]
    Invalid,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token has no valid claim `{0}`")]
    Claim(String),
    #[error("the token is valid for too long")]
    TooLong,
    #[error("the token was revoked")]
    Revoked,
    #[error("the token belongs to another user")]
    OtherUser,
}

impl TokenError {
    /// A word for metrics and for clients that react to it.
    /// The texts may change, so clients decide by it.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Invalid => "token_invalid",
            Self::Expired => "token_expired",
            Self::NotYet => "token_not_yet_valid",
            Self::Audience => "token_audience",
            Self::Issuer => "token_issuer",
            Self::Claim(_) => "token_claim",
            Self::TooLong => "token_lifetime",
            Self::Revoked => "token_revoked",
            Self::OtherUser => "token_other_user",
        }
    }
}

impl User {
    /// Reads the claims that have a meaning here.
    /// A claim of the wrong form refuses the token: an issuer that writes one would otherwise grant
    /// unintended rights.
    pub(super) fn new(verified: Verified, names: &ClaimSettings) -> Result<Self, TokenError> {
        let Verified { claims, expires } = verified;
        let invalid = |name: &str| TokenError::Claim(name.to_owned());
        let id = claims.get(&names.user).and_then(text_of);
        let id = id
            .filter(|id| !id.is_empty() && id.len() <= MAX_USER)
            .ok_or_else(|| invalid(&names.user))?;
        let texts = |name: &str| texts(&claims, name).ok_or_else(|| invalid(name));
        let patterns = |name: &str| Patterns::parse(&texts(name)?).map_err(|_| invalid(name));
        Ok(Self {
            id,
            rooms: texts(&names.rooms)?,
            join: patterns(&names.join)?,
            send: patterns(&names.send)?,
            expires,
            issued: claims.get("iat").and_then(seconds).unwrap_or_default(),
            token_id: claims.get("jti").and_then(text_of),
            claims,
        })
    }

    /// Whether the policy of the namespace or the token itself allows the action.
    pub(crate) fn may(&self, policy: &RoomPolicy, action: Action, room: &str) -> bool {
        let own = match action {
            Action::Join => self.join.matches(room, &self.claims),
            Action::Send => self.send.matches(room, &self.claims),
            // Tokens name only rooms to join and to send to.
            Action::History | Action::Presence => false,
        };
        own || policy.may(action, room, &self.claims)
    }
}

/// A claim that is a list of texts, or one text. A missing claim is an empty list.
fn texts(claims: &Claims, name: &str) -> Option<Vec<String>> {
    let texts = match claims.get(name) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>()?
        }
        Some(_) => return None,
    };
    (texts.len() <= MAX_ROOMS).then_some(texts)
}

/// A time of a token, which may have a fraction.
pub(super) fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0)?;
        Some(seconds as u64)
    })
}

#[cfg(test)]
pub(super) mod tests;
