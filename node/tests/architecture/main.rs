//! The architecture as a test: who may import whom, who reads the clock and makes random numbers,
//! and how large and how well described a file is.
//!
//! All sources of the three crates are read, not compiled. A violation names the file, the line and
//! the rule. Below are the tests that hold everywhere, then those that show that each of them can
//! fail.

use checks::{
    Check, MAX_LINES_OF_CODE, Violation, begins, check_clock, check_docs, check_entropy,
    check_imports, check_modules, check_reasons, check_size,
};
use paths::paths;
use source::{Source, all_sources};
use table::TABLE;

mod checks;
mod paths;
mod source;
mod table;

fn hold_everywhere(check: Check) {
    let violations: Vec<_> = all_sources().iter().flat_map(check).collect();
    let lines: Vec<_> = violations.iter().map(Violation::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

#[test]
fn imports_follow_the_table() {
    hold_everywhere(check_imports);
}

#[test]
fn modules_have_files_of_their_own() {
    hold_everywhere(check_modules);
}

#[test]
fn one_file_reads_the_clock() {
    hold_everywhere(check_clock);
}

#[test]
fn one_file_of_a_crate_makes_random_numbers() {
    hold_everywhere(check_entropy);
}

#[test]
fn files_are_one_idea() {
    hold_everywhere(check_size);
}

#[test]
fn files_say_what_they_are() {
    hold_everywhere(check_docs);
}

#[test]
fn lints_are_switched_off_for_a_reason() {
    hold_everywhere(check_reasons);
}

#[test]
fn every_module_of_the_library_is_in_the_table() {
    let sources = all_sources();
    let root = sources
        .iter()
        .find(|source| source.file == "node/src/lib.rs")
        .unwrap();
    assert!(
        !root.code.contains("pub mod "),
        "the library has no public modules"
    );
    let modules = source::declared_modules(&root.code);
    assert!(modules.len() >= 8, "{modules:?}");
    for module in modules {
        let name = format!("roomcast::{module}");
        assert!(
            TABLE.iter().any(|row| row.module == name),
            "`{name}` is not in the table"
        );
    }
}

#[test]
fn every_row_of_the_table_has_sources() {
    let sources = all_sources();
    for row in TABLE {
        let is_of = |source: &&Source| !source.is_test && begins(&source.module, row.module);
        let paths = sources
            .iter()
            .filter(is_of)
            .map(|source| paths(source).len());
        assert!(
            paths.sum::<usize>() > 0,
            "nothing is checked of `{}`",
            row.module
        );
    }
}

/// What a check says of a made-up source: the lines of its violations.
fn lines_of(check: Check, file: &str, text: &str) -> Vec<usize> {
    let dependencies = [
        "tokio",
        "bytes",
        "axum",
        "rand",
        "roomcast_adapter",
        "roomcast_emitter",
    ];
    let source = Source::new(file, text, &dependencies.map(str::to_owned));
    check(&source)
        .iter()
        .map(|violation| violation.line)
        .collect()
}

#[test]
fn a_forbidden_import_is_found_however_it_is_written() {
    let nested = "node/src/engine_io/deep/x.rs";
    for (file, text, lines) in [
        (
            "node/src/engine_io/x.rs",
            "use bytes::Bytes;\nuse tokio::time::sleep;",
            &[2][..],
        ),
        (
            "node/src/engine_io/x.rs",
            "use crate::{\n    clock::Time,\n    socket_io::json,\n};",
            &[3],
        ),
        (
            "node/src/engine_io/x.rs",
            "fn f() {\n    super::super::server::run()\n}",
            &[2],
        ),
        (nested, "use super::super::{packet, open::Query};", &[]),
        (
            nested,
            "use super::super::super::transport::frame as f;",
            &[1],
        ),
        (
            "node/src/engine_io/x.rs",
            "fn f() -> ::tokio::time::Instant;",
            &[1],
        ),
        ("node/src/engine_io/x.rs", "#[tokio::test]\nfn f() {}", &[1]),
        (
            "node/src/engine_io/x.rs",
            "use std::{io, net};\nuse std::time::Instant;",
            &[1, 2],
        ),
        (
            "node/src/engine_io/x.rs",
            "use roomcast_emitter::args::Args;",
            &[1],
        ),
        (
            "node/src/socket_io/x.rs",
            "use roomcast_emitter::{args::Args, target::Target};",
            &[1],
        ),
        (
            "node/src/socket_io/x.rs",
            "use crate::engine_io::packet;",
            &[1],
        ),
        (
            "node/src/transport/x.rs",
            "use tokio::net;\nuse crate::socket_io::encode;",
            &[2],
        ),
        (
            "node/src/transport/x.rs",
            "use crate::{Server, ids::Ids};",
            &[1],
        ),
        (
            "node/src/transport/x.rs",
            "use roomcast_adapter::SocketId;",
            &[1],
        ),
        ("node/src/transport.rs", "use crate::*;", &[1]),
        (
            "node/src/server/x.rs",
            "fn f() { crate::gateway::run() }",
            &[1],
        ),
        (
            "node/src/gateway/x.rs",
            "use roomcast::Server;\nuse roomcast_adapter::Adapter;",
            &[2],
        ),
        (
            "node/src/gateway/x.rs",
            "use super::config;\nuse crate::gateway::run;",
            &[],
        ),
        ("adapter/src/rooms.rs", "use tokio::sync::Mutex;", &[1]),
        (
            "adapter/src/directory.rs",
            "use crate::shards::Shards;",
            &[1],
        ),
        (
            "adapter/src/bus.rs",
            "use tokio::net;\nuse axum::Router;",
            &[2],
        ),
        (
            "emitter/src/wire.rs",
            "mod tokio_like;\npub use tokio::spawn;",
            &[2],
        ),
        ("emitter/src/link.rs", "use axum::Router;", &[1]),
    ] {
        assert_eq!(
            lines_of(check_imports, file, text),
            lines,
            "{file}:\n{text}"
        );
    }
}

#[test]
fn what_is_only_said_or_only_tested_imports_nothing() {
    for text in [
        "// use tokio::net;\n/* crate::server::x /* nested */ tokio::spawn */\n//! tokio::time",
        "const A: &str = \"use tokio::net; \\\" crate::server::x\";",
        "const A: &[u8] = br#\"\" crate::server::x\"#;\nconst B: char = '\"';",
        "#[cfg(test)]\nmod tests {\n    use tokio::net;\n    fn f() { { crate::server::f() } }\n}",
        "#[cfg(test)]\nuse tokio::{net, time};",
        "struct A<'a>(&'a str);\nimpl A<'_> { fn f() { a.tokio::<u8>() } }",
    ] {
        let lines = lines_of(check_imports, "node/src/engine_io/x.rs", text);
        assert!(lines.is_empty(), "{lines:?} of:\n{text}");
    }
    let behind = "const A: char = '\\'';\n#[cfg(test)]\nmod tests {}\nuse tokio::net;";
    assert_eq!(
        lines_of(check_imports, "node/src/engine_io/x.rs", behind),
        [4]
    );
}

#[test]
fn clocks_and_entropy_are_found_where_they_are_read() {
    let now = "fn f() {\n    let now = tokio::time::Instant::now();\n}";
    assert_eq!(lines_of(check_clock, "node/src/transport/x.rs", now), [2]);
    assert_eq!(lines_of(check_clock, "adapter/src/rooms.rs", now), [2]);
    assert!(lines_of(check_clock, "adapter/src/link/task.rs", now).is_empty());
    assert!(lines_of(check_clock, "node/src/clock.rs", now).is_empty());
    let wall = "fn f() -> SystemTime {\n    SystemTime::now()\n}";
    assert_eq!(lines_of(check_clock, "node/src/clock.rs", wall), [2]);
    assert!(lines_of(check_clock, "node/src/transport/handshake.rs", wall).is_empty());
    assert_eq!(
        lines_of(
            check_clock,
            "emitter/src/x.rs",
            "fn f() { start.elapsed(); }"
        ),
        [1]
    );

    for text in ["\nuse rand::RngExt;", "\nfn f() -> u8 { rand::random() }"] {
        assert_eq!(lines_of(check_entropy, "node/src/server/x.rs", text), [2]);
        assert!(lines_of(check_entropy, "node/src/ids.rs", text).is_empty());
    }
}

#[test]
fn files_that_are_large_or_undescribed_are_found() {
    let file = "node/src/server/x.rs";
    let code = "fn f() {}\n// why\n\n".repeat(MAX_LINES_OF_CODE - 1);
    let tests = "#[cfg(test)]\nmod tests {\n    fn f() {}\n}\n";
    assert!(lines_of(check_size, file, &format!("{code}{tests}")).is_empty());
    assert_eq!(
        lines_of(check_size, file, &format!("{code}fn g() {{}}")).len(),
        1
    );

    assert!(lines_of(check_docs, file, "//! What it is.\n").is_empty());
    for text in ["", "use std::fmt;\n//! Too late.", "// What it is."] {
        assert_eq!(lines_of(check_docs, file, text), [1]);
    }
    let inline = "mod a;\npub(crate) mod b {\n    use super::c;\n}\nfn modern() {}";
    assert_eq!(lines_of(check_modules, file, inline), [2]);
}

#[test]
fn lints_without_a_reason_are_found() {
    let file = "node/src/server/x.rs";
    let bare = "#[allow(dead_code)]\nfn f() {}\n#[cfg(test)]\nmod tests {\n#![expect(unused)]\n}";
    assert_eq!(lines_of(check_reasons, file, bare), [1, 5]);
    let reasoned = "#[allow(\n    dead_code,\n    reason = \"it is [not] dead\"\n)]\nfn f() {}";
    assert!(lines_of(check_reasons, file, reasoned).is_empty());
}
