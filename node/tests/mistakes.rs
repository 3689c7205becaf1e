//! Handlers that do not compile. The compiler has to name the type that does not fit and the remedy,
//! which each file in `mistakes/` states in its first lines.
//!
//! The compiler is called directly, with the library that was built for this test. So nothing is
//! built twice, and what is compared are our own words and not those of one version of the compiler.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn each_mistake_in_a_handler_is_explained() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut wrong = Vec::new();
    let mut count = 0;
    for file in files {
        count += 1;
        let source = fs::read_to_string(&file).unwrap();
        let said = without_paths(&compile(&file));
        let expected = source.lines().map_while(|line| line.strip_prefix("// "));
        for line in expected {
            let text = without_paths(line.split_once(": ").unwrap().1);
            if !said.contains(&text) {
                wrong.push(format!("{}: `{text}` is not in\n{said}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 10, "the files are found");
}

/// Whether the compiler writes the path of a name depends on what else it knows.
fn without_paths(text: &str) -> String {
    text.replace("roomcast::", "").replace("std::string::", "")
}

/// Returns what the compiler prints about a file, which it must not accept.
fn compile(file: &Path) -> String {
    let libraries = library().parent().unwrap().to_owned();
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "--crate-type=bin", "--emit=metadata"])
        .args(["-o", "/dev/null", "-L"])
        .arg(format!("dependency={}", libraries.display()))
        .arg(format!("--extern=roomcast={}", library().display()))
        .arg(file)
        .output()
        .unwrap();
    assert!(!output.status.success(), "{} compiles", file.display());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The library as it was built last, beside this test.
fn library() -> PathBuf {
    let folder = env::current_exe().unwrap().parent().unwrap().to_owned();
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let built = files.filter(|file| {
        let name = file.file_name().unwrap().to_string_lossy();
        name.starts_with("libroomcast-") && name.ends_with(".rlib")
    });
    built
        .max_by_key(|file| file.metadata().unwrap().modified().unwrap())
        .unwrap()
}
