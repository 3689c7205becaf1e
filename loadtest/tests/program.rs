//! Every scenario for a moment against our own program: it runs to its end, and its ledger is clean.
//!
//! The program is the one that `PROGRAM_UNDER_LOAD` names; without it, it is built.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../emitter/tests/support/mod.rs"]
mod redis;
mod support;

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError, mpsc::channel},
    thread,
};

use redis::Redis;
use support::{DEADLINE, Ran, measure, run, temporary};

/// The program, with rooms for clients. Dropping it kills it.
struct Program {
    child: Child,
    address: String,
    internal: String,
}

impl Program {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["serve", "--access=open", "--client-rooms", "--workers=1"])
            .args(["--listen=127.0.0.1:0", "--internal-listen=127.0.0.1:0"])
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (line, lines) = channel();
        thread::spawn(move || {
            let all = BufReader::new(stderr).lines().map_while(Result::ok);
            // Nobody listens any more once the addresses are known, and the rest is read on.
            all.for_each(|text| drop(line.send(text)));
        });
        let mut program = Self {
            child,
            address: String::new(),
            internal: String::new(),
        };
        let mut said = Vec::new();
        while program.address.is_empty() {
            let Ok(line) = lines.recv_timeout(DEADLINE) else {
                panic!("it does not listen, but says: {said:#?}");
            };
            if line.contains("address=") && line.contains("internal=") {
                program.address = field(&line, "address=");
                program.internal = field(&line, "internal=");
            }
            said.push(line);
        }
        program
    }

    fn pid(&self) -> String {
        format!("--server-pid={}", self.child.id())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn field(line: &str, name: &str) -> String {
    let (_, rest) = line.split_once(name).unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("PROGRAM_UNDER_LOAD") {
        return program.into();
    }
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let built = Command::new(env!("CARGO"))
        .args([
            "build", "--locked", "--quiet", "-p", "roomcast", "--bin", "roomcast",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success());
    Path::new(env!("CARGO_BIN_EXE_roomcast-loadtest")).with_file_name("roomcast")
}

/// Measures a fresh server for a second: the scenario and its own options.
fn a_second_of(scenario: &str, options: &str) -> Ran {
    let server = Program::start(&[]);
    let ran = measured(&[scenario, &server.address, &server.pid()], options);
    assert_eq!(ran.result["servers"][0]["name"], "roomcast", "{}", ran.said);
    ran.assert_says("server CPU");
    ran
}

/// Measures for a second: a scenario with its targets, and its own options.
fn measured(scenario: &[&str], options: &str) -> Ran {
    let short = ["--duration=1s", "--warm-up=200ms", "--grace=20s"];
    let options: Vec<_> = options.split_whitespace().collect();
    measure(&[scenario, &short, &options].concat())
}

/// What `--help` prints.
fn help(command: &[&str]) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_roomcast-loadtest"));
    let output = program.args(command).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The long options in a text.
fn options(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| c != '-' && !c.is_ascii_lowercase());
    words.filter(|word| word.starts_with("--")).collect()
}

#[test]
fn the_readme_names_every_option() {
    let documented = options(include_str!("../README.md"));
    let commands = help(&[]);
    let (_, commands) = commands.split_once("Commands:\n").unwrap();
    let names = commands.lines().take_while(|line| !line.is_empty());
    let names = names.filter_map(|line| line.split_whitespace().next());
    let mut count = 0;
    for name in names.filter(|name| *name != "help") {
        let help = help(&[name]);
        let mut missing = &options(&help) - &documented;
        missing.remove("--help");
        assert!(missing.is_empty(), "{name}: {missing:?}");
        count += 1;
    }
    assert!(count >= 14, "{commands}");
}

#[test]
fn broadcasts_reach_everybody_on_every_transport() {
    for transport in ["websocket", "polling", "upgrade"] {
        let options = format!("--rooms=2 --members=10 --senders=2 --transport={transport}");
        let ran = a_second_of("fan-out", &options);
        ran.assert_clean();
        assert!(ran.samples("delivery") > 0, "{}", ran.said);
        assert_eq!(ran.samples("connect"), 20);
    }
    let paced = a_second_of("fan-out", "--members=20 --rate=100");
    paced.assert_clean();
    assert_eq!(
        paced.samples("delivery"),
        paced.samples("last recipient") * 20
    );
}

#[test]
fn requests_are_answered() {
    a_second_of("echo", "--clients=10").assert_clean();
    let paced = a_second_of("echo", "--clients=10 --rate=200 --transport=polling");
    paced.assert_clean();
    assert!(paced.tally("arrived") > 0);
}

#[test]
fn a_storm_connects_and_leaves_nothing_behind() {
    for transport in ["websocket", "upgrade"] {
        let options = format!("--keep=5 --opening=10 --transport={transport}");
        let ran = a_second_of("storm", &options);
        ran.assert_clean();
        assert!(ran.count("connects") > 0, "{}", ran.said);
        assert_eq!(ran.result["ends"], serde_json::json!({}), "{}", ran.said);
    }
}

#[test]
fn idle_connections_have_a_size() {
    let ran = a_second_of("idle", "--connections=300 --broadcasts=2");
    ran.assert_clean();
    assert_eq!(
        (ran.count("connections"), ran.count("connections counted")),
        (300, 270)
    );
    ran.assert_tally("arrived", 600);
    ran.assert_says("idle connection after traffic");
}

#[test]
fn members_that_never_read_are_no_members() {
    let ran = a_second_of("slow", "--members=12 --stalled=4 --rate=50");
    ran.assert_clean();
    assert_eq!((ran.count("stalled"), ran.tally("arrived") % 8), (4, 0));
}

#[test]
fn members_that_come_and_go_lose_nothing_while_they_are_there() {
    let churn = a_second_of("churn", "--members=20 --moves=300 --rate=200");
    churn.assert_clean();
    assert!(
        churn.count("leaves") > 0 && churn.count("joins") > 20,
        "{}",
        churn.said
    );
    let jitter = a_second_of("jitter", "--members=20 --tears=30 --away=100ms --rate=200");
    jitter.assert_clean();
    assert!(jitter.count("reconnects") > 0, "{}", jitter.said);
    assert!(jitter.samples("outage") > 0 && jitter.tally("missed_away") > 0);
}

#[test]
fn a_soak_finds_everything_given_back() {
    let server = Program::start(&[]);
    let metrics = format!("http://{}/metrics", server.internal);
    let gauge = format!("--gauge={metrics}#roomcast_sockets");
    let scenario = ["soak", &server.address, &server.pid(), &gauge];
    let options = "--members=20 --moves=100 --tears=20 --away=100ms --rate=100";
    let ran = measured(&scenario, options);
    ran.assert_clean();
    let descriptors = |name: &str| ran.count(&format!("server descriptors {name}"));
    assert!(descriptors("before") > 0);
    assert!(
        descriptors("after the end") <= descriptors("before"),
        "{}",
        ran.said
    );
    assert_eq!(
        ran.result["gauges"][0]["after"].as_f64(),
        Some(0.0),
        "{}",
        ran.said
    );
}

#[test]
fn clients_survive_a_restart_of_their_server() {
    let server = Program::start(&["--drain-grace=0s", "--drain-over=0s"]);
    let pid = server.child.id();
    let started = temporary("restarted");
    // The next server is one that nobody ends but this command.
    let command = format!(
        "kill -TERM {pid}; while kill -0 {pid} 2>/dev/null && ! grep -q State:.Z /proc/{pid}/status; \
         do sleep 0.02; done; \
         {program} serve --access=open --client-rooms --workers=1 --listen {address} \
         --internal-listen 127.0.0.1:0 >/dev/null 2>&1 & echo $! > {started}",
        program = program().display(),
        address = server.address,
    );
    let scenario = ["deploy", &server.address, "--restart", &command];
    let options = "--members=10 --rate=50 --warm-up=100ms --pause=500ms --grace=20s";
    let options: Vec<_> = options.split(' ').collect();
    let ran = measure(&[&scenario[..], &options].concat());
    if let Ok(pid) = std::fs::read_to_string(&started) {
        let _ = Command::new("kill").arg(pid.trim()).status();
    }
    ran.assert_clean();
    assert_eq!(ran.count("reconnects"), 10, "{}", ran.said);
    assert_eq!(ran.samples("outage"), 10);
    assert_eq!(
        ran.result["ends"]["closed by the server"], 10,
        "{}",
        ran.said
    );
}

#[test]
fn rooms_are_joined_and_left_or_kept() {
    let ran = a_second_of("joins", "--rooms=300 --hold=50ms --rate=3000");
    ran.assert_clean();
    ran.assert_tally("arrived", 600);
    assert_eq!(ran.count("joins and leaves"), 300, "{}", ran.said);
    let figure = "server CPU per join and leave";
    ran.assert_says(figure);
    let ran = a_second_of("joins", "--rooms=300");
    ran.assert_clean();
    ran.assert_tally("arrived", 300);
}

#[test]
fn messages_from_outside_reach_a_room_on_one_node_of_a_sharded_cluster() {
    let redis = Redis::start();
    let joined = format!("--redis={}", redis.url());
    let start = || Program::start(&[&joined, "--redis-dialect=sharded-dynamic"]);
    let nodes = [start(), start()];
    let [one, other] = [&nodes[0].address, &nodes[1].address];
    let emitter = ["emitter", one, other, &joined, "--sharded"];
    let ran = measured(&emitter, "--rooms=4 --members=5 --together --window=2");
    ran.assert_clean();
    // Each message goes to the node that has its room, and to no other.
    let taken = ran.count("messages taken by Redis");
    assert!(taken > 8, "{}", ran.said);
    assert_eq!(ran.count("subscribers reached in Redis"), taken);
}

#[test]
fn a_cluster_hears_its_clients_and_emitters_from_everywhere() {
    let redis = Redis::start();
    let joined = format!("--redis={}", redis.url());
    let nodes = [Program::start(&[&joined]), Program::start(&[&joined])];
    let [one, other] = [&nodes[0], &nodes[1]];
    let (first, second) = (one.pid(), other.pid());
    let scenario = ["cluster", &one.address, &other.address, &first, &second];
    let ran = measured(&scenario, "--members=10 --rate=50");
    ran.assert_clean();
    assert!(ran.samples("last recipient") > 0, "{}", ran.said);
    assert_eq!(ran.result["servers"].as_array().unwrap().len(), 2);

    let emitter = ["emitter", &one.address, &other.address, &joined];
    let flood = ["--members=20", "--flood=300", "--grace=20s"];
    let ran = measure(&[&emitter[..], &flood].concat());
    ran.assert_clean();
    ran.assert_tally("arrived", 20 * 300);
    assert_eq!(ran.samples("last recipient"), 300);

    let process = format!("--process=Redis={}", redis.pid());
    let command = format!("{} emit - --redis {}", program().display(), redis.url());
    let emitter = ["emitter", &one.address, &other.address, &process];
    let emitter = [&emitter[..], &["--emit-with", &command], &flood].concat();
    let ran = measure(&emitter);
    ran.assert_clean();
    // One more woke the emitter.
    ran.assert_tally("arrived", 20 * 301);
    assert_eq!(
        (ran.samples("delivery"), ran.count("emits")),
        (20 * 300, 300)
    );
    assert_eq!(ran.result["others"][0]["name"], "Redis");
    for figure in [
        "Redis CPU per delivery",
        "Redis CPU per emit",
        "emitter CPU per emit",
    ] {
        ran.assert_says(figure);
    }
}

#[test]
fn a_cluster_with_journal_and_recovery_loses_nothing_in_faults() {
    let program = format!("--program={}", program().display());
    for (fault, modes, more) in [
        ("1", "recovery", &["--balancer"][..]),
        ("5", "journal,recovery", &[]),
        ("18", "journal,recovery", &[]),
    ] {
        let (faults, modes) = (format!("--faults={fault}"), format!("--modes={modes}"));
        let size = ["--rounds=1", "--clients=30", "--rooms=3"];
        let chaos = ["chaos", &faults, &modes, &program];
        let (status, said) = run(&[&chaos, &size[..], more].concat());
        assert_eq!(status, Some(0), "{said}");
        let row = said
            .lines()
            .find(|line| line.contains("| journal and recovery |"));
        let cells: Vec<_> = row.unwrap().split('|').map(str::trim).collect();
        assert!(cells[4].parse::<u64>().unwrap() > 0, "{said}");
    }
}

#[test]
fn a_soak_without_sticky_sessions_loses_nothing_and_shows_what_grows() {
    let program = format!("--program={}", program().display());
    let size = ["--soak=6s", "--clients=30", "--rooms=3", "--rate=2"];
    let (status, said) = run(&[&["chaos", &program], &size[..]].concat());
    assert_eq!(status, Some(0), "{said}");
    for transport in ["WebSocket", "polling", "polling, then WebSocket"] {
        let row = said
            .lines()
            .find(|line| line.starts_with(&format!("| {transport} |")));
        let cells: Vec<_> = row.unwrap().split('|').map(str::trim).collect();
        assert!(cells[3].parse::<u64>().unwrap() > 0, "{said}");
    }
    assert!(said.contains("| Redis, `used_memory` |"), "{said}");
    assert!(said.contains("Memory is not judged"), "{said}");
}
