//! The command line of all peers.

use std::net::SocketAddr;

/// Options of a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Listening address; port 0 chooses a free port.
    pub listen: SocketAddr,
    /// URL of the cluster's Redis.
    pub redis: Option<String>,
    /// Number of worker threads, where applicable.
    pub workers: usize,
    /// Whether the floor sends once per connection and turn.
    pub coalesce: bool,
}

impl Options {
    /// The options of this process. Ends it with status 2 if they are wrong.
    pub fn of_process() -> Self {
        Self::parse(std::env::args().skip(1)).unwrap_or_else(|reason| {
            eprintln!("{reason}\noptions: --listen HOST:PORT --redis URL --workers N --coalesce");
            std::process::exit(2)
        })
    }

    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            redis: None,
            workers: 1,
            coalesce: false,
        };
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--listen" => options.listen = parsed(&name, &value()?)?,
                "--redis" => options.redis = Some(value()?),
                "--workers" => options.workers = parsed(&name, &value()?)?,
                "--coalesce" => options.coalesce = true,
                _ => return Err(format!("unknown: {name}")),
            }
        }
        Ok(options)
    }
}

/// Prints the address in the line that the race waits for.
pub fn announce(address: SocketAddr) {
    println!("listening address={address}");
}

fn parsed<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{name} does not take {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read_and_wrong_ones_refused() {
        let options = parse("--listen 127.0.0.2:80 --redis redis://a --workers 3 --coalesce");
        let options = options.unwrap();
        assert_eq!(options.listen, SocketAddr::from(([127, 0, 0, 2], 80)));
        assert_eq!(options.redis.as_deref(), Some("redis://a"));
        assert!(options.workers == 3 && options.coalesce);
        assert_eq!(parse("").unwrap().workers, 1);
        for line in ["--listen", "--listen x", "--workers many", "--fast"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
