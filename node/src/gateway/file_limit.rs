//! The limit of open files. Every connection needs one, and common defaults are far too small.
//!
//! It is raised once, at startup. A limit that cannot be raised is logged; the server
//! then works with fewer connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// Raises the soft limit of open files to the hard limit, unless it is as high already, and logs the
/// result.
pub(crate) fn raise() {
    let before = getrlimit(Resource::Nofile);
    if before.current == before.maximum {
        return;
    }
    let wanted = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    let limit = |value: Option<u64>| value.map_or_else(|| "unlimited".into(), |n| n.to_string());
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => info!(
            open_files = limit(getrlimit(Resource::Nofile).current),
            before = limit(before.current),
            "raised the limit of open files to the hard limit"
        ),
        Err(error) => warn!(
            open_files = limit(before.current),
            %error,
            "could not raise the limit of open files, and each connection needs one"
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
