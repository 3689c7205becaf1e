//! The tool against a server that makes mistakes on purpose: each is counted, exactly, and said.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::net::TcpListener;

use support::{
    Ran, measure, run,
    server::{Behaviour, Fate, HONEST, Server},
    temporary,
};

/// Some of everything, in the rooms' first members.
const FAULTY: Behaviour = Behaviour {
    fate: |message, member| match (message % 10, member) {
        (3, 1) => Fate::Dropped,
        (5 | 6, 2) => Fate::Doubled,
        (7, 3) => Fate::Delayed,
        (8, 4) => Fate::Changed,
        (9, 0) => Fate::Astray,
        _ => Fate::Sent,
    },
    ..HONEST
};

const SHORT: [&str; 4] = [
    "--duration=1s",
    "--warm-up=100ms",
    "--grace=500ms",
    "--payload=64",
];

/// The command line of a short run: a scenario with its targets, and options.
fn short<'a>(scenario: &[&'a str], options: &'a str) -> Vec<&'a str> {
    let options = options.split_whitespace();
    scenario
        .iter()
        .copied()
        .chain(options)
        .chain(SHORT)
        .collect()
}

fn measured(scenario: &[&str], options: &str) -> Ran {
    measure(&short(scenario, options))
}

#[test]
fn every_mistake_of_a_server_is_counted_exactly() {
    let server = Server::start(FAULTY);
    let options = "--rooms=2 --members=6 --rate=200";
    let ran = measured(&["fan-out", &server.address], options);
    assert_eq!(ran.status, Some(4), "{}", ran.said);
    let done = server.done();
    assert!(
        done.dropped > 0 && done.doubled > 0 && done.delayed > 0,
        "{done:?}"
    );
    assert!(done.changed > 0 && done.astray > 0, "{done:?}");
    // What was changed did not arrive as what it was.
    ran.assert_tally("lost", done.dropped + done.changed);
    ran.assert_tally("duplicated", done.doubled);
    ran.assert_tally("reordered", done.delayed);
    ran.assert_tally("corrupted", done.changed);
    ran.assert_tally("stray", done.astray);
    ran.assert_says(&format!("{} duplicated", done.doubled));
}

#[test]
fn an_honest_server_has_a_clean_ledger_and_every_delivery_is_a_sample() {
    let server = Server::start(HONEST);
    let options = "--members=5 --senders=2 --window=3";
    let ran = measured(&["fan-out", &server.address], options);
    ran.assert_clean();
    assert_eq!(ran.samples("delivery") % 5, 0);
    assert_eq!(ran.samples("delivery"), ran.samples("last recipient") * 5);
    assert!(ran.samples("last recipient") > 0, "{}", ran.said);
    assert!(ran.tally("arrived") >= ran.samples("delivery"));
}

#[test]
fn mistakes_are_counted_across_redis_too() {
    let server = Server::start(Behaviour {
        fate: |message, member| match (message, member) {
            (10, 0) => Fate::Dropped,
            (20, 1) => Fate::Doubled,
            (30, 2) => Fate::Delayed,
            _ => Fate::Sent,
        },
        ..HONEST
    });
    let scenario = ["emitter", &server.address, "--redis", &server.redis()];
    let ran = measured(&scenario, "--members=4 --flood=500");
    assert_eq!(ran.status, Some(4), "{}", ran.said);
    assert_eq!((ran.tally("lost"), ran.tally("arrived")), (1, 4 * 500 - 1));
    assert_eq!((ran.tally("duplicated"), ran.tally("reordered")), (1, 1));
    assert_eq!(ran.count("messages taken by Redis"), 500);
    assert_eq!(ran.samples("delivery"), 4 * 500 - 1);
    let server = Server::start(HONEST);
    let scenario = ["emitter", &server.address, "--redis", &server.redis()];
    measured(&scenario, "--members=4 --rate=100").assert_clean();
}

#[test]
fn mistakes_are_counted_behind_an_emitter_too() {
    // The first message wakes the emitter, and counts.
    let server = Server::start(Behaviour {
        fate: |message, member| match (message, member) {
            (10, 0) => Fate::Dropped,
            (20, 1) => Fate::Doubled,
            _ => Fate::Sent,
        },
        ..HONEST
    });
    let scenario = ["emitter", &server.address, "--emit-with", &server.emitter()];
    let ran = measured(&scenario, "--members=4 --flood=500");
    assert_eq!(ran.status, Some(4), "{}", ran.said);
    assert_eq!((ran.tally("lost"), ran.tally("arrived")), (1, 4 * 501 - 1));
    assert_eq!((ran.tally("duplicated"), ran.count("emits")), (1, 500));
    assert_eq!(ran.samples("delivery"), 4 * 500 - 1);
    assert_eq!(ran.samples("send lag"), 500);
    assert_eq!(server.done().emits, 501);
    ran.assert_says("emitter CPU per emit");
    let server = Server::start(HONEST);
    let scenario = ["emitter", &server.address, "--emit-with", &server.emitter()];
    let ran = measured(&scenario, "--members=4 --rate=100");
    ran.assert_clean();
    assert!(ran.count("emits") > 0 && ran.tally("arrived") == 4 * server.done().emits);
}

#[test]
fn what_nobody_is_to_hear_is_emitted_and_not_owed() {
    let server = Server::start(HONEST);
    let scenario = ["emitter", &server.address, "--emit-with", &server.emitter()];
    let ran = measured(&scenario, "--unheard --members=2 --flood=5000");
    ran.assert_clean();
    assert_eq!((ran.tally("arrived"), ran.count("emits")), (2, 5000));
    ran.assert_says("emits per second");
}

#[test]
fn a_flood_that_an_emitter_does_not_take_is_limited_by_it() {
    let server = Server::start(HONEST);
    let emitter = server.emitter();
    // No machine emits so much.
    let flood = ["--unheard", "--flood=10000000", "--duration=200ms"];
    let scenario = ["emitter", &server.address, "--members=2", "--payload=64"];
    let ran = measure(&[&scenario, &flood[..], &["--emit-with", &emitter]].concat());
    assert_eq!(ran.status, Some(5), "{}", ran.said);
    ran.assert_says("LIMITED BY the emitter");
    ran.assert_tally("arrived", 2);
}

#[test]
fn an_emitter_that_fails_is_no_result() {
    let server = Server::start(HONEST);
    let works_once = server.emitter().replace("cat", "head -n 1");
    for (emitter, said) in [
        ("sh -c 'read line; exit 9'", "exit status: 9"),
        (works_once.as_str(), "exited before its input was complete"),
    ] {
        let scenario = ["emitter", &server.address, "--emit-with", emitter];
        let (status, text) = run(&short(&scenario, "--members=2 --flood=100000"));
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn a_server_without_echo_is_asked_for_something_else() {
    let server = Server::start(Behaviour {
        echoes: false,
        ..HONEST
    });
    let ran = measured(&["echo", &server.address], "--clients=4");
    ran.assert_clean();
    assert_eq!(ran.result["settings"]["event"], "rooms");
    ran.assert_says("no event `echo`");
    let server = Server::start(HONEST);
    let ran = measured(&["echo", &server.address], "--clients=4");
    ran.assert_clean();
    assert_eq!(ran.result["settings"]["event"], "echo");
    assert!(ran.samples("echo") > 0);
}

#[test]
fn clients_that_the_server_refuses_are_no_connections() {
    let server = Server::start(Behaviour {
        admits: |connection| connection % 4 == 0,
        ..HONEST
    });
    let ran = measured(&["echo", &server.address], "--clients=8");
    assert_eq!(ran.status, Some(5), "{}", ran.said);
    assert_eq!(ran.count("connections"), 2, "{}", ran.said);
    ran.assert_says("only 2 of 8 connected");
}

#[test]
fn a_run_that_did_not_get_all_its_members_says_so() {
    let server = Server::start(Behaviour {
        grants: |join| join % 4 != 3,
        ..HONEST
    });
    let ran = measured(&["fan-out", &server.address], "--members=8 --rate=20");
    assert_eq!(ran.status, Some(5), "{}", ran.said);
    ran.assert_says("only 6 of 8");
    ran.assert_says("the room is full");
    let limits = ran.result["limited_by"].as_array().unwrap().iter();
    let reasons = limits.filter(|reason| reason.as_str().unwrap().starts_with("connections"));
    assert_eq!(reasons.count(), 1);
    let server = Server::start(Behaviour {
        grants: |_| false,
        ..HONEST
    });
    let ran = measured(&["fan-out", &server.address], "--members=8");
    assert_eq!(ran.status, Some(1), "{}", ran.said);
    ran.assert_says("no client became a member");
}

#[test]
fn a_rate_that_was_not_kept_is_no_result() {
    let server = Server::start(HONEST);
    // No machine sends so much.
    let rate = [
        "--members=1",
        "--rate=10000000",
        "--duration=200ms",
        "--warm-up=0s",
    ];
    let ran = measure(&[&["fan-out", &server.address, "--payload=64"][..], &rate].concat());
    ran.assert_says("LIMITED BY the rate was not kept");
    assert_ne!(ran.status, Some(0));
}

#[test]
fn what_cannot_be_measured_is_said_with_a_status_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let server = Server::start(HONEST);
    let redis = server.redis();
    let redis = redis.strip_prefix("redis://").unwrap();
    for (args, status, said) in [
        (&["fan-out", nobody.as_str()][..], 1, "unreachable"),
        (&["fan-out", redis], 3, "not a Socket.IO server"),
        (&["fan-out", "https://127.0.0.1:1"], 2, "TLS"),
        (&["fan-out"], 2, "TARGET"),
        (
            &["fan-out", &server.address, "--members=3", "--senders=4"],
            2,
            "no place",
        ),
        (&["cluster", &server.address], 2, "two targets"),
        (
            &["fan-out", &server.address, "--members=10000000"],
            2,
            "descriptors",
        ),
        (
            &["fan-out", &server.address, "--transport=polling"],
            3,
            "polling",
        ),
        (
            &["fan-out", &server.address, "--server-pid=4294967295"],
            1,
            "no such process",
        ),
        (
            &["fan-out", &server.address, "--process=Redis=4294967295"],
            1,
            "--process Redis=4294967295: no such process",
        ),
        (
            &["emitter", &server.address, "--redis=redis://127.0.0.1:1"],
            1,
            "unreachable",
        ),
        (&["merge", "no-such-file.json"], 1, "no-such-file.json"),
    ] {
        let (found, text) = run(args);
        assert_eq!(found, Some(status), "{args:?}: {text}");
        assert!(text.contains(said), "{args:?}: {text}");
    }
}

#[test]
fn results_of_several_loaders_merge_compare_and_make_a_page() {
    let server = Server::start(FAULTY);
    let one = temporary("one.json");
    let both = temporary("both.json");
    let page = temporary("page.html");
    let (json, html) = (format!("--json={one}"), format!("--html={page}"));
    let scenario = ["fan-out", &server.address, &json];
    let (status, said) = run(&short(&scenario, "--members=6 --rate=100"));
    assert_eq!(status, Some(4), "{said}");
    let alone = std::fs::read_to_string(&one).unwrap();
    let alone: serde_json::Value = serde_json::from_str(&alone).unwrap();

    let sum = format!("--json={both}");
    let (status, said) = run(&["merge", &one, &one, &sum, &html]);
    assert_eq!(status, Some(4), "{said}");
    let merged = std::fs::read_to_string(&both).unwrap();
    let merged: serde_json::Value = serde_json::from_str(&merged).unwrap();
    assert_eq!(merged["parts"], 2);
    for fault in ["arrived", "lost", "duplicated", "reordered", "corrupted"] {
        let twice = alone["ledger"][fault].as_u64().unwrap() * 2;
        assert_eq!(merged["ledger"][fault], twice, "{fault}");
    }
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(
        text.contains("<polyline") && text.contains("duplicated"),
        "{text}"
    );

    let (status, said) = run(&["compare", &one, &both]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("(2.00×)"), "{said}");
    let (status, said) = run(&["report", &one, &both, &html]);
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn several_processes_count_what_one_would_have_counted() {
    let server = Server::start(FAULTY);
    let page = temporary("page.html");
    let html = format!("--html={page}");
    let scenario = ["fan-out", &server.address, &html];
    let options = "--rooms=3 --members=6 --rate=150 --processes=2";
    let ran = measured(&scenario, options);
    assert_eq!(ran.status, Some(4), "{}", ran.said);
    let done = server.done();
    assert_eq!(ran.result["parts"], 2);
    assert_eq!(ran.count("connections"), 18);
    ran.assert_tally("lost", done.dropped + done.changed);
    ran.assert_tally("duplicated", done.doubled);
    ran.assert_tally("reordered", done.delayed);
    let (status, said) = run(&["fan-out", &server.address, "--processes=2", "--members=2"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("cannot be divided"), "{said}");
}
