//! The paths that a source names, in `use` declarations and elsewhere, made absolute.
//!
//! Names that are neither of a crate nor relative to one are local and not looked at: whatever
//! brought them in is looked at itself.

use crate::source::{Source, declared_modules, line_at};

pub(crate) struct Path {
    pub(crate) line: usize,
    /// Crate, then modules and names.
    pub(crate) segments: Vec<String>,
}

pub(crate) fn paths(source: &Source) -> Vec<Path> {
    let tokens = tokens(&source.code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_use = tokens[at].1 == "use" && tokens.get(at + 1).is_some_and(|next| next.1 != "<");
        if is_use {
            at = use_tree(&tokens, at + 1, &[], &mut found);
        } else if starts_path(&tokens, at) {
            let start = tokens[at].0;
            let mut segments = vec![tokens[at].1.to_owned()];
            while is_at(&tokens, at + 1, "::") && is_word(&tokens, at + 2) {
                segments.push(tokens[at + 2].1.to_owned());
                at += 2;
            }
            found.push((start, segments));
            at += 1;
        } else {
            at += 1;
        }
    }
    let modules = declared_modules(&source.code);
    let absolute = |(offset, segments)| {
        let line = line_at(&source.code, offset);
        let segments = absolute(source, &modules, segments)?;
        Some(Path { line, segments })
    };
    found.into_iter().filter_map(absolute).collect()
}

/// A word, `::` or another character, and the offset where it stands.
type Token<'a> = (usize, &'a str);

fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = code[at..].chars().next() {
        let rest = &code[at..];
        let word = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        let len = match word {
            0 if rest.starts_with("::") => 2,
            0 => first.len_utf8(),
            len => len,
        };
        if !first.is_whitespace() {
            tokens.push((at, &rest[..len]));
        }
        at += len;
    }
    tokens
}

fn is_at(tokens: &[Token<'_>], at: usize, text: &str) -> bool {
    tokens.get(at).is_some_and(|token| token.1 == text)
}

fn is_word(tokens: &[Token<'_>], at: usize) -> bool {
    let is_word = |token: &Token<'_>| token.1.starts_with(|c: char| c.is_alphabetic() || c == '_');
    tokens.get(at).is_some_and(is_word)
}

/// Whether a path of several segments begins here, rather than goes on.
fn starts_path(tokens: &[Token<'_>], at: usize) -> bool {
    if !is_word(tokens, at) || !is_at(tokens, at + 1, "::") {
        return false;
    }
    let Some(before) = at.checked_sub(1) else {
        return true;
    };
    let goes_on =
        is_at(tokens, before, "::") && before.checked_sub(1).is_some_and(|at| is_word(tokens, at));
    !goes_on && !is_at(tokens, before, ".")
}

/// Reads one tree of a `use` declaration and answers where it ends.
fn use_tree(
    tokens: &[Token<'_>],
    mut at: usize,
    before: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let start = at;
    let mut segments = before.to_vec();
    let mut last = tokens.get(at).map_or(0, |token| token.0);
    while let Some(&(offset, text)) = tokens.get(at) {
        match text {
            "," | ";" | "}" => break,
            "{" => {
                while !is_at(tokens, at, "}") && at < tokens.len() {
                    at = use_tree(tokens, at + 1, &segments, found);
                }
                return at + 1;
            }
            "as" => at += 1,
            "::" | "*" => {}
            "self" if !segments.is_empty() => {}
            word => {
                last = offset;
                segments.push(word.to_owned());
            }
        }
        at += 1;
    }
    // Behind the last comma in braces may be nothing.
    if at > start {
        found.push((last, segments));
    }
    at
}

fn absolute(source: &Source, modules: &[String], segments: Vec<String>) -> Option<Vec<String>> {
    let (first, rest) = segments.split_first()?;
    let mut module = source.module.clone();
    match first.as_str() {
        "crate" => module.truncate(1),
        "self" => {}
        "super" => {
            let supers = segments
                .iter()
                .take_while(|segment| *segment == "super")
                .count();
            module.truncate(module.len().saturating_sub(supers));
            return Some([&module[..], &segments[supers..]].concat());
        }
        "std" | "core" | "alloc" => return Some(segments),
        // The program sees the library by its name.
        "roomcast" => return Some(segments),
        name if source.dependencies.iter().any(|known| known == name) => return Some(segments),
        name if modules.iter().any(|known| known == name) => {
            return Some([&module[..], &segments[..]].concat());
        }
        _ => return None,
    }
    Some([&module[..], rest].concat())
}

#[test]
fn trees_and_plain_paths_become_absolute() {
    let text = "\
        mod child;\n\
        use std::{fmt, io::{self, Read as _}};\n\
        use super::{a::{B, c::*}, self as parent, super::up};\n\
        pub(crate) use self::child::D;\n\
        fn f(x: crate::e::F<tokio::G>) -> impl Sized + use<> { Self::h(child::i::<u8>(), x.crate_::y) }\n\
        use {bytes::Bytes};";
    let dependencies = ["tokio", "bytes"].map(str::to_owned);
    let source = Source::new("adapter/src/m/n.rs", text, &dependencies);
    let seen: Vec<_> = paths(&source)
        .into_iter()
        .map(|path| format!("{} {}", path.line, path.segments.join("::")))
        .collect();
    let expected = [
        "2 std::fmt",
        "2 std::io",
        "2 std::io::Read",
        "3 roomcast_adapter::m::a::B",
        "3 roomcast_adapter::m::a::c",
        "3 roomcast_adapter::m",
        "3 roomcast_adapter::up",
        "4 roomcast_adapter::m::n::child::D",
        "5 roomcast_adapter::e::F",
        "5 tokio::G",
        "5 roomcast_adapter::m::n::child::i",
        "6 bytes::Bytes",
    ];
    assert_eq!(seen, expected);
}
