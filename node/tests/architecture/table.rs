//! Who may import whom: the table of the design, as data.

/// What the code of one module, and of those in it, may name.
pub(crate) struct Row {
    /// As in a path: crate, then modules. The program `roomcast` is the crate `program`.
    pub(crate) module: &'static str,
    /// Beginnings of paths. [`EXTERNAL`] is every crate but our own ones. What is in the module
    /// itself needs no mention.
    pub(crate) may: &'static [&'static str],
    /// Exceptions from `may`.
    pub(crate) never: &'static [&'static str],
}

pub(crate) const EXTERNAL: &str = "external";
pub(crate) const OWN_CRATES: [&str; 4] = [
    "roomcast",
    "roomcast_adapter",
    "roomcast_emitter",
    "program",
];

/// What a sans-IO module does not take from the standard library.
const IO_AND_TIME: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// The language of the cluster: what it may be made of. No runtime, no Redis.
const LANGUAGE: &[&str] = &[
    "std",
    "bytes",
    "rmpv",
    "serde",
    "serde_json",
    "sha1",
    "thiserror",
    "roomcast_emitter::args",
    "roomcast_emitter::event",
    "roomcast_emitter::id",
    "roomcast_emitter::message",
    "roomcast_emitter::msgpack",
    "roomcast_emitter::question",
    "roomcast_emitter::target",
    "roomcast_emitter::channel",
    "roomcast_emitter::wire",
];

pub(crate) const TABLE: &[Row] = &[
    Row {
        module: "roomcast_emitter",
        may: &[EXTERNAL],
        never: &["axum", "hyper", "http", "tungstenite"],
    },
    Row {
        module: "roomcast_emitter::wire",
        may: LANGUAGE,
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast_emitter::channel",
        may: LANGUAGE,
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast_emitter::target",
        may: LANGUAGE,
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast_emitter::question",
        may: LANGUAGE,
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast_emitter::args",
        may: LANGUAGE,
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast_emitter::msgpack",
        may: LANGUAGE,
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast_emitter::resp",
        may: &["std", "bytes", "thiserror"],
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast_adapter",
        may: &[EXTERNAL, "roomcast_emitter"],
        never: &["axum", "hyper", "http", "tungstenite"],
    },
    Row {
        module: "roomcast_adapter::rooms",
        may: &[
            "std",
            "hashbrown",
            "smallvec",
            "roomcast_emitter::target",
            "roomcast_adapter::Member",
            "roomcast_adapter::SocketId",
        ],
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast_adapter::directory",
        may: &["std", "hashbrown", "parking_lot", "roomcast_adapter::rooms"],
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast::engine_io",
        may: &[
            "std",
            "bytes",
            "serde",
            "serde_json",
            "base64",
            "thiserror",
            "roomcast::clock",
        ],
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast::socket_io",
        may: &[
            "std",
            "bytes",
            "serde",
            "serde_json",
            "base64",
            "thiserror",
            "roomcast_emitter::args",
            "roomcast_emitter::event",
            "roomcast_emitter::msgpack",
        ],
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast::clock",
        may: &["std", "tokio::time"],
        never: &[],
    },
    Row {
        module: "roomcast::close",
        may: &["std", "thiserror"],
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast::ids",
        may: &["std", "parking_lot", "rand", "roomcast_adapter::SocketId"],
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast::metrics",
        may: &["std", "prometheus", "roomcast::close"],
        never: IO_AND_TIME,
    },
    Row {
        module: "roomcast::transport",
        may: &[
            EXTERNAL,
            "roomcast::engine_io",
            "roomcast::clock",
            "roomcast::close",
            "roomcast::ids",
            "roomcast::metrics",
        ],
        never: &[],
    },
    Row {
        module: "roomcast::server",
        may: &[
            EXTERNAL,
            "roomcast_adapter",
            "roomcast_emitter",
            "roomcast::engine_io",
            "roomcast::socket_io",
            "roomcast::transport",
            "roomcast::clock",
            "roomcast::close",
            "roomcast::ids",
            "roomcast::metrics",
        ],
        never: &[],
    },
    // The library has no public modules, so `roomcast::` is its public names and nothing else.
    Row {
        module: "program",
        may: &[EXTERNAL, "roomcast"],
        never: &["tungstenite"],
    },
];
