//! One program for all fuzz targets, so that there is one build and one link.
//!
//! `../run` builds it and chooses the target with `ROOMCAST_FUZZ_TARGET`. Every decoder is public in
//! `roomcast-protocol`, except the reader of responses (`response`).

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod response;
mod targets;
mod wire;

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
