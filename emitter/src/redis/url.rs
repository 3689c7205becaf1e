//! Where Redis is, read from one URL.
//!
//! A standard URL cannot have several hosts, so the authority is read here;
//! everything after it follows the forms of the `redis` crate. Nothing here touches the
//! network. Passwords are never displayed and are never part of an error.

use std::{fmt, path::PathBuf, str::FromStr};

/// The default port of Redis.
const REDIS_PORT: u16 = 6379;

/// The default port of a Sentinel.
const SENTINEL_PORT: u16 = 26379;

/// Maximum number of hosts in one URL.
const MAX_HOSTS: usize = 64;

/// Where Redis is, and the user to log in as.
///
/// | form | meaning |
/// |---|---|
/// | `redis://[user:password@]host[:port][/database]` | one server; port 6379, database 0 |
/// | `unix:///path[?db=N&user=U&password=P]` | one server behind a Unix socket |
/// | `redis+sentinel://[user:password@]host[:port],…/primary[/database]` | the primary of that name; `?sentinel_user=` and `?sentinel_password=` log in to the Sentinels, whose default port is 26379 |
/// | `redis+cluster://[user:password@]host[:port],…` | a cluster, of which some nodes are listed |
///
/// `rediss`, `rediss+sentinel` and `rediss+cluster` use TLS. Server certificates are
/// verified against the system's trust store, or against the PEM file in `?ca=`. `?cert=`
/// and `?key=` name the PEM files of a client certificate. User, password, path and
/// parameters may be percent-encoded, and must be if they contain `/`, `?`, `&` or `%`.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(crate) location: Location,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) login: Login,
    pub(crate) database: u32,
}

/// The servers that the URL names.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Location {
    Server(Address),
    Unix(PathBuf),
    Sentinel {
        sentinels: Vec<Address>,
        primary: Box<str>,
        login: Login,
    },
    Cluster(Vec<Address>),
}

/// Credentials. Without a password there is no login.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: Option<Box<str>>,
    pub(crate) password: Option<Box<str>>,
}

/// PEM files for TLS.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Trusted authorities, instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// The client certificate and its key.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

/// Host and port of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
}

impl Address {
    /// An address from its parts.
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }

    fn parse(text: &str, default_port: u16) -> Result<Self, UrlError> {
        let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
            bracketed.split_once(']').ok_or(UrlError::Host)?
        } else {
            text.split_at(text.find(':').unwrap_or(text.len()))
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| UrlError::Port)?,
            None if port.is_empty() => default_port,
            None => return Err(UrlError::Host),
        };
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(UrlError::Host);
        }
        match port {
            0 => Err(UrlError::Port),
            port => Ok(Self::new(host, port)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a URL was rejected. Never quotes a part that may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// The scheme is missing or unknown.
    #[error(
        "the URL of Redis must begin with redis://, rediss://, unix://, redis+sentinel://, \
         rediss+sentinel://, redis+cluster:// or rediss+cluster://"
    )]
    Scheme,
    /// A host is missing or malformed.
    #[error("a host is missing or malformed")]
    Host,
    /// A port is not a number from 1 to 65535.
    #[error(
        "a port is not a number from 1 to 65535 (percent-encode `:`, `/`, `?` and `@` in a password)"
    )]
    Port,
    /// Several hosts for a single server.
    #[error("expected one host; only redis+sentinel:// and redis+cluster:// take several")]
    SeveralHosts,
    /// Too many hosts.
    #[error("more than {MAX_HOSTS} hosts")]
    TooManyHosts,
    /// The database is not a number.
    #[error("the database is not a number")]
    Database,
    /// A database other than 0 was given for a cluster.
    #[error("a cluster has only database 0")]
    ClusterDatabase,
    /// The name of the primary is missing.
    #[error("the name of the primary is missing: redis+sentinel://host:port/name")]
    PrimaryName,
    /// The path has too many parts.
    #[error("the path of the URL has too many parts")]
    Path,
    /// The path of a Unix socket is missing or relative.
    #[error("the path of the Unix socket is missing or relative: unix:///run/redis.sock")]
    UnixPath,
    /// A user without a password.
    #[error("the URL has a user but no password")]
    UserWithoutPassword,
    /// `%` is not followed by two hexadecimal digits, or the result is not UTF-8.
    #[error("invalid percent-encoding")]
    Encoding,
    /// The parameter does not exist for this kind of URL.
    #[error("unknown parameter `{0}`")]
    Parameter(Box<str>),
    /// A certificate without its key, or a key without its certificate.
    #[error("`cert` and `key` must be given together")]
    CertificateWithoutKey,
}

impl FromStr for RedisUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parameters = Parameters::parse(query)?;
        let mut url = match scheme {
            "unix" if authority.is_empty() => unix(path, &mut parameters)?,
            "unix" => return Err(UrlError::UnixPath),
            "redis" | "rediss" => server(authority, path)?,
            "redis+sentinel" | "rediss+sentinel" => sentinel(authority, path, &mut parameters)?,
            "redis+cluster" | "rediss+cluster" => cluster(authority, path)?,
            _ => return Err(UrlError::Scheme),
        };
        if scheme.starts_with("rediss") {
            url.tls = Some(tls_files(&mut parameters)?);
        }
        parameters.finish()?;
        Ok(url)
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls.is_some() { "s" } else { "" };
        let user = self.login.user.as_ref();
        let user = user.map_or_else(String::new, |user| format!("{user}@"));
        let database = match self.database {
            0 => String::new(),
            database => format!("/{database}"),
        };
        match &self.location {
            Location::Server(address) => write!(f, "redis{s}://{user}{address}{database}"),
            Location::Unix(path) => write!(f, "unix://{}", path.display()),
            Location::Sentinel {
                sentinels, primary, ..
            } => {
                let hosts = list(sentinels);
                write!(f, "redis{s}+sentinel://{user}{hosts}/{primary}{database}")
            }
            Location::Cluster(seeds) => write!(f, "redis{s}+cluster://{user}{}", list(seeds)),
        }
    }
}

impl fmt::Debug for RedisUrl {
    /// Like `Display`, without passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

fn list(addresses: &[Address]) -> String {
    let texts: Vec<_> = addresses.iter().map(Address::to_string).collect();
    texts.join(",")
}

fn server(authority: &str, path: &str) -> Result<RedisUrl, UrlError> {
    let (login, mut hosts) = authority_of(authority, REDIS_PORT)?;
    if hosts.len() > 1 {
        return Err(UrlError::SeveralHosts);
    }
    Ok(RedisUrl {
        location: Location::Server(hosts.swap_remove(0)),
        tls: None,
        login,
        database: database_of(path)?,
    })
}

fn unix(path: &str, parameters: &mut Parameters) -> Result<RedisUrl, UrlError> {
    if path.is_empty() {
        return Err(UrlError::UnixPath);
    }
    let login = Login {
        user: parameters.take("user"),
        password: parameters
            .take("password")
            .or_else(|| parameters.take("pass")),
    };
    Ok(RedisUrl {
        location: Location::Unix(PathBuf::from(format!("/{}", decoded(path)?))),
        tls: None,
        login: login.checked()?,
        database: database_of(parameters.take("db").as_deref().unwrap_or_default())?,
    })
}

fn sentinel(
    authority: &str,
    path: &str,
    parameters: &mut Parameters,
) -> Result<RedisUrl, UrlError> {
    let (login, sentinels) = authority_of(authority, SENTINEL_PORT)?;
    let (primary, database) = path.split_once('/').unwrap_or((path, ""));
    if primary.is_empty() {
        return Err(UrlError::PrimaryName);
    }
    let sentinel_login = Login {
        user: parameters.take("sentinel_user"),
        password: parameters.take("sentinel_password"),
    };
    Ok(RedisUrl {
        location: Location::Sentinel {
            sentinels,
            primary: decoded(primary)?.into(),
            login: sentinel_login.checked()?,
        },
        tls: None,
        login,
        database: database_of(database)?,
    })
}

fn cluster(authority: &str, path: &str) -> Result<RedisUrl, UrlError> {
    let (login, seeds) = authority_of(authority, REDIS_PORT)?;
    if database_of(path)? != 0 {
        return Err(UrlError::ClusterDatabase);
    }
    Ok(RedisUrl {
        location: Location::Cluster(seeds),
        tls: None,
        login,
        database: 0,
    })
}

/// `[user:password@]host[:port][,host[:port]…]`; a password alone is `:password@`.
fn authority_of(text: &str, default_port: u16) -> Result<(Login, Vec<Address>), UrlError> {
    let (login, hosts) = match text.rsplit_once('@') {
        Some((login, hosts)) => (login_of(login)?, hosts),
        None => (Login::default(), text),
    };
    if hosts.split(',').count() > MAX_HOSTS {
        return Err(UrlError::TooManyHosts);
    }
    let hosts = hosts
        .split(',')
        .map(|host| Address::parse(host, default_port));
    Ok((login, hosts.collect::<Result<_, _>>()?))
}

fn login_of(text: &str) -> Result<Login, UrlError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let part = |text: &str| -> Result<Option<Box<str>>, UrlError> {
        let text = decoded(text)?;
        Ok((!text.is_empty()).then(|| text.into()))
    };
    let login = Login {
        user: part(user)?,
        password: part(password)?,
    };
    login.checked()
}

impl Login {
    fn checked(self) -> Result<Self, UrlError> {
        if self.user.is_some() && self.password.is_none() {
            return Err(UrlError::UserWithoutPassword);
        }
        Ok(self)
    }
}

fn database_of(text: &str) -> Result<u32, UrlError> {
    match text {
        "" => Ok(0),
        text if text.contains('/') => Err(UrlError::Path),
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map_err(|_| UrlError::Database)
        }
        _ => Err(UrlError::Database),
    }
}

fn tls_files(parameters: &mut Parameters) -> Result<TlsFiles, UrlError> {
    let mut file = |name| parameters.take(name).map(|path| PathBuf::from(&*path));
    let ca = file("ca");
    let own = match (file("cert"), file("key")) {
        (Some(certificates), Some(key)) => Some((certificates, key)),
        (None, None) => None,
        _ => return Err(UrlError::CertificateWithoutKey),
    };
    Ok(TlsFiles { ca, own })
}

/// The query. Each parameter is removed when it is used, so that unknown ones remain.
struct Parameters(Vec<(Box<str>, Box<str>)>);

impl Parameters {
    /// Maximum number of parameters; every form has fewer.
    const MAX: usize = 16;

    fn parse(query: &str) -> Result<Self, UrlError> {
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_repeated = parameters
                .iter()
                .any(|(known, _): &(Box<str>, _)| **known == *name);
            if is_repeated || parameters.len() == Self::MAX {
                return Err(UrlError::Parameter(name.into()));
            }
            parameters.push((name.into(), decoded(value)?.into()));
        }
        Ok(Self(parameters))
    }

    /// Removes a parameter. An empty value counts as absent.
    fn take(&mut self, name: &str) -> Option<Box<str>> {
        let at = self.0.iter().position(|(known, _)| **known == *name)?;
        Some(self.0.swap_remove(at).1).filter(|value| !value.is_empty())
    }

    fn finish(mut self) -> Result<(), UrlError> {
        match self.0.pop() {
            Some((name, _)) => Err(UrlError::Parameter(name)),
            None => Ok(()),
        }
    }
}

fn decoded(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or(UrlError::Encoding)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(UrlError::Encoding);
        let value = digit(digits[0])? * 16 + digit(digits[1])?;
        bytes.push(u8::try_from(value).expect("two hexadecimal digits are a byte"));
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> RedisUrl {
        text.parse().unwrap()
    }

    fn error(text: &str) -> UrlError {
        text.parse::<RedisUrl>().unwrap_err()
    }

    #[test]
    fn every_form_reads_back_as_it_is_shown() {
        for text in [
            "redis://localhost:6380",
            "redis://[::1]:6380/3",
            "rediss://cache.example:6380",
            "unix:///run/redis.sock",
            "redis+sentinel://a:26379,b:1/mymaster",
            "rediss+sentinel://a:26379/mymaster/2",
            "redis+cluster://a:7000,[::1]:7001",
            "rediss+cluster://a:7000",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn ports_are_those_of_the_kind_of_server() {
        assert_eq!(parse("redis://a").to_string(), "redis://a:6379");
        assert_eq!(parse("redis://[::1]/").to_string(), "redis://[::1]:6379");
        let sentinel = parse("redis+sentinel://a,b:7/m");
        assert_eq!(sentinel.to_string(), "redis+sentinel://a:26379,b:7/m");
        assert_eq!(
            parse("redis+cluster://a").to_string(),
            "redis+cluster://a:6379"
        );
    }

    #[test]
    fn users_and_passwords_are_decoded_and_never_shown() {
        let login = |url: &RedisUrl| {
            let login = &url.login;
            (login.user.clone(), login.password.clone())
        };
        let url = parse("redis://al%40ice:p%2Fw:%3F@host");
        assert_eq!(login(&url), (Some("al@ice".into()), Some("p/w:?".into())));
        assert_eq!(url.to_string(), "redis://al@ice@host:6379");
        assert_eq!(format!("{url:?}"), "RedisUrl(redis://al@ice@host:6379)");
        let url = parse("redis://:secret@host/4");
        assert_eq!(login(&url), (None, Some("secret".into())));
        assert_eq!(url.to_string(), "redis://host:6379/4");
        let url = parse("unix:///a%20b?db=2&user=bob&password=p%26w");
        assert_eq!(login(&url), (Some("bob".into()), Some("p&w".into())));
        assert_eq!((url.to_string(), url.database), ("unix:///a b".into(), 2));
        assert!(login(&parse("unix:///a?pass=x")).1.is_some());
        let url = parse("redis+sentinel://:a@h/m?sentinel_user=u&sentinel_password=s3");
        assert!(!format!("{url:?}").contains("s3"));
        let Location::Sentinel { login, .. } = url.location else {
            panic!("the form is that of Sentinels");
        };
        assert_eq!(login.password.as_deref(), Some("s3"));
    }

    #[test]
    fn files_of_certificates_belong_to_tls() {
        let url = parse("rediss://h?ca=/etc/ca.pem&cert=c.pem&key=k.pem");
        let files = url.tls.unwrap();
        assert_eq!(files.ca, Some("/etc/ca.pem".into()));
        assert_eq!(files.own, Some(("c.pem".into(), "k.pem".into())));
        assert_eq!(error("redis://h?ca=x"), UrlError::Parameter("ca".into()));
        assert_eq!(error("rediss://h?key=x"), UrlError::CertificateWithoutKey);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("", UrlError::Scheme),
            ("localhost:6379", UrlError::Scheme),
            ("http://a", UrlError::Scheme),
            ("redis://", UrlError::Host),
            ("redis:///1", UrlError::Host),
            ("redis://[::1", UrlError::Host),
            ("redis://[::1]x", UrlError::Host),
            ("redis+cluster://a,,b", UrlError::Host),
            ("redis://a b", UrlError::Host),
            ("redis://a:0", UrlError::Port),
            ("redis://a:65536", UrlError::Port),
            ("redis://:pa/ss@host", UrlError::Port),
            ("redis://a,b", UrlError::SeveralHosts),
            ("redis://a/x", UrlError::Database),
            ("redis://a/-1", UrlError::Database),
            ("redis://a/99999999999", UrlError::Database),
            ("redis://a/1/2", UrlError::Path),
            ("redis+cluster://a/1", UrlError::ClusterDatabase),
            ("redis+sentinel://a", UrlError::PrimaryName),
            ("redis+sentinel://a//1", UrlError::PrimaryName),
            ("unix://", UrlError::UnixPath),
            ("unix://run/redis.sock", UrlError::UnixPath),
            ("redis://bob@a", UrlError::UserWithoutPassword),
            ("redis://:%zz@a", UrlError::Encoding),
            ("redis://:%f@a", UrlError::Encoding),
            ("redis://:%ff@a", UrlError::Encoding),
            (
                "redis://a?insecure=1",
                UrlError::Parameter("insecure".into()),
            ),
            ("rediss://a?ca=x&ca=y", UrlError::Parameter("ca".into())),
        ] {
            assert_eq!(error(text), expected, "{text}");
        }
        let hosts = vec!["a"; MAX_HOSTS + 1].join(",");
        assert_eq!(
            error(&format!("redis+cluster://{hosts}")),
            UrlError::TooManyHosts
        );
    }
}
