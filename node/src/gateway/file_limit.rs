//! The limit of open files: every connection is one, and common defaults are far too small.
//!
//! Raised once when the program starts. What cannot be raised is reported and is no reason to
//! stop: the server works with fewer connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// Raises the soft limit of open files to the hard limit and logs the result.
pub(crate) fn raise() {
    let before = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    let limit = |value: Option<u64>| value.map_or_else(|| "unlimited".into(), |n| n.to_string());
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => info!(
            open_files = limit(getrlimit(Resource::Nofile).current),
            before = limit(before.current),
            "limit of open files set to the hard limit"
        ),
        Err(error) => warn!(
            open_files = limit(before.current),
            %error,
            "limit of open files stays as it is: each connection needs one file"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_reaches_the_hard_limit() {
        raise();
        let limits = getrlimit(Resource::Nofile);
        assert_eq!(limits.current, limits.maximum);
    }
}
