//! Checks in a node's metrics whether the node on this machine receives the addresses of clients.
//! The round trips through the balancer, which come before, are among the requests that it has
//! seen.

use std::net::SocketAddr;

use super::{
    super::drain,
    report::{Finding, Status},
};

const IGNORED: &str = "roomcast_forwarded_ignored_total";

/// Returns none if no node listens there, because a balancer can also be checked from
/// another machine.
pub(super) fn finding(internal: SocketAddr) -> Option<Finding> {
    let response = drain::exchange(internal, "GET /metrics", "").ok()?;
    judge(&response)
}

fn judge(metrics: &str) -> Option<Finding> {
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(IGNORED)?.strip_prefix(' '));
    let finding = |status, found| Finding::new("url", "addresses", status, found);
    Some(match value?.trim().parse::<u64>().ok()? {
        0 => finding(
            Status::Ok,
            "no request names a client's address that the node ignores".to_owned(),
        ),
        ignored => finding(
            Status::Warn,
            format!(
                "the node has ignored the client's address in {ignored} requests, because they do \
                 not come from a trusted proxy"
            ),
        )
        .remedy(
            "if they come from the balancer, name its address with --trusted-proxies, or all \
             clients have it; the node's log names the sender",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_ignored_are_a_warning() {
        let judged = |line: &str| judge(&format!("HTTP/1.1 200 OK\r\n\r\n# TYPE x\n{line}\n"));
        let status = |line| judged(line).map(|finding| finding.status);
        assert_eq!(
            status("roomcast_forwarded_ignored_total 0"),
            Some(Status::Ok)
        );
        assert_eq!(
            status("roomcast_forwarded_ignored_total 3"),
            Some(Status::Warn)
        );
        assert_eq!(status("another 3"), None);
    }
}
