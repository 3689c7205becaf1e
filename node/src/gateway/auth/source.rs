//! Where a client sends its token.

use std::str::FromStr;

use roomcast::Handshake;
use serde_json::Value;

use crate::gateway::values::deserialize_from_text;

/// A longer token is refused unread. Cookies and headers have separate limits, but `auth` may be as
/// large as a message.
const MAX_TOKEN: usize = 16 * 1024;

/// A place of the handshake. URLs end up in the logs of proxies, so the query is not in
/// the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A member of the client's `auth`.
    Auth(String),
    /// A header, with or without `Bearer` before the token.
    Header(String),
    Cookie(String),
    Query(String),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |name: &str| match name {
            "" => Err("a place of tokens needs a name, such as auth.token".to_owned()),
            name => Ok(name.to_owned()),
        };
        if let Some(member) = text.strip_prefix("auth.") {
            return named(member).map(Self::Auth);
        }
        match text.split_once(':') {
            // Header names are stored in lower case, as HTTP/2 requires.
            Some(("header", name)) => {
                named(name).map(|name| Self::Header(name.to_ascii_lowercase()))
            }
            Some(("cookie", name)) => named(name).map(Self::Cookie),
            Some(("query", name)) => named(name).map(Self::Query),
            _ => Err(format!(
                "`{text}` is no place of tokens: use auth.NAME, header:NAME, cookie:NAME or query:NAME"
            )),
        }
    }
}

deserialize_from_text!(Source);

impl Source {
    /// The token at this place. An empty one counts as missing, because clients send one when no
    /// user is logged in.
    pub(super) fn token(&self, handshake: &Handshake) -> Option<String> {
        let token = match self {
            Self::Auth(name) => {
                let auth: Value = handshake.auth().ok()?;
                auth.get(name)?.as_str()?.to_owned()
            }
            Self::Header(name) => {
                let value = handshake.header(name)?;
                without_scheme(&value).to_owned()
            }
            Self::Cookie(name) => {
                let header = handshake.header("cookie")?;
                cookie(&header, name)?.trim_matches('"').to_owned()
            }
            Self::Query(name) => handshake.query(name)?,
        };
        (!token.is_empty() && token.len() <= MAX_TOKEN).then_some(token)
    }
}

fn without_scheme(value: &str) -> &str {
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => value.trim(),
    }
}

/// The first cookie of this name in a header, which has the most specific path.
pub(crate) fn cookie<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let mut cookies = header.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = cookies.find(|(key, _)| key.trim() == name)?;
    Some(value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_wrong_ones_are_named() {
        assert_eq!("auth.token".parse(), Ok(Source::Auth("token".into())));
        assert_eq!(
            "header:Authorization".parse(),
            Ok(Source::Header("authorization".into()))
        );
        assert_eq!("cookie:id".parse(), Ok(Source::Cookie("id".into())));
        assert_eq!("query:t".parse(), Ok(Source::Query("t".into())));
        for wrong in ["token", "auth.", "header:", "body:x"] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        assert_eq!(cookie("a=1; token=x.y.z; b=2", "token"), Some("x.y.z"));
        assert_eq!(cookie("a=b; token=k=1; token=l", "token"), Some("k=1"));
        assert_eq!(cookie("mytoken=x", "token"), None);
        assert_eq!(cookie("", "token"), None);
    }

    #[test]
    fn the_scheme_of_a_header_is_optional() {
        assert_eq!(without_scheme("Bearer a.b.c"), "a.b.c");
        assert_eq!(without_scheme("bearer  a.b.c"), "a.b.c");
        assert_eq!(without_scheme("a.b.c"), "a.b.c");
    }
}
