//! Traces of the program, as a collector and the backend of a hook receive them.
//!
//! The collector here does not decode spans: their names and the ids of traces are in the protobuf as they
//! are.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use process::{DEADLINE, Program, Temporary, client::Client, http_with, roomcast};
use serde_json::json;

/// The example of the recommendation Trace Context, section 3.2.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_trace_goes_from_the_client_to_the_application_and_from_the_application_to_the_api() {
    let (collector, spans) = serve("");
    let (backend, requests) = serve(r#"[{"op":"ack","args":["yes"]}]"#);
    let (_program, address, internal) = start(&collector, &backend);
    let mut client = Client::connect(&address);
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

    let headers = format!(
        "Authorization: Bearer abc\r\nContent-Type: application/json\r\n\
         traceparent: {TRACEPARENT}\r\n"
    );
    let body = r#"{"event":"news","all":true}"#;
    let (status, _, body) = http_with(&internal, "POST /api/emit", &headers, body);
    assert_eq!(status, 200, "{body}");
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
    let (mut program, address, _) = start(&collector, &backend);
    let mut client = Client::connect(&address);
    assert_eq!(client.ask(&json!(["chat", "hi"])), json!(["yes"]));
    let line = program.line_with("traces are lost");
    assert!(line.contains("WARN"), "{line}");
    assert_eq!(client.ask(&json!(["chat", "hi"])), json!(["yes"]));
}

/// Starts the program. Returns its addresses, too.
fn start(collector: &str, backend: &str) -> (Program, String, String) {
    let hash = process::hash("abc");
    let file = Temporary::new(&format!(
        "access = \"open\"\n[hooks.app]\nurl = \"http://{backend}/\"\non = [\"event\"]\n\
         [[api.keys]]\nname = \"app\"\nhash = \"{hash}\"\nnamespaces = [\"/\"]\nverbs = [\"emit\"]\n"
    ));
    let mut command = roomcast();
    command.args(["serve", "--config", file.path(), "--otlp-sample=1"]);
    command.arg(format!("--otlp-endpoint=http://{collector}"));
    // Batches are sent at once.
    process::serve(command.env("OTEL_BSP_SCHEDULE_DELAY", "20"))
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
