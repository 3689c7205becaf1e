//! The limits of this machine: open files, waiting connections, local ports.
//!
//! They are read where the kernel shows them to this process. A service may have a lower limit of
//! open files than the shell, so the text states whose limit it is.

use std::{fs, ops::RangeInclusive, path::Path};

use rustix::process::{Resource, getrlimit};

use super::report::{Finding, Status};
use crate::gateway::config::Config;

/// Maximum number of descriptors of a node in addition to those of clients.
const OWN_FILES: u64 = 256;

/// Fewer files than that are a common default (1024, 4096) and not a decision.
const MIN_FILES: u64 = 16_384;

/// The kernel's default since Linux 5.4. Before it was 128, which overflows when a few
/// hundred clients connect at once.
const MIN_BACKLOG: u64 = 4096;

/// The kernel's default is 28,232. Connections to backends and Redis, and those of a
/// balancer on the same machine, need one each.
const MIN_PORTS: u64 = 20_000;

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let limits = &config.limits;
    let most = limits.max_connections.max(limits.max_sockets);
    let listen = &config.listen;
    let own = [listen.listen.port(), listen.internal_listen.port()];
    let settings = Path::new("/proc/sys/net");
    vec![
        descriptors(getrlimit(Resource::Nofile).maximum, most),
        backlog(settings),
        ports(settings, &own),
    ]
}

/// A node raises its soft limit to the hard one, so only the latter counts.
fn descriptors(hard: Option<u64>, most: usize) -> Finding {
    let finding = |status, found| Finding::new("host", "descriptors", status, found);
    let Some(hard) = hard else {
        return finding(Status::Ok, "no limit of open files".to_owned());
    };
    let needed = u64::try_from(most).map_or(u64::MAX, |most| most.saturating_add(OWN_FILES));
    let found = format!("a process of this user may open {hard} files (hard limit)");
    let remedy = "raise it: LimitNOFILE= in systemd, ulimits in compose, `ulimit -Hn` in a shell";
    match hard {
        _ if hard >= needed => finding(Status::Ok, found),
        _ if hard < OWN_FILES * 4 => finding(Status::Fail, found).remedy(remedy),
        _ if hard < MIN_FILES => finding(Status::Warn, found).remedy(remedy),
        _ => finding(
            Status::Ok,
            format!("{found}, below --max-connections; the node refuses clients beyond it"),
        ),
    }
}

fn backlog(settings: &Path) -> Finding {
    let finding = |status, found| Finding::new("host", "backlog", status, found);
    let name = "core/somaxconn";
    let Some(most) = read(settings, name).and_then(|text| text.parse::<u64>().ok()) else {
        return unreadable("backlog", settings, name);
    };
    let found = format!("{most} connections may wait to be accepted (net.core.somaxconn)");
    match most < MIN_BACKLOG {
        true => finding(Status::Warn, found).remedy(format!(
            "set net.core.somaxconn to {MIN_BACKLOG} or more by sysctl, because clients reconnect all at once"
        )),
        false => finding(Status::Ok, found),
    }
}

fn ports(settings: &Path, own: &[u16]) -> Finding {
    let finding = |status, found| Finding::new("host", "ports", status, found);
    let name = "ipv4/ip_local_port_range";
    let Some(range) = read(settings, name).as_deref().and_then(range) else {
        return unreadable("ports", settings, name);
    };
    let (first, last) = (*range.start(), *range.end());
    let found = format!("local ports are {first} to {last} (net.ipv4.ip_local_port_range)");
    let reserved = read(settings, "ipv4/ip_local_reserved_ports").unwrap_or_default();
    let is_at_risk = |port: &&u16| range.contains(*port) && !is_reserved(&reserved, **port);
    if let Some(port) = own.iter().find(is_at_risk) {
        return finding(
            Status::Warn,
            format!("{found}, and the node listens on {port}, which another connection may take"),
        )
        .remedy(format!(
            "add {port} to net.ipv4.ip_local_reserved_ports by sysctl, or listen outside of the range"
        ));
    }
    match u64::from(last - first) + 1 < MIN_PORTS {
        true => finding(Status::Warn, found)
            .remedy("widen the range by sysctl, because each outgoing connection needs a port"),
        false => finding(Status::Ok, found),
    }
}

fn unreadable(check: &'static str, settings: &Path, name: &str) -> Finding {
    let path = settings.join(name);
    let found = format!("{} cannot be read", path.display());
    Finding::new("host", check, Status::Warn, found).remedy("check it by hand")
}

fn read(settings: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(settings.join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(char::is_whitespace)?;
    let (first, last) = (first.parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some(first..=last)
}

/// Whether a list such as `3000,8000-8100` contains the port.
fn is_reserved(list: &str, port: u16) -> bool {
    list.split(',').any(|item| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let bounds = (first.trim().parse(), last.trim().parse());
        matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_hard_limit_is_a_warning_and_a_tiny_one_a_failure() {
        assert_eq!(descriptors(None, 100).status, Status::Ok);
        assert_eq!(descriptors(Some(400), 100).status, Status::Ok);
        assert_eq!(descriptors(Some(1_000_000), usize::MAX).status, Status::Ok);
        assert_eq!(descriptors(Some(4096), 100_000).status, Status::Warn);
        let tiny = descriptors(Some(256), 100_000);
        assert_eq!(tiny.status, Status::Fail);
        assert!(tiny.remedy.unwrap().contains("LimitNOFILE"));
    }

    #[test]
    fn the_limits_of_the_kernel_are_judged_by_their_files() {
        let name = format!("roomcast-doctor-{}", std::process::id());
        let settings = std::env::temp_dir().join(name);
        for folder in ["core", "ipv4"] {
            fs::create_dir_all(settings.join(folder)).unwrap();
        }
        let set = |name: &str, text: &str| fs::write(settings.join(name), text).unwrap();
        assert_eq!(backlog(&settings).status, Status::Warn);
        for (text, status) in [("128\n", Status::Warn), ("4096\n", Status::Ok)] {
            set("core/somaxconn", text);
            assert_eq!(backlog(&settings).status, status);
        }
        assert_eq!(ports(&settings, &[3000]).status, Status::Warn);
        set("ipv4/ip_local_port_range", "32768\t60999\n");
        assert_eq!(ports(&settings, &[3000]).status, Status::Ok);
        let at_risk = ports(&settings, &[3000, 40_000]);
        assert!(at_risk.found.contains("listens on 40000"), "{at_risk:?}");
        set("ipv4/ip_local_reserved_ports", "3000,39999-40001\n");
        assert_eq!(ports(&settings, &[40_000]).status, Status::Ok);
        set("ipv4/ip_local_port_range", "50000\t50999\n");
        assert_eq!(ports(&settings, &[3000]).status, Status::Warn);
        fs::remove_dir_all(settings).unwrap();
    }
}
