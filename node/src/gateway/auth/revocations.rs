//! Users and tokens that are refused although their tokens have not expired.
//!
//! A token is remembered until it would have expired anyway. A user is remembered with
//! the time of the revocation, so that a later login works: only tokens that were issued
//! before are refused.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::user::User;

/// The revocations that a node remembers.
/// Ids come from tokens that issuers make and from calls of the API, so the table is
/// bounded. The caller gets an error if a further revocation cannot be remembered.
pub(crate) const MAX_REVOCATIONS: usize = 100_000;

/// One revocation, as nodes exchange it. All times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Revocation {
    /// All tokens of a user that were issued until then.
    User {
        user: String,
        issued_until: u64,
        remember_until: u64,
    },
    /// One token, by its `jti`.
    Token { id: String, remember_until: u64 },
}

/// The table of revocations is full.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_REVOCATIONS} revocations are remembered already")]
pub(crate) struct TooMany;

impl Revocation {
    /// Whether the revocation applies to the token of this user.
    pub(super) fn concerns(&self, user: &User) -> bool {
        match self {
            Self::User {
                user: id,
                issued_until,
                ..
            } => user.id == *id && user.issued <= *issued_until,
            Self::Token { id, .. } => user.token_id.as_ref() == Some(id),
        }
    }
}

/// The revocations that a node remembers. Each entry keeps the latest of several revocations.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    users: HashMap<String, (u64, u64)>,
    tokens: HashMap<String, u64>,
}

impl Revocations {
    /// Remembers a revocation. Older ones that have become pointless make room for it.
    pub(super) fn add(&mut self, revocation: &Revocation, now: u64) -> Result<(), TooMany> {
        let is_known = match revocation {
            Revocation::User { user, .. } => self.users.contains_key(user),
            Revocation::Token { id, .. } => self.tokens.contains_key(id),
        };
        if !is_known && self.len() >= MAX_REVOCATIONS {
            self.prune(now);
            if self.len() >= MAX_REVOCATIONS {
                return Err(TooMany);
            }
        }
        match revocation {
            Revocation::User {
                user,
                issued_until,
                remember_until,
            } => {
                let known = self.users.entry(user.clone()).or_default();
                known.0 = known.0.max(*issued_until);
                known.1 = known.1.max(*remember_until);
            }
            Revocation::Token { id, remember_until } => {
                let known = self.tokens.entry(id.clone()).or_default();
                *known = (*known).max(*remember_until);
            }
        }
        Ok(())
    }

    pub(super) fn is_revoked(&self, user: &User) -> bool {
        let by_user = self.users.get(&user.id);
        let by_token = user.token_id.as_ref().and_then(|id| self.tokens.get(id));
        by_user.is_some_and(|(issued_until, _)| user.issued <= *issued_until) || by_token.is_some()
    }

    /// Removes revocations that apply only to expired tokens.
    pub(super) fn prune(&mut self, now: u64) {
        self.users.retain(|_, (_, until)| *until > now);
        self.tokens.retain(|_, until| *until > now);
    }

    pub(super) fn len(&self) -> usize {
        self.users.len() + self.tokens.len()
    }

    /// For a node that has just started, which receives them from the others.
    pub(super) fn all(&self) -> Vec<Revocation> {
        let users = self
            .users
            .iter()
            .map(|(user, (issued, remember))| Revocation::User {
                user: user.clone(),
                issued_until: *issued,
                remember_until: *remember,
            });
        let tokens = self.tokens.iter().map(|(id, remember)| Revocation::Token {
            id: id.clone(),
            remember_until: *remember,
        });
        users.chain(tokens).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::auth::user::tests::user;

    fn of_user(user: &str, issued_until: u64) -> Revocation {
        Revocation::User {
            user: user.into(),
            issued_until,
            remember_until: 1000,
        }
    }

    fn of_token(id: &str, remember_until: u64) -> Revocation {
        Revocation::Token {
            id: id.into(),
            remember_until,
        }
    }

    #[test]
    fn tokens_of_a_user_are_refused_if_they_were_issued_before() {
        let mut known = Revocations::default();
        known.add(&of_user("ada", 10), 0).unwrap();
        for (id, issued, refused) in [
            ("ada", 0, true),
            ("ada", 10, true),
            ("ada", 11, false),
            ("bob", 0, false),
        ] {
            let user = user(id, issued, None);
            assert_eq!(known.is_revoked(&user), refused, "{id} {issued}");
            assert_eq!(of_user("ada", 10).concerns(&user), refused, "{id} {issued}");
        }
        known.add(&of_user("ada", 5), 0).unwrap();
        assert!(
            known.is_revoked(&user("ada", 10, None)),
            "the latest counts"
        );
    }

    #[test]
    fn one_token_is_refused_by_its_id() {
        let mut known = Revocations::default();
        known.add(&of_token("t1", 100), 0).unwrap();
        assert!(known.is_revoked(&user("ada", 50, Some("t1"))));
        assert!(!known.is_revoked(&user("ada", 50, Some("t2"))));
        assert!(!known.is_revoked(&user("ada", 50, None)));
    }

    #[test]
    fn what_concerns_expired_tokens_is_forgotten() {
        let mut known = Revocations::default();
        known.add(&of_token("t1", 100), 0).unwrap();
        known.add(&of_user("ada", 10), 0).unwrap();
        known.prune(99);
        assert_eq!(known.len(), 2);
        known.prune(100);
        assert_eq!(known.all(), [of_user("ada", 10)]);
    }

    #[test]
    fn there_is_a_limit_and_expired_ones_make_room() {
        let mut known = Revocations::default();
        for id in 0..MAX_REVOCATIONS {
            known.add(&of_token(&id.to_string(), 100), 0).unwrap();
        }
        assert_eq!(known.add(&of_token("more", 200), 99), Err(TooMany));
        assert_eq!(known.add(&of_token("7", 200), 99), Ok(()), "it is known");
        assert_eq!(known.add(&of_token("more", 200), 100), Ok(()));
        assert_eq!(known.len(), 2);
    }
}
