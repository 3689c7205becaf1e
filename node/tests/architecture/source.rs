//! A source file: where it belongs, and its code without comments, strings and tests.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// One file. All its texts have the same lines; what was taken out are spaces.
pub(crate) struct Source {
    /// Relative to the workspace.
    pub(crate) file: String,
    /// Crate, then modules.
    pub(crate) module: Vec<String>,
    /// The crates that it may name without `use`, apart from those of the compiler.
    pub(crate) dependencies: Vec<String>,
    /// Whether it is compiled for tests only.
    pub(crate) is_test: bool,
    pub(crate) text: String,
    /// Without comments, strings and characters.
    pub(crate) with_tests: String,
    /// Without tests as well.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(file: &str, text: &str, dependencies: &[String]) -> Self {
        let with_tests = blank_text(text);
        Self {
            file: file.to_owned(),
            module: module_of(file),
            dependencies: dependencies.to_vec(),
            is_test: false,
            text: text.to_owned(),
            code: blank_tests(&with_tests),
            with_tests,
        }
    }
}

/// All files of the three crates.
pub(crate) fn all_sources() -> &'static [Source] {
    static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(read_sources);
    &SOURCES
}

fn read_sources() -> Vec<Source> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    let mut sources = Vec::new();
    for folder in ["emitter", "adapter", "node"] {
        let manifest =
            fs::read_to_string(workspace.join(folder).join("Cargo.toml")).expect("a manifest");
        let dependencies = dependencies(&manifest);
        for path in files_under(&workspace.join(folder).join("src")) {
            let parts = path.strip_prefix(workspace).expect("a path inside").iter();
            let parts: Vec<_> = parts
                .map(|part| part.to_str().expect("a name in UTF-8"))
                .collect();
            let text = fs::read_to_string(&path).expect("a source");
            sources.push(Source::new(&parts.join("/"), &text, &dependencies));
        }
    }
    mark_tests(&mut sources);
    assert!(sources.len() > 60, "sources are where they are looked for");
    sources
}

/// The modules that a file declares, each with a file of its own.
pub(crate) fn declared_modules(code: &str) -> Vec<String> {
    let words: Vec<_> = code.split_whitespace().collect();
    let declared = words.windows(2).filter(|pair| pair[0] == "mod");
    declared
        .filter_map(|pair| Some(pair[1].strip_suffix(';')?.to_owned()))
        .collect()
}

pub(crate) fn line_at(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn dependencies(manifest: &str) -> Vec<String> {
    let section = manifest
        .split("\n[dependencies]\n")
        .nth(1)
        .expect("dependencies");
    let section = section.split("\n[").next().unwrap_or_default();
    let lines = section.lines().filter(|line| !line.starts_with('#'));
    let names = lines.filter_map(|line| line.split(['.', ' ', '=']).next());
    names
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn module_of(file: &str) -> Vec<String> {
    let parts: Vec<_> = file.trim_end_matches(".rs").split('/').collect();
    let (&folder, modules) = parts.split_first().expect("a path");
    let is_program = modules.starts_with(&["src", "gateway"]) || modules == ["src", "main"];
    let root = match folder {
        "node" if is_program => "program",
        "node" => "roomcast",
        "adapter" => "roomcast_adapter",
        "emitter" => "roomcast_emitter",
        _ => panic!("{file} is in no crate"),
    };
    let modules = modules[1..].iter().copied();
    let named = modules.filter(|name| !["mod", "lib", "main"].contains(name));
    std::iter::once(root)
        .chain(named)
        .map(str::to_owned)
        .collect()
}

/// Marks the files of modules that are declared for tests, and of the modules in these.
fn mark_tests(sources: &mut [Source]) {
    let mut tests = Vec::new();
    for source in sources.iter() {
        let all = declared_modules(&source.with_tests);
        let built = declared_modules(&source.code);
        for module in all.into_iter().filter(|module| !built.contains(module)) {
            tests.push([&source.module[..], &[module]].concat());
        }
    }
    for source in sources {
        source.is_test = tests.iter().any(|test| source.module.starts_with(test));
    }
}

/// Puts spaces in place of comments, strings and characters.
fn blank_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = ' ';
    while let Some(next) = rest.chars().next() {
        let len = match opaque_len(rest, before) {
            0 => {
                out.push(next);
                next.len_utf8()
            }
            len => {
                out.extend(rest[..len].chars().map(blank));
                len
            }
        };
        before = next;
        rest = &rest[len..];
    }
    out
}

fn blank(character: char) -> char {
    if character == '\n' { '\n' } else { ' ' }
}

/// The length of a comment, string or character at the start of `text`, or 0.
fn opaque_len(text: &str, before: char) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment_len(text);
    }
    if text.starts_with('"') {
        return quoted_len(text, '"');
    }
    if text.starts_with('\'') {
        let mut characters = text.chars().skip(1);
        let is_character = characters.next() == Some('\\') || characters.next() == Some('\'');
        return if is_character {
            quoted_len(text, '\'')
        } else {
            0
        };
    }
    let starts_word = !(before.is_alphanumeric() || before == '_');
    let raw = text.strip_prefix(['b', 'c']).unwrap_or(text);
    if starts_word && let Some(raw) = raw.strip_prefix('r') {
        let fence = raw.len() - raw.trim_start_matches('#').len();
        if raw[fence..].starts_with('"') {
            let end = format!("\"{}", &raw[..fence]);
            let inside = text.len() - raw.len() + fence + 1;
            return text[inside..]
                .find(&end)
                .map_or(text.len(), |at| inside + at + end.len());
        }
    }
    0
}

fn block_comment_len(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Puts spaces in place of every item under `#[cfg(test)]`. Strings are gone already.
fn blank_tests(text: &str) -> String {
    const ATTRIBUTE: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(ATTRIBUTE) {
        let end = at + item_len(&rest[at..]);
        out.push_str(&rest[..at]);
        out.extend(rest[at..end].chars().map(blank));
        rest = &rest[end..];
    }
    out + rest
}

/// Up to the semicolon or the closing brace that ends the item at the start of `text`.
fn item_len(text: &str) -> usize {
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        match character {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            _ => {}
        }
        let ends_block = character == '}' && !text[at + 1..].trim_start().starts_with(';');
        if depth == 0 && (character == ';' || ends_block) {
            return at + 1;
        }
    }
    text.len()
}

#[test]
fn files_of_test_modules_are_known_from_their_declaration() {
    let mut sources = [
        Source::new(
            "adapter/src/a.rs",
            "#[cfg(test)]\npub(crate) mod fake;\nmod real;",
            &[],
        ),
        Source::new("adapter/src/a/fake.rs", "mod inner;", &[]),
        Source::new("adapter/src/a/fake/inner.rs", "", &[]),
        Source::new("adapter/src/a/real.rs", "", &[]),
        Source::new("adapter/src/fake.rs", "", &[]),
    ];
    mark_tests(&mut sources);
    let tests = sources.map(|source| source.is_test);
    assert_eq!(tests, [false, true, true, false, false]);
}

#[test]
fn dependencies_are_read_from_a_manifest() {
    let manifest = "[package]\nname = \"x\"\n\n[dependencies]\n# Why.\nserde_json = { x = 1 }\n\
                    a-b.workspace = true\nc=\"1\"\n\n[dev-dependencies]\nd = \"1\"\n";
    assert_eq!(dependencies(manifest), ["serde_json", "a_b", "c"]);
}
