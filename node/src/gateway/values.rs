//! The value types of the command line: durations, sizes, counts and lists of choices.
//!
//! Each is parsed once, when the program starts. Its `Display` form can be parsed again,
//! so the help shows defaults as a person would write them. `config` defines the options.
//!
//! An error states the expected form and never only that the value is wrong, because it is the only
//! text that an operator sees before the program ends. Values that would be accepted and do
//! nothing, such as a duration of zero or an origin with a path, are errors, too.

use std::{env, fmt, fs, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use roomcast::{ClientFiles, TrustedProxies};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// A duration with its unit: `300ms`, `25s`, `2m`, `1h`; from 1 ms to 24 h. It is never
/// zero, because nearly every option that takes one is a limit or an interval; [`pause`]
/// reads the others.
/// A unit is required, because servers differ in whether a bare number means seconds or
/// milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = split_unit(text);
        let number: u64 = digits
            .parse()
            .map_err(|_| "expected a duration such as 25s or 300ms".to_owned())?;
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" => {
                return Err(format!(
                    "the unit is missing: write {number}s or {number}ms"
                ));
            }
            _ => return Err(format!("unknown unit `{unit}`: use ms, s, m or h")),
        };
        match number.checked_mul(factor) {
            Some(0) => Err("must be more than zero".to_owned()),
            Some(millis) if millis <= LONGEST_MILLIS => Ok(Self(Duration::from_millis(millis))),
            _ => Err("must be at most 24h".to_owned()),
        }
    }
}

/// A duration that may be zero: an option that does nothing then.
pub(crate) fn pause(text: &str) -> Result<Span, String> {
    match split_unit(text) {
        ("0", "ms" | "s" | "m" | "h") => Ok(Span(Duration::ZERO)),
        _ => text.parse(),
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            millis if millis % 1_000 == 0 => write!(f, "{}s", millis / 1_000),
            millis => write!(f, "{millis}ms"),
        }
    }
}

/// A number of bytes: `1000000`, `1MB` (powers of ten), `1MiB` (powers of two).
/// Both kinds of units exist, because Node's default for messages is a power of ten (1
/// MB) and sizes of buffers are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) usize);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = split_unit(text);
        let number: usize = digits
            .parse()
            .map_err(|_| "expected a size such as 1000000, 1MB or 1MiB".to_owned())?;
        // People write `kB`, `KB` and `kb` for the same.
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "kib" => 1 << 10,
            "mb" => 1_000_000,
            "mib" => 1 << 20,
            "gb" => 1_000_000_000,
            "gib" => 1 << 30,
            _ => {
                return Err(format!(
                    "unknown unit `{unit}`: use B, kB, KiB, MB, MiB, GB or GiB"
                ));
            }
        };
        match number.checked_mul(factor) {
            Some(0) => Err("must be more than zero".to_owned()),
            Some(bytes) => Ok(Self(bytes)),
            None => Err("is larger than this machine's address space".to_owned()),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            // The first that divides the number without rest, so the text is exact and
            // can be parsed again.
            (1 << 30, "GiB"),
            (1_000_000, "MB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ];
        match units
            .into_iter()
            .find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A value that is on or off: `true`, `yes`, `on`, `1` and their opposites. The flag
/// alone means on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Switch(pub(crate) bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" | "y" | "t" => Ok(Self(true)),
            "false" | "no" | "off" | "0" | "n" | "f" => Ok(Self(false)),
            _ => Err("expected true or false".to_owned()),
        }
    }
}

/// How many worker threads carry the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workers {
    Cores,
    Exactly(usize),
}

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "cores" {
            return Ok(Self::Cores);
        }
        match text.parse() {
            Ok(number @ 1..=1024) => Ok(Self::Exactly(number)),
            _ => Err("expected `cores` or a number from 1 to 1024".to_owned()),
        }
    }
}

/// The origins whose pages may read responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Off,
    Any,
    Only(String),
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::Off),
            "*" => return Ok(Self::Any),
            _ => {}
        }
        let host = text.split_once("://").map_or("", |(_, host)| host);
        // A browser sends scheme, host and port only, so a path would never match.
        if host.is_empty() || host.contains(['/', ' ', '?', '#']) || !is_visible(text) {
            return Err("expected `off`, `*` or an origin such as https://example.com".to_owned());
        }
        Ok(Self::Only(text.to_owned()))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Any => "*",
            Self::Only(origin) => origin,
        })
    }
}

/// The value of an option that can be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrOff<T>(pub(crate) Option<T>);

/// A parser of `off` and of the values that `parse` reads. The errors of `parse` name `off`, too.
pub(crate) fn or_off<T>(
    parse: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<OrOff<T>, String> + Clone {
    move |text| match text {
        "off" => Ok(OrOff(None)),
        text => parse(text).map(|value| OrOff(Some(value))),
    }
}

/// Parses the name of the sticky-session cookie.
pub(crate) fn cookie_name(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(is_token_byte) {
        return Ok(text.to_owned());
    }
    Err("expected `off` or a cookie name of letters, digits, - and _".to_owned())
}

/// Reads the client's bundles from a folder.
pub(crate) fn client_files(text: &str) -> Result<ClientFiles, String> {
    ClientFiles::from_directory(text).map_err(|error| error.to_string())
}

/// Parses the name of a file, which must be readable, so that an error names the flag or variable
/// that it is from. It is read where it is used, because a reload reads it again.
pub(crate) fn file(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err("expected `off` or the name of a file".to_owned());
    }
    fs::File::open(text).map_err(|error| error.to_string())?;
    Ok(text.into())
}

/// The levels of the log, for everything or per target.
/// Kept as text, because a filter can be neither cloned nor compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFilter(String);

impl LogFilter {
    /// The filter, which also lets a target through at level debug. Targets in the text come later
    /// and win.
    pub(crate) fn to_env_filter(&self, target: Option<&str>) -> EnvFilter {
        let also = target.map(|target| format!("{target}=debug,"));
        EnvFilter::builder()
            .parse(also.unwrap_or_default() + &self.0)
            .expect("the text was parsed when this was made")
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The filter treats a bare word that is not a level as a target, so a typing error
        // such as `inof` would silence the log.
        let bare = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.contains(['=', '[']));
        for word in bare {
            if word.parse::<LevelFilter>().is_err() {
                return Err(format!(
                    "`{word}` is not a level: use error, warn, info, debug, trace, off or TARGET=LEVEL"
                ));
            }
        }
        EnvFilter::builder()
            .parse(text)
            .map_err(|error| error.to_string())?;
        Ok(Self(text.to_owned()))
    }
}

/// Lets sections of the file hold values that are parsed from text.
macro_rules! deserialize_from_text {
    ($($type:ty),*) => {
        $(impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        })*
    };
}
pub(crate) use deserialize_from_text;

deserialize_from_text!(Span, ByteSize);

/// Reads texts of the file with the parsers of the options, for `deserialize_with`.
pub(crate) mod read {
    use std::{fmt::Display, time::Duration};

    use roomcast::RedisUrl;
    use serde::{Deserialize as _, Deserializer, de::Error as _};

    use super::Span;

    fn by<'de, D: Deserializer<'de>, T, E: Display>(
        parse: impl FnOnce(&str) -> Result<T, E>,
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map_err(D::Error::custom)
    }

    pub(crate) fn namespace<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
        by(super::namespace, d)
    }

    /// A duration that may be zero.
    pub(crate) fn pause<'de, D: Deserializer<'de>>(d: D) -> Result<Span, D::Error> {
        by(super::pause, d)
    }

    pub(crate) fn span<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        by(|text| text.parse().map(|Span(span)| span), d)
    }

    pub(crate) fn redis<'de, D: Deserializer<'de>>(d: D) -> Result<Option<RedisUrl>, D::Error> {
        by(|text| text.parse().map(Some), d)
    }
}

/// Reads a secret from the file or the environment variable that the fields `NAME_file` and
/// `NAME_env` state. Errors never contain its value.
pub(crate) fn secret(
    name: &str,
    file: Option<&PathBuf>,
    variable: Option<&String>,
) -> Result<Option<String>, String> {
    let text = match (file, variable) {
        (Some(file), _) => fs::read_to_string(file)
            .map_err(|error| format!("cannot read `{name}_file` {}: {error}", file.display()))?,
        (None, Some(variable)) => env::var(variable)
            .map_err(|_| format!("the variable {variable} is not set, which `{name}_env` names"))?,
        (None, None) => return Ok(None),
    };
    // Editors end a file with a line break, which is not part of the secret.
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("the {name} is empty")),
        secret => Ok(Some(secret.to_owned())),
    }
}

/// Parses an address to listen on. Host names are refused, except `localhost`.
/// Resolving a name could fail for a moment at the start, or choose another interface
/// than meant.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let numeric = text.replacen("localhost:", "127.0.0.1:", 1);
    numeric
        .parse()
        .map_err(|_| "expected ADDRESS:PORT, such as 0.0.0.0:3000 or [::]:3000".into())
}

/// Parses an address or a network of proxies that may name the addresses of clients.
pub(crate) fn proxy_network(text: &str) -> Result<String, String> {
    let network = TrustedProxies::new([text]).map(|_| text.to_owned());
    network.map_err(|error| error.to_string())
}

/// Parses a count of at least 1.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err("expected a whole number, at least 1".to_owned()),
    }
}

/// Parses a depth of nested JSON.
pub(crate) fn json_depth(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(depth @ 1..=500) => Ok(depth),
        _ => Err("expected a whole number from 1 to 500".to_owned()),
    }
}

/// Parses the path of the endpoint.
pub(crate) fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.bytes().all(is_path_byte) {
        Ok(text.to_owned())
    } else {
        Err("expected a path that begins with / and has no space, query or brace".to_owned())
    }
}

/// Parses the name of a namespace. A comma would end the name on the wire.
pub(crate) fn namespace(text: &str) -> Result<String, String> {
    if text.starts_with('/') && is_visible(text) && !text.contains([',', '?']) {
        Ok(text.to_owned())
    } else {
        Err("expected a namespace that begins with /, such as / or /chat".to_owned())
    }
}

/// Parses the name of a request header.
pub(crate) fn header_name(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(is_token_byte) {
        Ok(text.to_owned())
    } else {
        Err("expected a header name such as authorization".to_owned())
    }
}

/// Splits `25s` into `25` and `s`. The caller checks both.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| c.is_ascii_alphabetic() || c == ' ')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (digits, unit.trim_start())
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte)
}

const LONGEST_MILLIS: u64 = 24 * 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        let millis = |text: &str| text.parse::<Span>().map(|span| span.0.as_millis());
        assert_eq!(millis("300ms"), Ok(300));
        assert_eq!(millis("25s"), Ok(25_000));
        assert_eq!(millis("2 m"), Ok(120_000));
        assert_eq!(millis("24h"), Ok(86_400_000));
    }

    #[test]
    fn a_wrong_duration_says_what_is_wrong() {
        let refusal = |text: &str| text.parse::<Span>().unwrap_err();
        assert_eq!(refusal("25"), "the unit is missing: write 25s or 25ms");
        assert_eq!(refusal("5d"), "unknown unit `d`: use ms, s, m or h");
        assert_eq!(refusal("0s"), "must be more than zero");
        assert_eq!(pause("0s"), Ok(Span(Duration::ZERO)));
        assert_eq!(pause("2s"), Ok(Span(Duration::from_secs(2))));
        assert_eq!(pause("0"), Err(refusal("0")));
        assert_eq!(refusal("25h"), "must be at most 24h");
        for text in ["", "s", "-1s", "1.5s", "99999999999999999999s"] {
            assert_eq!(
                refusal(text),
                "expected a duration such as 25s or 300ms",
                "{text}"
            );
        }
        assert_eq!(refusal("18446744073709551615h"), "must be at most 24h");
    }

    #[test]
    fn sizes_are_decimal_or_binary_by_their_unit() {
        let bytes = |text: &str| text.parse::<ByteSize>().map(|size| size.0);
        assert_eq!(bytes("1000000"), Ok(1_000_000));
        assert_eq!(bytes("1MB"), Ok(1_000_000));
        assert_eq!(bytes("1MiB"), Ok(1_048_576));
        assert_eq!(bytes("64 kb"), Ok(64_000));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("512B"), Ok(512));
        assert_eq!(bytes("2GiB"), Ok(2_147_483_648));
    }

    #[test]
    fn a_wrong_size_says_what_is_wrong() {
        let refusal = |text: &str| text.parse::<ByteSize>().unwrap_err();
        assert_eq!(refusal("0"), "must be more than zero");
        assert_eq!(
            refusal("1TB"),
            "unknown unit `TB`: use B, kB, KiB, MB, MiB, GB or GiB"
        );
        assert_eq!(
            refusal("MB"),
            "expected a size such as 1000000, 1MB or 1MiB"
        );
        assert_eq!(
            refusal("18446744073709551615GB"),
            "is larger than this machine's address space"
        );
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        for millis in [1, 999, 1_000, 1_500, 25_000, 86_400_000] {
            let span = Span(Duration::from_millis(millis));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        for bytes in [
            1,
            1_000,
            1_024,
            65_536,
            1_000_000,
            1 << 20,
            3 << 30,
            1_000_001,
        ] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(ByteSize(1 << 20).to_string(), "1MiB");
        assert_eq!(ByteSize(1_000_000).to_string(), "1MB");
    }

    #[test]
    fn workers_are_a_number_or_the_cores() {
        assert_eq!("cores".parse(), Ok(Workers::Cores));
        assert_eq!("4".parse(), Ok(Workers::Exactly(4)));
        assert!("0".parse::<Workers>().is_err());
        assert!("many".parse::<Workers>().is_err());
    }

    #[test]
    fn an_origin_has_scheme_and_host_and_no_path() {
        assert_eq!("*".parse(), Ok(Origin::Any));
        assert_eq!(
            "https://a.example:8443".parse(),
            Ok(Origin::Only("https://a.example:8443".into()))
        );
        for text in [
            "",
            "a.example",
            "https://",
            "https://a.example/",
            "https://a b",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_misspelt_log_level_is_refused() {
        for text in ["info", "warn,roomcast=debug", "off", "roomcast[span]=trace"] {
            assert!(text.parse::<LogFilter>().is_ok(), "{text}");
        }
        assert!(
            "inof"
                .parse::<LogFilter>()
                .unwrap_err()
                .starts_with("`inof` is not a level")
        );
        assert!("roomcast=lots".parse::<LogFilter>().is_err());
    }

    #[test]
    fn addresses_paths_and_namespaces_are_checked() {
        assert_eq!(
            address("localhost:0"),
            Ok(SocketAddr::from(([127, 0, 0, 1], 0)))
        );
        assert!(address("[::1]:3000").is_ok());
        assert!(address("3000").is_err());
        assert!(path("/socket.io/").is_ok());
        assert!(path("socket.io").is_err());
        assert!(path("/{sid}").is_err());
        assert!(namespace("/chat").is_ok());
        assert!(namespace("chat").is_err());
        assert!(namespace("/a,b").is_err());
        assert!(header_name("x-token").is_ok());
        assert!(header_name("x token").is_err());
        assert_eq!(count("1"), Ok(1));
        assert!(count("0").is_err());
        assert_eq!(json_depth("500"), Ok(500));
        assert!(json_depth("501").is_err());
    }

    #[test]
    fn a_cookie_has_a_plain_name_or_is_off() {
        let read = or_off(cookie_name);
        assert_eq!(read("off"), Ok(OrOff(None)));
        assert_eq!(read("io"), Ok(OrOff(Some("io".into()))));
        assert!(read("a=b").is_err());
        assert!(read("").is_err());
    }
}
