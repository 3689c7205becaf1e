//! Traces of the program, as a collector and the backend of a hook receive them.
//!
//! The collector here does not decode spans: their names and the ids of traces are in the protobuf as they
//! are.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use process::{DEADLINE, Program, client::Client, field};
use serde_json::json;

/// The SHA-256 of `abc` (FIPS 180-2, appendix B.1).
const HASH_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// The example of the recommendation Trace Context, section 3.2.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_trace_goes_from_the_client_to_the_application_and_from_the_application_to_the_api() {
    let (collector, spans) = serve("");
    let (backend, requests) = serve(r#"[{"op":"ack","args":["yes"]}]"#);
    let (_program, line) = start(&collector, &backend);
    let mut client = Client::connect(&field(&line, "address="));
    assert_eq!(client.ask(&json!(["chat", "hi"])), json!(["yes"]));

    let (head, _) = requests.recv_timeout(DEADLINE).unwrap();
    let parent = header(&head, "traceparent").expect("the application can continue the trace");
    let parts: Vec<_> = parent.split('-').collect();
    assert_eq!((parts[0], parts[3]), ("00", "01"), "{parent}");
    let mut exported = Vec::new();
    for part in [
        b"event".as_slice(),
        b"chat",
        b"hook app",
        b"roomcast",
        &bytes(parts[1]),
    ] {
        wait_for(part, &mut exported, &spans);
    }

    let mut stream = TcpStream::connect(field(&line, "internal=")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let body = r#"{"event":"news","all":true}"#;
    let length = body.len();
    write!(
        stream,
        "POST /api/emit HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer abc\r\n\
         Content-Type: application/json\r\ntraceparent: {TRACEPARENT}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    wait_for(b"/api/emit", &mut exported, &spans);
    let [_, trace, span, _] = TRACEPARENT.split('-').collect::<Vec<_>>()[..] else {
        panic!("four parts");
    };
    wait_for(&bytes(trace), &mut exported, &spans);
    wait_for(&bytes(span), &mut exported, &spans);
}

#[test]
fn a_collector_that_is_away_costs_spans_and_a_warning() {
    let (backend, _requests) = serve(r#"[{"op":"ack","args":["yes"]}]"#);
    // The port is free again when the listener is dropped.
    let away = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = away.local_addr().unwrap().to_string();
    drop(away);
    let (mut program, line) = start(&collector, &backend);
    let mut client = Client::connect(&field(&line, "address="));
    assert_eq!(client.ask(&json!(["chat", "hi"])), json!(["yes"]));
    let line = program.line_with("traces are lost");
    assert!(line.contains("WARN"), "{line}");
    assert_eq!(client.ask(&json!(["chat", "hi"])), json!(["yes"]));
}

/// Starts the program, and returns its line about the ports.
fn start(collector: &str, backend: &str) -> (Program, String) {
    let file = tempfile();
    let settings = format!(
        "access = \"open\"\n[hooks.app]\nurl = \"http://{backend}/\"\non = [\"event\"]\n\
         [[api.keys]]\nname = \"app\"\nhash = \"sha256:{HASH_OF_ABC}\"\nnamespaces = [\"/\"]\nverbs = [\"emit\"]\n"
    );
    fs::write(&file, settings).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
    // Batches are sent at once.
    command.env_clear().env("OTEL_BSP_SCHEDULE_DELAY", "20");
    command.args([
        "serve",
        "--listen=127.0.0.1:0",
        "--internal-listen=127.0.0.1:0",
    ]);
    command.arg(format!("--config={}", file.display()));
    command.arg(format!("--otlp-endpoint=http://{collector}"));
    command.arg("--otlp-sample=1");
    let mut program = Program::start(&mut command);
    let line = program.line_with("listening");
    fs::remove_file(file).unwrap();
    (program, line)
}

/// A name that no other test uses.
fn tempfile() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    std::env::temp_dir().join(format!("roomcast-traces-{process}-{count}.toml"))
}

/// Takes what is exported until it contains this.
fn wait_for(part: &[u8], exported: &mut Vec<u8>, spans: &Receiver<(String, Vec<u8>)>) {
    while !exported.windows(part.len()).any(|window| window == part) {
        let received = spans.recv_timeout(DEADLINE);
        let (head, body) = received.unwrap_or_else(|_| {
            panic!("{:?} was not exported", String::from_utf8_lossy(part));
        });
        assert!(head.starts_with("POST /v1/traces "), "{head}");
        exported.extend(body);
    }
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let pairs = (0..hexadecimal.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&hexadecimal[at..at + 2], 16).unwrap())
        .collect()
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A web server that responds to everything in the same way. Hands over heads and bodies of requests.
fn serve(response: &'static str) -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            thread::spawn(move || respond(&stream, response, &sender));
        }
    });
    (address, receiver)
}

/// Serves one connection until it ends.
fn respond(mut stream: &TcpStream, response: &str, requests: &Sender<(String, Vec<u8>)>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let length = response.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{response}"
        )
        .unwrap();
        // Nobody listens any more once the test is over.
        let _ = requests.send((head, body));
    }
}
