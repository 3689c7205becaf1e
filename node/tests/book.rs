//! The book states what the project does: its tables and versions are those of the program and the
//! library. `docs/check` compares its code.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Instant,
};

use process::{DEADLINE, Program, client::Client, http, roomcast, serve};
use roomcast::{CloseReason, Limit, Limits};

const PROGRAM: &str = include_str!("../../docs/src/program.md");
const LIMITS: &str = include_str!("../../docs/src/limits.md");
const METRICS: &str = include_str!("../../docs/src/metrics.md");
const TRACES: &str = include_str!("../../docs/src/traces.md");
const CONNECTIONS: &str = include_str!("../../docs/src/connections.md");
const COMPATIBILITY: &str = include_str!("../../docs/src/compatibility.md");

#[test]
fn its_options_are_those_of_the_program() {
    // The page of traces has the options of a build with the feature `otlp`.
    let options = options();
    let (of_traces, options): (Vec<_>, Vec<_>) = options
        .split_inclusive('\n')
        .partition(|row| row.starts_with("| `--otlp-"));
    let options = options.concat();
    assert!(
        PROGRAM.contains(&options),
        "take the output of `roomcast options`:\n{options}"
    );
    assert_eq!(of_traces.is_empty(), !cfg!(feature = "otlp"));
    for row in of_traces {
        let cells: Vec<_> = row.split(" | ").collect();
        let (flag, default) = (cells[0], cells[2]);
        assert!(TRACES.contains(&format!("{flag} | {default} |")), "{row}");
    }
}

#[test]
fn its_limits_are_those_of_the_library_with_their_flags_and_defaults() {
    let options = options();
    let mut fields = BTreeSet::from(["max_payload".to_owned()]);
    // `Limits { json_depth: 400, … }`
    let defaults = format!("{:?}", Limits::default());
    let inner = defaults
        .trim_start_matches("Limits {")
        .trim_end_matches('}');
    fields.extend(
        inner
            .split(',')
            .map(|field| field.split(':').next().unwrap().trim().to_owned()),
    );
    let rows = rows(LIMITS);
    assert_eq!(rows.keys().cloned().collect::<BTreeSet<_>>(), fields);
    for cells in rows.values() {
        let (flag, default) = (&cells[1], &cells[2]);
        let row = options
            .lines()
            .find(|row| row.starts_with(&format!("| {flag} |")));
        assert!(
            row.unwrap().contains(&format!(" | {default} | ")),
            "{flag}: {default}"
        );
    }
}

#[test]
fn its_metrics_are_those_of_a_server_that_has_seen_everything() {
    let metrics = metrics_of_a_used_server();
    let names = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let mut names: BTreeSet<_> = names
        .map(|name| name.split(' ').next().unwrap().to_owned())
        .collect();
    names.extend(metrics_of_the_bus());
    names.extend(metrics_of_the_hooks());
    names.extend(metrics_of_the_api());
    names.extend(metrics_of_the_admin_page());
    names.extend(metrics_of_tls());
    names.extend(metrics_of_the_pakyow_door());
    names.extend(metrics_of_presence());
    names.extend(metrics_of_the_relay());
    names.extend(metrics_of_the_doors());
    let told: BTreeSet<_> = rows(METRICS).into_keys().collect();
    assert_eq!(told, names);

    let limits = metrics
        .lines()
        .filter_map(|line| line.split_once("limit_reached_total{limit="));
    let limits: BTreeSet<_> = limits.map(|(_, limit)| quoted(limit, '"')).collect();
    let told: BTreeSet<_> = rows(LIMITS)
        .values()
        .map(|row| quoted(&row[4], '`'))
        .collect();
    assert_eq!(told, limits);
}

#[test]
fn it_says_of_every_end_of_a_connection_whether_clients_reconnect() {
    let reasons = [
        CloseReason::TransportClose,
        CloseReason::TransportError,
        CloseReason::PingTimeout,
        CloseReason::ConnectTimeout,
        CloseReason::ParseError {
            kind: "",
            code: None,
        },
        CloseReason::OverlappingRequests,
        CloseReason::ServerDisconnect,
        CloseReason::ServerShutdown,
    ];
    let mut told = rows(CONNECTIONS);
    for reason in reasons {
        let row = told.remove(reason.label()).unwrap();
        assert_eq!(
            row[2].starts_with("yes"),
            reason.clients_reconnect(),
            "{}",
            row[0]
        );
    }
    let rest: Vec<_> = told.into_values().collect();
    assert!(rest.len() == 1 && rest[0][0].contains("limit"), "{rest:?}");
    assert!(CloseReason::LimitReached(Limit::Outbox).clients_reconnect());
}

#[test]
fn its_clients_have_the_versions_that_are_tested() {
    let package: serde_json::Value =
        serde_json::from_str(include_str!("clients/package.json")).unwrap();
    let python = include_str!("clients/requirements.txt").lines();
    let python = python.filter_map(|line| line.strip_prefix("python-socketio=="));
    let javascript = [
        "socket.io-client",
        "socket.io-client-2",
        "socket.io-client-3",
    ]
    .map(|name| package["devDependencies"][name].as_str().unwrap());
    let parser = package["devDependencies"]["socket.io-msgpack-parser"].as_str();
    for version in javascript.into_iter().chain(parser).chain(python) {
        let version = version.rsplit('@').next().unwrap();
        assert!(COMPATIBILITY.contains(version), "{version}");
    }
}

/// The first table of a page: its rows by their first cell, which loses its backquotes.
fn rows(page: &str) -> BTreeMap<String, Vec<String>> {
    let table = page
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .skip(2);
    let row = |line: &str| {
        let cells = line
            .trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().to_owned());
        let cells: Vec<_> = cells.collect();
        let name = match cells[0].starts_with('`') {
            true => quoted(&cells[0], '`'),
            false => cells[0].clone(),
        };
        (name, cells)
    };
    table
        .take_while(|line| line.starts_with('|'))
        .map(row)
        .collect()
}

/// What stands between the first two quotes.
fn quoted(text: &str, quote: char) -> String {
    text.split(quote).nth(1).unwrap().to_owned()
}

fn options() -> String {
    Program::start(roomcast().arg("options")).end().1
}

/// The program has none of them without Redis.
fn metrics_of_the_bus() -> impl Iterator<Item = String> {
    let source = include_str!("../../adapter/src/redis_bus/metrics.rs");
    names_in(source, "roomcast_bus_")
}

/// The program has none of them without hooks.
fn metrics_of_the_hooks() -> impl Iterator<Item = String> {
    let source = include_str!("../src/gateway/hooks/metrics.rs");
    names_in(source, "roomcast_hook_")
}

/// The program has none of them without keys of the API.
fn metrics_of_the_api() -> impl Iterator<Item = String> {
    let source = include_str!("../src/gateway/api/metrics.rs");
    names_in(source, "roomcast_api_")
}

/// The program has none of them without the door.
fn metrics_of_the_pakyow_door() -> impl Iterator<Item = String> {
    let source = include_str!("../src/gateway/doors/pakyow/mod.rs");
    names_in(source, "roomcast_pakyow_")
}

/// The program has none of them without certificates.
fn metrics_of_tls() -> impl Iterator<Item = String> {
    names_in(include_str!("../src/gateway/tls.rs"), "roomcast_tls_")
}

/// The program has none of them where no namespace has presence.
fn metrics_of_presence() -> impl Iterator<Item = String> {
    let source = include_str!("../src/gateway/presence/metrics.rs");
    names_in(source, "roomcast_presence_")
}

/// The program has none of them without a cluster key.
fn metrics_of_the_relay() -> impl Iterator<Item = String> {
    let source = include_str!("../src/gateway/relay/metrics.rs");
    names_in(source, "roomcast_relay_")
}

/// They appear with the first request to a door.
fn metrics_of_the_doors() -> impl Iterator<Item = String> {
    let source = include_str!("../src/gateway/doors/metrics.rs");
    names_in(source, "roomcast_door_")
}

/// Some appear with the first request that is refused.
fn metrics_of_the_admin_page() -> impl Iterator<Item = String> {
    let source = include_str!("../src/gateway/admin/metrics.rs");
    names_in(source, "roomcast_admin_")
}

fn names_in(source: &str, prefix: &str) -> impl Iterator<Item = String> {
    let literals = source.split('"').skip(1).step_by(2);
    let names = literals.filter(move |literal| literal.starts_with(prefix));
    names.map(str::to_owned)
}

/// Metrics with labels appear with their first value, so each gets one.
fn metrics_of_a_used_server() -> String {
    let folder = std::env::temp_dir().join(format!("roomcast-book-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let keys = folder.join("keys.json");
    // The public key of RFC 8037, appendix A.2.
    let key = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    fs::write(&keys, key).unwrap();
    let config = folder.join("roomcast.toml");
    let sections = format!(
        "[namespaces.\"/\"]\naccess = \"open\"\n[namespaces.\"/members\"]\naccess = \"jwt\"\n\
         [jwt.jwks]\nfile = {keys:?}\nalgorithms = [\"EdDSA\"]\n"
    );
    fs::write(&config, sections).unwrap();
    let mut command = roomcast();
    command.args(["serve", "--access=open", "--config"]);
    let (_program, address, internal) = serve(command.arg(&config));
    assert_eq!(
        http(&address, "GET /socket.io/?transport=pigeon", "").0,
        400
    );
    let mut client = Client::connect(&address);
    client.send("40/members,");
    client.send("40/nowhere,");
    client.send("nonsense");
    let refusals = client.rest();
    // Whether a token is valid is decided a little later.
    assert!(
        refusals
            .iter()
            .any(|refusal| refusal.starts_with("44/nowhere,")),
        "{refusals:?}"
    );
    let start = Instant::now();
    loop {
        let (_, metrics) = http(&internal, "GET /metrics", "");
        // Counted when the connection is gone, which the client may see a little earlier.
        if metrics.contains("roomcast_connections_closed_total{") {
            return metrics;
        }
        assert!(start.elapsed() < DEADLINE, "never closed");
    }
}
