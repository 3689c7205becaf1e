//! The program `roomcast` end to end: a real process, its options, its ports, its signals and its
//! exit status.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{
    io::{Read, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    process::Stdio,
    sync::mpsc::channel,
    time::Instant,
};

use process::{
    ANY_PORT, DEADLINE, Program, Temporary, client::Client, field, forward, http, roomcast,
    roomcast_within,
};
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn a_signal_closes_the_transports_of_all_clients_and_ends_it_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let (program, address, _) = serve(&[]);
        let clients = [Client::connect(&address), Client::connect(&address)];
        program.signal(signal);
        // No packet `41`: a client that is disconnected from its namespace does not come back.
        for client in clients {
            assert_eq!(client.rest(), [""; 0]);
        }
        let said = ended(program, 0);
        assert!(said.contains("stopped"), "{said}");
    }
}

#[test]
fn it_is_alive_but_not_ready_while_it_drains_and_a_second_signal_ends_that() {
    let (mut program, address, internal) = serve(&["--drain-timeout=1h", "--body-timeout=1h"]);
    assert_eq!(http(&internal, "GET /readyz", ""), (200, "ready\n".into()));
    let _held = unfinished_request(&address);
    program.signal(Signal::TERM);
    program.line_with("draining");
    wait_until(|| http(&internal, "GET /readyz", "") == (503, "draining\n".into()));
    assert_eq!(http(&internal, "GET /livez", ""), (200, "alive\n".into()));
    assert_eq!(http(&internal, "GET /metrics", "").0, 200);
    // Before that, the signal would cut the drain short, and not the close that follows it.
    program.line_with("closing all connections evenly");
    program.signal(Signal::TERM);
    let said = ended(program, 1);
    assert!(
        said.contains("a further signal cut the stop short"),
        "{said}"
    );
}

#[test]
fn drain_ends_a_node_gracefully_and_the_signal_that_follows_does_not_cut_it_short() {
    let (mut program, address, internal) = serve(&["--drain-timeout=1h", "--body-timeout=1h"]);
    // Such as a page in a browser of this machine.
    assert_eq!(http(&internal, "POST /drain", "").0, 403);
    assert_eq!(http(&internal, "GET /readyz", "").0, 200);
    let client = Client::connect(&address);
    let held = unfinished_request(&address);
    let line = ["drain", "--internal-listen", &internal];
    for _ in 0..2 {
        let (status, said) = Program::start(roomcast().args(line)).end();
        assert_eq!(status, Some(0), "{said}");
    }
    program.line_with("draining");
    assert_eq!(client.rest(), [""; 0]);
    program.signal(Signal::TERM);
    program.line_with("draining already");
    drop(held);
    let (status, said) = program.end();
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = Program::start(roomcast().args(line)).end();
    let problem = format!("no node responds at {internal}: ");
    assert!(status == Some(1) && said.contains(&problem), "{said}");
}

#[test]
fn a_drain_ends_readiness_first_and_then_closes_the_connections_evenly() {
    let slow = [
        "--drain-grace=1ms",
        "--drain-over=12h",
        "--drain-timeout=24h",
    ];
    let (mut program, address, _) = serve(&slow);
    let clients = [Client::connect(&address), Client::connect(&address)];
    program.signal(Signal::TERM);
    let line = program.line_with("closing all connections evenly");
    assert_eq!(field(&line, "connections="), "2");
    for client in clients {
        assert_eq!(client.rest(), [""; 0]);
    }
    ended(program, 0);
}

#[test]
fn a_second_signal_closes_what_a_drain_has_left_at_once() {
    let slow = ["--drain-grace=12h", "--drain-timeout=24h"];
    let (mut program, address, internal) = serve(&slow);
    let client = Client::connect(&address);
    program.signal(Signal::TERM);
    program.line_with("draining");
    wait_until(|| http(&internal, "GET /readyz", "") == (503, "draining\n".into()));
    // A balancer that has not noticed yet sends clients to a node that serves them.
    let late = Client::connect(&address);
    program.signal(Signal::TERM);
    program.line_with("closing the remaining connections at once");
    for client in [client, late] {
        assert_eq!(client.rest(), [""; 0]);
    }
    ended(program, 0);
}

#[test]
fn a_drain_that_would_not_end_in_time_is_a_wrong_option() {
    let said = says(2, &["serve", "--drain-grace=5s", "--drain-over=25s"]);
    for part in [
        "--drain-timeout is 30s",
        "--drain-grace with 5s",
        "--drain-over with 25s",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_polling_client_that_does_not_poll_does_not_spoil_the_stop() {
    let (program, address, _) = serve(&[]);
    polling_session(&address);
    program.signal(Signal::TERM);
    ended(program, 0);
}

#[test]
fn a_polling_client_that_has_closed_does_not_hold_up_the_stop() {
    // Without a stop it would have longer than that to fetch its last packets.
    let (program, address, _) = serve(&["--drain-timeout=15s"]);
    let session = polling_session(&address);
    assert_eq!(http(&address, &format!("POST {session}"), "1").0, 200);
    program.signal(Signal::TERM);
    ended(program, 0);
}

#[test]
fn a_drain_that_takes_too_long_is_cut_off_and_said() {
    let (program, address, _) = serve(&["--drain-timeout=1ms", "--body-timeout=1h"]);
    let _held = unfinished_request(&address);
    program.signal(Signal::TERM);
    let said = ended(program, 1);
    assert!(
        said.contains("--drain-timeout or ROOMCAST_DRAIN_TIMEOUT"),
        "{said}"
    );
}

#[test]
fn a_port_in_use_ends_it_with_the_way_to_choose_another() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let settings = [
        ("--listen", "--internal-listen", "ROOMCAST_LISTEN"),
        ("--internal-listen", "--listen", "ROOMCAST_INTERNAL_LISTEN"),
    ];
    for (flag, other, variable) in settings {
        let said = says(1, &["serve", flag, &taken, other, "127.0.0.1:0"]);
        let way = format!("{taken} is in use by another program: choose another port with {flag}");
        assert!(said.contains(&way) && said.contains(variable), "{said}");
    }
}

#[test]
fn a_wrong_value_ends_it_with_the_name_of_its_flag() {
    let wrong = [
        ("--ping-interval", "25"),
        ("--max-outbox", "much"),
        ("--workers", "0"),
        ("--transports", "pigeon"),
        ("--listen", "3000"),
    ];
    for (flag, value) in wrong {
        let said = says(2, &["serve", flag, value]);
        assert!(said.contains(flag) && said.contains(value), "{said}");
    }
}

#[test]
fn options_that_do_not_fit_together_are_wrong_options() {
    let said = says(2, &["serve", "--max-inbox=1kB", "--max-payload=2kB"]);
    assert!(
        said.contains("--max-inbox") && said.contains("--max-payload"),
        "{said}"
    );
    for other in ["127.0.0.1:1", "0.0.0.0:1"] {
        let line = [
            "--listen=127.0.0.1:1",
            &format!("--internal-listen={other}"),
        ];
        for command in [&["config", "check"][..], &["serve"]] {
            let (status, said) = Program::start(roomcast().args(command).args(line)).end();
            assert_eq!(status, Some(2), "{command:?} binds one port twice: {said}");
            assert!(said.contains("each needs a separate port"), "{said}");
        }
    }
    let said = says(2, &["serve", "--cors-origin=*", "--cors-credentials"]);
    assert!(said.contains("list the origins"), "{said}");
    let said = says(2, &["serve", "--namespace=/chat,/news,/chat"]);
    assert!(
        said.contains("--namespace") && said.contains("/chat"),
        "{said}"
    );
}

#[test]
fn every_option_is_read_from_its_environment_variable() {
    let (_, table) = Program::start(roomcast().arg("options")).end();
    let rows = table.lines().filter(|line| line.starts_with("| `--"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<_> = row.split('`').collect();
        let (flag, variable) = (cells[1], cells[3]);
        // No option takes these characters, so whichever reads the variable complains.
        let (status, said) = Program::start(roomcast().arg("serve").env(variable, "?\u{7}")).end();
        assert_eq!(status, Some(2), "{variable}: {said}");
        assert!(
            said.contains(flag) && said.contains(variable),
            "{variable}: {said}"
        );
        count += 1;
    }
    assert!(count > 30, "{table}");
}

#[test]
fn a_variable_of_the_environment_that_no_option_reads_ends_it_with_the_nearest() {
    for command in [&["serve"][..], &["config", "check"]] {
        let output = roomcast()
            .args(command)
            .env("ROOMCAST_MAX_ROMS", "3")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("did you mean ROOMCAST_MAX_ROOMS?"), "{said}");
    }
}

/// A hook's secret, to which only the node's file refers, must not keep an operator from draining
/// the node or from emitting in the same environment.
#[test]
fn a_command_without_a_file_only_warns_of_a_variable_that_no_option_reads() {
    for command in [
        &["drain", "--internal-listen", "127.0.0.1:1"][..],
        &[
            "emit",
            "--redis",
            "redis://127.0.0.1:1",
            "--retry=0",
            "news",
        ],
        &["token", "key", "hook", "--folder", "/nonexistent"],
    ] {
        let output = roomcast()
            .args(command)
            .env("ROOMCAST_SECRET", "3")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("warning: "), "{said}");
        assert!(
            said.contains("ROOMCAST_SECRET belongs to no option"),
            "{said}"
        );
        // The command was run, and failed for its own reason.
        assert!(said.contains("\nerror: "), "{said}");
        assert_ne!(output.status.code(), Some(2), "{said}");
    }
}

#[test]
fn settings_of_the_environment_reach_the_server_and_its_log() {
    let settings = [
        ("ROOMCAST_LISTEN", "127.0.0.1:0"),
        ("ROOMCAST_INTERNAL_LISTEN", "127.0.0.1:0"),
        ("ROOMCAST_LOG_FORMAT", "json"),
        ("ROOMCAST_PATH", "/chat/"),
        ("ROOMCAST_PING_INTERVAL", "7s"),
        ("ROOMCAST_MAX_PAYLOAD", "5kB"),
        ("ROOMCAST_TRANSPORTS", "polling"),
    ];
    let mut program = Program::start(roomcast().arg("serve").envs(settings));
    let line: Value = serde_json::from_str(&program.line_with("listening")).unwrap();
    let address = line["address"].as_str().unwrap();
    let opening = opening(address, "/chat/?EIO=4&transport=polling");
    assert_eq!(opening["pingInterval"], 7_000);
    assert_eq!(opening["maxPayload"], 5_000);
    assert_eq!(opening["upgrades"], json!([]));
}

#[test]
fn limits_that_are_given_are_kept() {
    let (_program, address, internal) =
        serve(&["--max-connections=1", "--client-rooms", "--max-rooms=1"]);
    let mut client = Client::connect(&address);
    assert!(client.ask(&json!(["join", "a"]))[0]["error"].is_null());
    let refusal = client.ask(&json!(["join", "b"]));
    assert!(refusal[0]["error"].is_string(), "{refusal}");
    let request = "GET /socket.io/?EIO=4&transport=polling";
    assert_eq!(http(&address, request, "").0, 503);
    let (_, metrics) = http(&internal, "GET /metrics", "");
    for limit in ["rooms", "connections"] {
        let line = format!("roomcast_limit_reached_total{{limit=\"{limit}\"}} 1\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

/// The limit is lower than the number of connections that clients open, so without a reserve the
/// system would refuse descriptors to everybody, also to the internal port.
#[test]
fn with_few_descriptors_it_refuses_clients_with_503_and_its_internal_port_responds() {
    for descriptors in [64, 200] {
        let mut command = roomcast_within(descriptors);
        let (mut program, address, internal) =
            process::serve(command.args(["serve", "--access=open"]));
        let warning = program.line_with("the limit of open files leaves fewer connections");
        let sockets: usize = field(&warning, "sockets=").parse().unwrap();
        assert!((1..descriptors).contains(&sockets), "{warning}");
        assert_eq!(metric(&internal, "roomcast_socket_limit"), sockets);
        let request = "GET /socket.io/?EIO=4&transport=polling";
        assert_eq!(http(&address, request, "").0, 200);

        let held: Vec<_> = (0..descriptors + 30)
            .map(|_| TcpStream::connect(&address).unwrap())
            .collect();
        assert_eq!(http(&address, request, "").0, 503);
        for path in ["/livez", "/readyz"] {
            assert_eq!(http(&internal, &format!("GET {path}"), "").0, 200, "{path}");
        }
        let reached = metric(&internal, "roomcast_limit_reached_total{limit=\"sockets\"}");
        assert!(reached >= descriptors + 31 - sockets, "{reached}");

        drop(held);
        wait_until(|| http(&address, request, "").0 == 200);
        program.signal(Signal::TERM);
        let said = ended(program, 0);
        assert!(!said.contains("cannot accept"), "{said}");
    }
}

#[test]
fn without_a_setting_nobody_gets_in_and_the_error_says_how_to_let_somebody_in() {
    let mut program = Program::start(roomcast().arg("serve").args(ANY_PORT));
    let address = field(&program.line_with("listening"), "address=");
    let warning = program.line_with("nobody may connect to / yet");
    assert!(warning.contains("WARN"), "{warning}");
    let refusal = Client::connect_as(&address, &json!({})).err().unwrap();
    let text = refusal["message"].as_str().unwrap();
    for way in ["--access", "access in [namespaces.\"/\"]"] {
        assert!(text.contains(way) && warning.contains("--access"), "{text}");
    }
}

#[test]
fn a_file_opens_the_main_namespace_below_the_environment_and_the_flags() {
    let file = Temporary::new("[namespaces.\"/\"]\naccess = \"open\"\nclient_rooms = true\n");
    let (_program, address, _) = serve_file(&file);
    let mut client = Client::connect(&address);
    assert!(client.ask(&json!(["join", "tea"]))[0]["members"].is_array());

    let file =
        Temporary::new("max_payload = \"3kB\"\nping_interval = \"3s\"\nping_timeout = \"3s\"\n");
    let mut command = roomcast();
    command.args(["serve", "--config", file.path(), "--ping-interval=5s"]);
    command.env("ROOMCAST_PING_INTERVAL", "4s");
    command.env("ROOMCAST_PING_TIMEOUT", "4s");
    let (_program, address, _) = process::serve(&mut command);
    let opening = opening(&address, POLLING);
    assert_eq!(opening["maxPayload"], 3_000);
    assert_eq!(opening["pingInterval"], 5_000);
    assert_eq!(opening["pingTimeout"], 4_000);
}

#[test]
fn a_wrong_file_ends_it_with_file_line_key_and_the_nearest_key() {
    let file = Temporary::new("ping_interval = \"3s\"\nmax_roms = 3\n");
    let said = says(2, &["serve", "--config", file.path()]);
    let expected = format!(
        "{}:2: max_roms: unknown key; did you mean max_rooms?",
        file.path()
    );
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn config_show_states_origins_and_masks_secrets() {
    let file = Temporary::new(
        "redis = \"redis://:s3cret@localhost\"\nmax_rooms = 3\n[namespaces.\"/a\"]\naccess = \"open\"\n",
    );
    let mut command = roomcast();
    command.args([
        "config",
        "show",
        "--config",
        file.path(),
        "--namespace=/,/b",
    ]);
    let (status, said) = Program::start(command.env("ROOMCAST_WORKERS", "2")).end();
    assert_eq!(status, Some(0), "{said}");
    for line in [
        "redis = \"redis://…@localhost\" # file",
        "max_rooms = 3 # file",
        "workers = 2 # ROOMCAST_WORKERS",
        "namespace = [\"/\", \"/b\"] # --namespace",
        "ping_interval = \"25s\" # default",
        "[namespaces.\"/a\"]",
    ] {
        assert!(said.contains(&format!("{line}\n")), "{line}: {said}");
    }
    assert!(!said.contains("s3cret"), "{said}");
    // A masked URL is none, and everything else can be read back.
    let lines = said.split_inclusive('\n');
    let rest: String = lines.filter(|line| !line.starts_with("redis = ")).collect();
    let shown = Temporary::new(&rest);
    says(0, &["config", "check", "--config", shown.path()]);
}

#[test]
fn config_check_starts_nothing_and_finds_what_serve_would_refuse() {
    for (text, status) in [("max_inbox = \"1kB\"\n", 2), ("max_inbox = \"3MB\"\n", 0)] {
        let file = Temporary::new(text);
        let line = ["config", "check", "--config", file.path()];
        let (found, said) = Program::start(roomcast().args(line)).end();
        assert_eq!(found, Some(status), "{said}");
    }
}

#[test]
fn config_check_and_serve_refuse_the_same_sections_with_status_2() {
    let hook = |keys: &str| format!("[hooks.a]\nurl = \"http://127.0.0.1:1/\"\n{keys}\n");
    let open = |rest: &str| format!("access = \"open\"\n{rest}");
    let journal = |age: &str, recovery: &str| {
        open(&format!(
            "[namespaces.\"/a\".journal]\nage = \"{age}\"\n[namespaces.\"/a\".recovery]\n{recovery}\n"
        ))
    };
    let batch = open(&hook("batch = { size = 5000 }"));
    let cases = [
        (batch, ":4: hooks.a: `batch.size` is not from 1"),
        (
            open(&hook("namespaces = [\"/\", \"/typo\"]")),
            ":4: hooks.a: the namespace /typo in `namespaces` is not served",
        ),
        (
            open(&hook("namespaces = [\"nope\"]")),
            ":4: hooks.a: the namespace nope in `namespaces` does not begin with /",
        ),
        (open(&hook("concurrency = 0")), ":4: hooks.a: `concurrency`"),
        (open(&hook("on = []")), ":4: hooks.a: `on`"),
        (open(&hook("secret_file = \"/nowhere\"")), ":4: hooks.a: "),
        (open(&hook("secret_env = \"NOWHERE\"")), ":4: hooks.a: "),
        (
            open(&hook("secret_file = \"a\"\nsecret_env = \"A\"")),
            ":4: hooks.a: ",
        ),
        (
            open(
                "[namespaces.\"/pakyow\"]\n[doors.pakyow]\napplication = \"http://127.0.0.1:1\"\n\
                 [doors.pakyow.hook]\nurl = \"http://127.0.0.1:1\"\nsecret_env = \"NOWHERE\"\n",
            ),
            ":7: doors.pakyow.hook: ",
        ),
        ("access = \"hook\"\n".to_owned(), "no section [hooks.NAME]"),
        (
            format!(
                "access = \"hook\"\n{}{}",
                hook(""),
                hook("").replace("s.a", "s.b")
            ),
            "hooks.a and hooks.b both decide",
        ),
        ("access = \"jwt\"\n".to_owned(), "has neither [[jwt.keys]]"),
        (
            "access = \"jwt\"\n[[jwt.keys]]\nalgorithm = \"HS256\"\nsecret_file = \"/nowhere\"\n"
                .to_owned(),
            "/nowhere cannot be read",
        ),
        (
            journal("1s", "max_disconnection = \"10m\""),
            ":3: namespaces.\"/a\": `journal.age` is below `recovery.max_disconnection`",
        ),
        (
            journal("140s", "max_disconnection = \"2m\"\nat_least_once = true"),
            ":3: namespaces.\"/a\": `journal.age` is below 1.5 times",
        ),
    ];
    for (text, problem) in cases {
        let file = Temporary::new(&text);
        for command in [&["config", "check"][..], &["serve"]] {
            let mut program = roomcast();
            program.args(command).args(["--config", file.path()]);
            let (status, said) = Program::start(program.args(ANY_PORT)).end();
            assert_eq!(status, Some(2), "{command:?} takes {text}: {said}");
            let has_place = said.contains(&format!("error: {}:", file.path()));
            assert!(has_place && said.contains(problem), "{problem}: {said}");
        }
    }
}

#[test]
fn config_check_asks_neither_redis_nor_an_issuer_of_keys() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let file = Temporary::new(&format!(
        "access = \"jwt\"\nredis = \"redis://127.0.0.1:{port}\"\n\
         [jwt.jwks]\nurl = \"http://127.0.0.1:{port}/\"\nalgorithms = [\"RS256\"]\n"
    ));
    says(0, &["config", "check", "--config", file.path()]);
    let connected = listener.accept().map(|(_, address)| address);
    assert!(connected.is_err(), "the check has connected: {connected:?}");
}

#[test]
fn config_default_is_a_valid_file_that_changes_nothing() {
    let text = says(0, &["config", "default"]);
    assert!(text.contains("\n#ping_interval = \"25s\"\n"), "{text}");
    let file = Temporary::new(&text);
    let said = says(0, &["config", "show", "--config", file.path()]);
    assert!(!said.contains("# file\n"), "{said}");
}

#[test]
fn completions_and_the_version_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let (status, said) = Program::start(roomcast().args(["completions", shell])).end();
        assert!(
            status == Some(0) && said.contains("ping-interval"),
            "{said}"
        );
    }
    let (status, said) = Program::start(roomcast().arg("version")).end();
    let version = format!("roomcast {}\ncommit ", env!("CARGO_PKG_VERSION"));
    assert!(status == Some(0) && said.starts_with(&version), "{said}");
}

#[test]
fn a_log_that_nobody_reads_or_whose_pipe_is_broken_stops_nothing() {
    // More lines than the pipe and the queue behind it hold.
    const EVENTS: usize = 30_000;
    for is_broken in [false, true] {
        let mut command = roomcast();
        command
            .args(["serve", "--workers=1", "--log-level=roomcast=debug"])
            .args(ANY_PORT)
            .args(["--access=open", "--client-rooms"])
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = child.stderr.take().unwrap();
        let (line, lines) = channel();
        let program = Program::watch(child, lines);
        let listening = until(&mut log, "listening");
        let (address, internal) = (
            field(&listening, "address="),
            field(&listening, "internal="),
        );
        let log = (!is_broken).then_some(log);

        // Each of these leaves a line in the log.
        let mut client = Client::connect(&address);
        for _ in 0..EVENTS {
            client.send("42[\"join\",1]");
        }
        assert_eq!(client.ask(&json!(["rooms"])), json!([[]]));
        assert_eq!(
            metric(&internal, "roomcast_events_received_total"),
            EVENTS + 1
        );
        assert_eq!(http(&internal, "GET /livez", "").0, 200);
        assert_eq!(http(&internal, "GET /readyz", "").0, 200);
        if log.is_some() {
            assert!(metric(&internal, "roomcast_log_lines_dropped_total") > 0);
        }
        match log {
            Some(log) => forward(log, line),
            None => drop(line),
        }
        program.signal(Signal::TERM);
        assert_eq!(program.end().0, Some(0));
    }
}

#[test]
fn the_log_follows_one_client_by_address_and_socket() {
    let (mut program, address, _) = serve(&["--client-rooms", "--log-level=roomcast=debug"]);
    let mut client = Client::connect(&address);
    let opened = program.line_with("a connection opened");
    let from = field(&opened, "address=");
    let connected = program.line_with("a socket connected");
    assert_eq!(field(&connected, "address="), from);
    let socket = field(&connected, "socket=");
    client.send("42[\"no such event\"]");
    let unhandled = program.line_with("an event has no handler");
    assert_eq!(field(&unhandled, "socket="), socket);
    client.send("42[\"join\",{}]");
    assert_eq!(
        field(&program.line_with("do not match its handler"), "socket="),
        socket
    );
    client.send("40/nowhere,");
    let refused = program.line_with("a connect to a namespace was refused");
    assert!(
        refused.contains("/nowhere") && refused.contains("unknown"),
        "{refused}"
    );
    client.send("4nonsense");
    let closed = program.line_with("the server closed a connection");
    assert_eq!(field(&closed, "address="), from);
    assert!(closed.contains("parse_error"), "{closed}");
    assert_eq!(
        field(&program.line_with("a socket disconnected"), "socket="),
        socket
    );
}

#[test]
fn the_service_manager_learns_when_a_node_is_ready_and_when_it_drains() {
    let folder = std::env::temp_dir().join(format!("roomcast-notify-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let state = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = roomcast();
    command
        .arg("serve")
        .args(ANY_PORT)
        .env("NOTIFY_SOCKET", &socket);
    let program = Program::start(&mut command);
    assert_eq!(state(), "READY=1");
    program.signal(Signal::TERM);
    assert_eq!(state(), "STOPPING=1");
    assert_eq!(program.end().0, Some(0));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_hangup_reads_the_settings_again_and_a_broken_file_changes_nothing() {
    let file = Temporary::new("access = \"open\"\nmax_connections = 1\n");
    let (mut program, address, internal) = serve_file(&file);
    let opens = || http(&address, "GET /socket.io/?EIO=4&transport=polling", "").0;
    let mut client = Client::connect(&address);
    assert_eq!(opens(), 503);

    file.write("access = \"open\"\nmax_connections = 2\nlog_level = \"trace\"\nmax_roms = 3\n");
    program.signal(Signal::HUP);
    let line = program.line_with("nothing has changed");
    let expected = format!("{}:4: max_roms: unknown key", file.path());
    assert!(line.contains(&expected), "{line}");
    assert_eq!(opens(), 503);

    file.write("access = \"closed\"\nmax_connections = 2\nlog_level = \"debug\"\n");
    for _ in 0..2 {
        // What needs a restart is named until there is one.
        program.signal(Signal::HUP);
        program.line_with("reloaded the settings");
        let line = program.line_with("need a restart");
        assert!(line.contains("[\"access\"]"), "{line}");
    }
    assert_eq!(opens(), 200);
    program.line_with("a connection opened");
    let (_, metrics) = http(&internal, "GET /metrics", "");
    for line in ["{outcome=\"applied\"} 2\n", "{outcome=\"refused\"} 1\n"] {
        assert!(
            metrics.contains(&format!("roomcast_reloads_total{line}")),
            "{metrics}"
        );
    }
    client.send("42[\"echo\",1]");
    program.signal(Signal::TERM);
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn a_hangup_names_sections_of_which_only_a_secret_has_changed() {
    let settings = |digit: &str, query: &str| {
        let hash = digit.repeat(64);
        format!(
            "[[api.keys]]\nname = \"a\"\nhash = \"sha256:{hash}\"\nnamespaces = [\"*\"]\nverbs = [\"emit\"]\n\
             [hooks.a]\nurl = \"http://127.0.0.1:1/?key={query}\"\n"
        )
    };
    let file = Temporary::new(&settings("1", "s3cret"));
    let (mut program, ..) = serve_file(&file);
    for (digit, query, changed) in [
        ("2", "s3cret", "[\"api.keys\"]"),
        ("2", "s3cret2", "[\"hooks\"]"),
        ("2", "s3cret2", "[]"),
    ] {
        file.write(&settings(digit, query));
        program.signal(Signal::HUP);
        let line = program.line_with("reloaded the settings");
        assert!(line.contains(&format!("changed={changed}")), "{line}");
    }
}

#[test]
fn a_hangup_replaces_keys_and_room_policies_together_or_neither() {
    let (old, new) = (
        Temporary::new(&"old".repeat(11)),
        Temporary::new(&"new".repeat(11)),
    );
    let settings = |access: &str, secret: &str, room: &str| {
        format!(
            "client_rooms = true\n[[jwt.keys]]\nalgorithm = \"HS256\"\nsecret_file = \"{secret}\"\n\
             [namespaces.\"/\"]\naccess = \"{access}\"\nrooms.join = [\"{room}\"]\n\
             rooms.presence = [\"*\"]\n"
        )
    };
    let file = Temporary::new(&settings("jwt", old.path(), "tea"));
    let token = || {
        let mut command = roomcast();
        command.args(["token", "--user", "ada", "--config", file.path()]);
        let token = String::from_utf8(command.output().unwrap().stdout).unwrap();
        json!({ "token": token.trim() })
    };
    let (mut program, address, _) = serve_file(&file);
    let is_let_in = |auth: &Value| Client::connect_as(&address, auth).is_ok();
    let first = token();
    let mut client = Client::connect_as(&address, &first).unwrap();
    let mut joins = |room: &str| client.ask(&json!(["join", room]))[0].get("error").is_none();
    assert!(joins("tea") && !joins("milk"));

    file.write(&settings("jwt", "/nowhere", "milk"));
    program.signal(Signal::HUP);
    let line = program.line_with("nothing has changed");
    assert!(line.contains("/nowhere cannot be read"), "{line}");
    assert!(!joins("milk") && is_let_in(&first));

    file.write(&settings("open", new.path(), "milk"));
    program.signal(Signal::HUP);
    let line = program.line_with("reloaded the settings");
    assert!(line.contains("[\"jwt\", \"namespaces./.rooms\"]"), "{line}");
    let line = program.line_with("need a restart");
    assert!(line.contains("[\"namespaces./.access\"]"), "{line}");
    assert!(
        joins("milk") && !joins("cocoa"),
        "the client stays connected"
    );
    let second = token();
    assert!(!is_let_in(&first) && is_let_in(&second));

    // The file's name is the same, so that only its content shows the change.
    new.write(&"third".repeat(7));
    program.signal(Signal::HUP);
    program.line_with("reloaded the settings");
    assert!(!is_let_in(&second) && is_let_in(&token()));
}

#[test]
fn clients_use_rooms_by_themselves_where_that_is_allowed() {
    let (_program, address, _) = serve(&["--client-rooms"]);
    let (mut ada, mut ben) = (Client::connect(&address), Client::connect(&address));
    let joined = ada.ask(&json!(["join", "tea"]));
    assert_eq!(joined, json!([{ "room": "tea", "members": [ada.id()] }]));
    let mut both = [ada.id().to_owned(), ben.id().to_owned()];
    both.sort();
    let joined = ben.ask(&json!(["join", "tea"]));
    assert_eq!(joined, json!([{ "room": "tea", "members": both }]));
    assert_eq!(
        ada.event("joined"),
        json!([{ "room": "tea", "id": ben.id() }])
    );
    assert_eq!(ada.ask(&json!(["who", "tea"])), json!([both]));
    assert_eq!(ada.ask(&json!(["rooms"])), json!([["tea"]]));

    let sent = ada.ask(&json!(["message", "tea", { "text": "hello" }]));
    assert_eq!(sent, json!([2]));
    let message = json!([{ "room": "tea", "from": ada.id(), "data": { "text": "hello" } }]);
    assert_eq!(ben.event("message"), message);
    assert_eq!(ada.event("message"), message);

    assert_eq!(
        ada.ask(&json!(["leave", "tea"])),
        json!([{ "room": "tea" }])
    );
    assert_eq!(
        ben.event("left"),
        json!([{ "room": "tea", "id": ada.id() }])
    );
    let refusal = ada.ask(&json!(["message", "tea", "hello"]));
    assert_eq!(
        refusal,
        json!([{ "error": "join tea before you send to it" }])
    );
    let refusal = ada.ask(&json!(["join", ben.id()]));
    assert!(
        refusal[0]["error"]
            .as_str()
            .unwrap()
            .contains("socket's id"),
        "{refusal}"
    );

    ada.ask(&json!(["join", "tea"]));
    let gone = ada.id().to_owned();
    drop(ada);
    ben.event("joined");
    assert_eq!(ben.event("left"), json!([{ "room": "tea", "id": gone }]));
}

#[test]
fn quiet_clients_join_leave_and_disconnect_unnoticed() {
    let (_program, address, _) = serve(&["--client-rooms"]);
    let [mut ada, mut ben, mut cy] = [(); 3].map(|()| Client::connect(&address));
    ada.ask(&json!(["join", "tea"]));
    let quiet = json!([{ "room": "tea" }]);
    for client in [&mut ben, &mut cy] {
        assert_eq!(
            client.ask(&json!(["join", "tea", { "quiet": true }])),
            quiet
        );
    }
    let members = ada.ask(&json!(["who", "tea"]));
    assert_eq!(members[0].as_array().unwrap().len(), 3, "{members}");
    assert_eq!(ben.ask(&json!(["leave", "tea", { "quiet": true }])), quiet);
    drop(cy);
    wait_until(|| ada.ask(&json!(["who", "tea"])) == json!([[ada.id()]]));

    // All that a room is told comes in order: nothing was told before what is heard first.
    let mut dan = Client::connect(&address);
    dan.ask(&json!(["join", "tea", { "quiet": false }]));
    dan.ask(&json!(["leave", "tea"]));
    for event in ["joined", "left"] {
        let told = json!([{ "room": "tea", "id": dan.id() }]);
        assert_eq!(ada.event(event), told, "{event}");
    }
}

#[test]
fn an_echo_brings_back_all_that_was_sent() {
    let (_program, address, _) = serve(&["--client-rooms"]);
    let mut client = Client::connect(&address);
    for payload in [json!("text"), json!(null), json!({ "a": [1, "\u{1F600}"] })] {
        assert_eq!(client.ask(&json!(["echo", payload])), json!([payload]));
    }
    assert_eq!(client.ask(&json!(["echo", 1, 2])), json!([1, 2]));
    assert_eq!(client.ask(&json!(["echo"])), json!([]));
}

#[test]
fn a_message_is_passed_on_as_it_stands_with_half_an_emoji_and_deep_data() {
    let (_program, address, _) = serve(&["--client-rooms"]);
    let mut client = Client::connect(&address);
    client.ask(&json!(["join", "tea", { "quiet": true }]));
    let deep = "[".repeat(300) + &"]".repeat(300);
    for data in [r#"{"b":"cut \ud83d","a":[1,2.5,null]}"#, "null", &deep] {
        client.send(&format!(r#"42["message","tea",{data}]"#));
        let packet = client.packet().unwrap();
        assert!(
            packet.ends_with(&format!(r#""data":{data}}}]"#)),
            "{packet}"
        );
    }
}

#[test]
fn without_client_rooms_nobody_answers_those_events() {
    let (_program, address, internal) = serve(&[]);
    let mut client = Client::connect(&address);
    client.send("421[\"join\",\"tea\"]");
    wait_until(|| {
        http(&internal, "GET /metrics", "")
            .1
            .contains("events_unhandled_total 1\n")
    });
}

#[test]
fn the_demo_says_where_its_page_is_and_the_page_can_talk() {
    let mut demo = Program::start(roomcast().arg("demo").args(ANY_PORT));
    let line = demo.line_with("Open http://");
    let address = field(&line, "http://");
    let (status, page) = http(&address, "GET /", "");
    assert!(status == 200 && page.contains("id=\"log\""), "{page}");
    let mut client = Client::connect(&address);
    assert!(client.ask(&json!(["join", "tea"]))[0]["members"].is_array());
    demo.signal(Signal::TERM);
    assert_eq!(client.rest(), [""; 0]);
    assert_eq!(demo.end().0, Some(0));
}

/// A stop that needs no time for balancers and other nodes.
const AT_ONCE: [(&str, &str); 2] = [
    ("ROOMCAST_DRAIN_GRACE", "0s"),
    ("ROOMCAST_DRAIN_OVER", "0s"),
];

/// The running server, its address and that of its internal port.
fn serve(options: &[&str]) -> (Program, String, String) {
    let mut command = roomcast();
    command.args(["serve", "--access=open"]).envs(AT_ONCE);
    process::serve(command.args(options))
}

/// A running server with the settings of a file.
fn serve_file(file: &Temporary) -> (Program, String, String) {
    process::serve(roomcast().args(["serve", "--config", file.path()]))
}

/// Runs the program, which must exit with this status. Returns its output.
#[track_caller]
fn says(status: i32, line: &[&str]) -> String {
    ended(Program::start(roomcast().args(line)), status)
}

/// Waits for the end with this status. Returns all that was said.
#[track_caller]
fn ended(program: Program, status: i32) -> String {
    let (found, said) = program.end();
    assert_eq!(found, Some(status), "{said}");
    said
}

/// The first packet of a session that is opened at this path.
fn opening(address: &str, path: &str) -> Value {
    let (status, opening) = http(address, &format!("GET {path}"), "");
    assert_eq!(status, 200, "{opening}");
    serde_json::from_str(&opening[1..]).unwrap()
}

/// Where a session is opened.
const POLLING: &str = "/socket.io/?EIO=4&transport=polling";

/// Opens a session; answers the path for its requests.
fn polling_session(address: &str) -> String {
    let opening = opening(address, POLLING);
    format!("{POLLING}&sid={}", opening["sid"].as_str().unwrap())
}

/// A request whose body never comes, of which the server has seen the head: it holds up a drain.
fn unfinished_request(address: &str) -> TcpStream {
    let path = polling_session(address);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = "Host: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    write!(stream, "POST {path} HTTP/1.1\r\n{head}").unwrap();
    until(&mut stream, "100 Continue");
    stream
}

/// Reads line by line, and no further, until one has this text.
fn until(stream: &mut impl Read, text: &str) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
        if byte[0] == b'\n' {
            let found = String::from_utf8(std::mem::take(&mut line)).unwrap();
            if found.contains(text) {
                return found;
            }
        }
    }
}

/// The value of a metric without labels.
fn metric(internal: &str, name: &str) -> usize {
    let (status, metrics) = http(internal, "GET /metrics", "");
    assert_eq!(status, 200);
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap().parse().unwrap()
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "it never came true");
    }
}
