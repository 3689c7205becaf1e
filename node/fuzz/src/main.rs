//! One program for all fuzz targets, so that there is one build and one link.
//!
//! `../run` builds it and chooses the target with `ROOMCAST_FUZZ_TARGET`. The decoders are
//! included from the sources of `roomcast`, where they are private; nothing else of it is built.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod targets;
mod wire;

#[expect(
    dead_code,
    reason = "the targets use what reads, and what a round trip needs"
)]
#[path = "../../src/engine_io"]
mod engine_io {
    pub(crate) mod open;
    pub(crate) mod packet;
    pub(crate) mod payload;
    pub(crate) mod payload_v3;
}

#[expect(
    dead_code,
    reason = "the targets use what reads, and what a round trip needs"
)]
#[path = "../../src/socket_io/mod.rs"]
mod socket_io;

#[expect(dead_code, reason = "the targets use what reads")]
#[path = "../../src/transport"]
mod transport {
    pub(crate) mod websocket;
}

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("ROOMCAST_FUZZ_TARGET").unwrap_or_default();
    targets::find(&name).unwrap_or_else(|| {
        eprintln!(
            "ROOMCAST_FUZZ_TARGET must be one of: {}",
            targets::names().join(" ")
        );
        std::process::exit(2)
    })
});

fuzz_target!(|data: &[u8]| TARGET(data));
