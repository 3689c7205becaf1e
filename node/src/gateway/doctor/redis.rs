//! Redis as a node needs it: reachable, new enough, the primary, with all rights, and
//! with memory and buffers that lose nothing.
//!
//! The connection and the rights are checked by the code that a node runs at startup. The
//! rest needs `INFO` and `CONFIG GET`, which the user of a node need not have, so a
//! refusal is a warning.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roomcast::{
    NodeId, RedisBus, RedisConfig, RedisUrl, StartError,
    emitter::{
        ConnectError, Dialect,
        redis::{Connection, Endpoint, Purpose, Reply as _},
    },
};

use tokio::time::Instant;

use super::report::{Finding, Status};

/// From this difference on, times in logs and tokens are noticeably wrong.
const CLOCK_WARNING: Duration = Duration::from_secs(1);

/// The default leeway for the times of tokens. Beyond it, valid tokens are refused.
const CLOCK_FAILURE: Duration = Duration::from_secs(30);

/// A subscriber's buffer that a node of some 10,000 clients can fill while it is busy for
/// a moment. It is the default of Redis.
const MIN_BUFFER: u64 = 32 << 20;

/// More patterns than that make every publish in Redis noticeably slower.
/// Redis compares each published channel with every pattern.
const MANY_PATTERNS: usize = 50;

pub(super) async fn findings(config: &RedisConfig) -> Vec<Finding> {
    let connecting = Endpoint::new(config.url.clone());
    let begin = Instant::now();
    let mut connection = match connecting.connect(Purpose::Lookup, None).await {
        Ok(connection) => connection,
        Err(error) => return vec![unusable(&error, &config.url)],
    };
    let info = connection.info();
    let (server, version) = (info.server.clone(), info.version.clone());
    let took = begin.elapsed().as_millis();
    let mut findings = vec![
        ok(
            "connection",
            format!("{server} responds, logged in within {took} ms"),
        ),
        // Connecting has refused old versions and replicas.
        ok("version", version),
        ok("role", "a primary".to_owned()),
        clock(&mut connection).await,
        memory(&mut connection).await,
        buffers(&mut connection).await,
    ];
    let node = NodeId::new(&format!("doctor-{}", std::process::id()));
    // Under a separate name, so that the lease of a running node is not touched.
    match RedisBus::check(config, &node).await {
        Ok(rights) => {
            findings.push(allowed(rights.private_patterns));
            findings.push(patterns(&mut connection, config, rights.patterns).await);
        }
        Err(error) => findings.push(refused(&error, &config.url)),
    }
    findings
}

fn ok(check: &'static str, found: String) -> Finding {
    Finding::new("redis", check, Status::Ok, found)
}

fn warn(check: &'static str, found: impl Into<String>) -> Finding {
    Finding::new("redis", check, Status::Warn, found)
}

fn fail(check: &'static str, found: impl Into<String>) -> Finding {
    Finding::new("redis", check, Status::Fail, found)
}

/// The errors name the problem of the URL or the server, and often the remedy.
fn unusable(error: &ConnectError, url: &RedisUrl) -> Finding {
    let text = error.to_string();
    match error {
        ConnectError::TooOld { .. } => fail("version", text).remedy("upgrade Redis"),
        ConnectError::NotPrimary { .. } => fail("role", text)
            .remedy("name the primary in --redis, or let Sentinels find it (redis+sentinel://…)"),
        // A server without TLS waits for the rest of a command, so it does not refuse the handshake.
        ConnectError::TimedOut { .. } if url.to_string().starts_with("rediss") => {
            fail("connection", text).remedy(
                "check that Redis speaks TLS on this port; without TLS, the URL in --redis begins \
                 with redis:// instead of rediss://",
            )
        }
        ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. } => {
            fail("connection", text).remedy("check --redis, the firewall, and that Redis runs")
        }
        ConnectError::WrongPassword { .. } => {
            fail("connection", text).remedy("set the login in --redis: redis://user:password@host")
        }
        _ => fail("connection", text),
    }
}

fn allowed(private_patterns: bool) -> Finding {
    match private_patterns {
        true => ok("rights", "the user has all rights of a node".to_owned()),
        false => warn(
            "rights",
            "the user may not subscribe to patterns, so each socket needs a channel of its own",
        )
        .remedy("give the user all channels, &*"),
    }
}

fn refused(error: &StartError, url: &RedisUrl) -> Finding {
    match error {
        // Its text has the list of rights.
        StartError::Forbidden { .. } => fail("rights", error.to_string()),
        // A sharded dialect and an old server, or one server of a cluster.
        StartError::Connect(error) => unusable(error, url),
        _ => fail("rights", error.to_string()).remedy("wait until Redis accepts writes"),
    }
}

/// The user of a node need not have the right.
fn unknown(check: &'static str, error: &ConnectError, right: &str) -> Finding {
    warn(check, format!("unknown: {error}"))
        .remedy(format!("use a user with {right}, or check it by hand"))
}

async fn clock(connection: &mut Connection) -> Finding {
    let begin = SystemTime::now();
    let reply = match connection.command(&["TIME"]).await {
        Ok(reply) => reply,
        Err(error) => return unknown("clock", &error, "+time"),
    };
    let took = begin.elapsed().unwrap_or_default();
    let parts = reply.list().unwrap_or_default();
    let part = |index: usize| u64::try_from(parts.get(index)?.integer()?).ok();
    let (Some(seconds), Some(micros)) = (part(0), part(1)) else {
        return warn("clock", "TIME has an unexpected reply");
    };
    let theirs = Duration::from_secs(seconds) + Duration::from_micros(micros);
    let ours = begin.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Redis read its clock at some moment between the request and the reply.
    let apart = match theirs < ours {
        true => ours - theirs,
        false => theirs.saturating_sub(ours + took),
    };
    judged_clock(apart)
}

/// Judged apart from the command, so that tests need no Redis; so are the others.
fn judged_clock(apart: Duration) -> Finding {
    let found = format!("this host and Redis differ by {} ms", apart.as_millis());
    let remedy = "synchronise both by NTP, because tokens and signatures carry times";
    match apart {
        _ if apart > CLOCK_FAILURE => fail("clock", found).remedy(remedy),
        _ if apart > CLOCK_WARNING => warn("clock", found).remedy(remedy),
        _ => ok("clock", found),
    }
}

async fn memory(connection: &mut Connection) -> Finding {
    let reply = match connection.command(&["INFO", "memory"]).await {
        Ok(reply) => reply,
        Err(error) => return unknown("memory", &error, "+info"),
    };
    judged_memory(reply.text().unwrap_or_default())
}

/// Leases have no expiry, so only policies for all keys evict them.
fn judged_memory(info: &str) -> Finding {
    let field = |name: &str| {
        let mut lines = info.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(str::trim)
    };
    let (Some(most), Some(policy)) = (field("maxmemory"), field("maxmemory_policy")) else {
        return warn("memory", "INFO does not show maxmemory").remedy("check it by hand");
    };
    let found = format!("maxmemory {most}, maxmemory-policy {policy}");
    let remedy = "set maxmemory-policy noeviction, because Redis may evict the leases of nodes, \
                  which then count as gone";
    match (policy.starts_with("allkeys"), most) {
        (true, "0") => {
            warn("memory", format!("{found}: evicts once there is a limit")).remedy(remedy)
        }
        (true, _) => fail("memory", found).remedy(remedy),
        (false, _) => ok("memory", found),
    }
}

async fn buffers(connection: &mut Connection) -> Finding {
    let name = "client-output-buffer-limit";
    let reply = match connection.command(&["CONFIG", "GET", name]).await {
        Ok(reply) => reply,
        Err(error) => return unknown("buffers", &error, "+config|get"),
    };
    let pairs = reply.pairs().unwrap_or_default();
    let value = pairs.first().and_then(|(_, value)| value.text());
    judged_buffers(value.unwrap_or_default())
}

/// The value has a class, a hard and a soft limit in bytes, and seconds, for each class.
fn judged_buffers(value: &str) -> Finding {
    let words: Vec<_> = value.split_whitespace().collect();
    let of_class = words
        .chunks(4)
        .find(|class| class.first() == Some(&"pubsub"));
    let number = |index: usize| of_class?.get(index)?.parse::<u64>().ok();
    let (Some(hard), Some(soft), Some(seconds)) = (number(1), number(2), number(3)) else {
        return warn("buffers", "CONFIG does not show client-output-buffer-limit")
            .remedy("check it by hand");
    };
    let found = format!("client-output-buffer-limit pubsub {hard} {soft} {seconds}");
    match hard != 0 && hard < MIN_BUFFER {
        true => warn("buffers", found).remedy(
            "set it to `pubsub 256mb 64mb 60`, so that a node that is busy for a moment is not cut off",
        ),
        false => ok("buffers", found),
    }
}

/// Patterns of nodes and of others: each slows every publish in Redis down.
async fn patterns(connection: &mut Connection, config: &RedisConfig, patterns: usize) -> Finding {
    let channels = config.channels();
    let count = match config.dialect {
        Dialect::Classic | Dialect::Streams => "NUMSUB",
        Dialect::Sharded(_) => "SHARDNUMSUB",
    };
    let request = channels.request("/");
    let reply = connection.command(&["PUBSUB", count, &request]).await;
    let pairs = reply.as_ref().ok().and_then(|reply| reply.pairs());
    let nodes = pairs.and_then(|pairs| pairs.first()?.1.integer());
    judged_patterns(patterns, nodes)
}

fn judged_patterns(patterns: usize, nodes: Option<i64>) -> Finding {
    let serving = nodes.map_or_else(|| "unknown".to_owned(), |nodes| nodes.to_string());
    let found = format!("{patterns} subscribed; nodes that serve `/`: {serving}");
    let remedy = "find the connections with `redis-cli CLIENT LIST` (psub above 0) and end those of \
                  programs that are gone, because every publish is compared with each pattern";
    match (patterns, nodes) {
        (1.., Some(0)) => warn("patterns", found).remedy(remedy),
        _ if patterns > MANY_PATTERNS => warn("patterns", found).remedy(remedy),
        _ => ok("patterns", found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_policy_for_all_keys_can_evict_leases() {
        let info = |most: &str, policy: &str| {
            let info = format!("# Memory\r\nmaxmemory:{most}\r\nmaxmemory_policy:{policy}\r\n");
            judged_memory(&info).status
        };
        assert_eq!(info("1000", "allkeys-lru"), Status::Fail);
        assert_eq!(info("0", "allkeys-lfu"), Status::Warn);
        assert_eq!(info("1000", "volatile-lru"), Status::Ok);
        assert_eq!(info("0", "noeviction"), Status::Ok);
        assert_eq!(judged_memory("").status, Status::Warn);
    }

    #[test]
    fn a_small_buffer_of_subscribers_is_a_warning() {
        let judged = |pubsub: &str| {
            let others = "normal 0 0 0 slave 268435456 67108864 60";
            judged_buffers(&format!("{others} pubsub {pubsub}")).status
        };
        assert_eq!(judged("33554432 8388608 60"), Status::Ok);
        assert_eq!(judged("1048576 0 0"), Status::Warn);
        assert_eq!(judged("0 0 0"), Status::Ok);
        assert_eq!(judged("many"), Status::Warn);
    }

    #[test]
    fn clocks_may_differ_by_less_than_the_leeway_of_tokens() {
        let judged = |millis| judged_clock(Duration::from_millis(millis)).status;
        assert_eq!(judged(900), Status::Ok);
        assert_eq!(judged(1_100), Status::Warn);
        assert_eq!(judged(30_100), Status::Fail);
    }

    #[test]
    fn patterns_without_nodes_and_too_many_patterns_are_warnings() {
        assert_eq!(judged_patterns(0, Some(0)).status, Status::Ok);
        assert_eq!(judged_patterns(3, Some(2)).status, Status::Ok);
        assert_eq!(judged_patterns(3, Some(0)).status, Status::Warn);
        assert_eq!(judged_patterns(51, Some(20)).status, Status::Warn);
        assert_eq!(judged_patterns(3, None).status, Status::Ok);
    }
}
