//! Emits one event with the community's emitter for Rust, whose arguments are strings:
//!
//! ```text
//! emitter-rust PORT PREFIX NAMESPACE ROOMS EVENT [ARGUMENT...]
//! ```
//!
//! ROOMS are separated by commas; none is everybody.

use std::env;

use socketio_rust_emitter::{Emitter, EmitterOpts};

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let [port, prefix, namespace, rooms, message @ ..] = &words[..] else {
        panic!("usage: emitter-rust PORT PREFIX NAMESPACE ROOMS EVENT [ARGUMENT...]");
    };
    let emitter = Emitter::new(EmitterOpts {
        host: "127.0.0.1".to_owned(),
        port: port.parse().expect("a port is a number"),
        key: Some(prefix),
        ..EmitterOpts::default()
    });
    // The main namespace is set by itself; naming it is what others have to do.
    let emitter = emitter.of(namespace);
    let rooms = rooms.split(',').filter(|room| !room.is_empty());
    let emitter = rooms.fold(emitter, |emitter, room| emitter.to(room));
    emitter.emit(message.iter().map(String::as_str).collect());
}
