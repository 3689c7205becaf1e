//! Reads the file. An error names the file, the line, the key and, for an unknown key, the nearest
//! valid one. All problems of flat keys are reported together, and the first one of the sections.
//!
//! ```text
//!  text ─► tables with positions ─┬─ key of an option ─► value as text ─► checked by clap
//!                                 ├─ known section ────► kept, and read by serde with the others
//!                                 └─ anything else ────► problem, with the nearest key
//! ```
//!
//! Values of flat keys are checked by the parsers of the flags, so a file cannot
//! contain anything that a flag would refuse, and both have the same error texts.
//! Sections have no flags, so serde reads them. Its error has only a position, from
//! which the path of the key is found again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{
    Arg, Command,
    builder::Resettable,
    error::{ContextKind, ContextValue, Error as ClapError},
};
use serde::Deserialize as _;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{SECTIONS, Settings, show};
use crate::gateway::options::nearest;

/// A file whose keys are known and whose values are valid.
#[derive(Debug, Default)]
pub(crate) struct File {
    /// The values of options, by flag.
    pub(crate) values: BTreeMap<String, Vec<String>>,
    pub(crate) settings: Settings,
    /// The sections as they were written, without secrets.
    pub(crate) sections: toml::Table,
    /// The same with secrets. It serves comparisons and is never shown.
    pub(crate) compared: Compared,
    /// Names of environment variables to which keys such as `secret_env` refer.
    pub(crate) variables: BTreeSet<String>,
}

/// The sections with their secrets, which only [`Config`](crate::gateway::Config) and a reload compare.
#[derive(Clone, Default)]
pub(crate) struct Compared(pub(crate) toml::Table);

impl fmt::Debug for Compared {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compared").finish_non_exhaustive()
    }
}

/// An error in a file.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.lines())]
pub(crate) struct FileError {
    path: PathBuf,
    problems: Vec<Problem>,
}

#[derive(Debug, PartialEq, Eq)]
struct Problem {
    /// Zero if it applies to the whole file.
    line: usize,
    key: String,
    text: String,
}

impl FileError {
    fn lines(&self) -> String {
        let path = self.path.display();
        let lines = self.problems.iter().map(|problem| match problem.line {
            0 => format!("{path}: {}", problem.text),
            line => format!("{path}:{line}: {problem}"),
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => f.write_str(&self.text),
            key => write!(f, "{key}: {}", self.text),
        }
    }
}

impl File {
    /// Reads a file with the keys that belong to these options.
    pub(crate) fn read(path: &Path, options: &[Arg]) -> Result<Self, FileError> {
        let failed = |problems| FileError {
            path: path.to_owned(),
            problems,
        };
        let text = fs::read_to_string(path).map_err(|error| {
            failed(vec![Problem {
                line: 0,
                key: String::new(),
                text: error.to_string(),
            }])
        })?;
        Self::parse(&text, options).map_err(failed)
    }

    fn parse(text: &str, options: &[Arg]) -> Result<Self, Vec<Problem>> {
        let document = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span));
            // Other errors of the syntax have no key.
            let is_key = error.message().contains("duplicate key");
            let key = error.span().filter(|_| is_key);
            let key = key.and_then(|span| text.get(span)).unwrap_or_default();
            vec![Problem {
                line,
                key: key.to_owned(),
                text: error.message().to_owned(),
            }]
        })?;
        let mut file = Self::default();
        let mut problems = Vec::new();
        note_variables(document.get_ref(), &mut file.variables);
        let mut sections = DeTable::new();
        for (key, value) in document.get_ref() {
            let name = key.get_ref().as_ref();
            let option = options.iter().find(|option| key_of(option) == name);
            let problem = match option {
                Some(option) => match flat(option, value) {
                    Ok(values) => {
                        let flag = option.get_long().unwrap_or_default();
                        file.values.insert(flag.to_owned(), values);
                        continue;
                    }
                    Err(problem) => problem,
                },
                None if SECTIONS.iter().any(|(section, _)| *section == name) => {
                    sections.insert(key.clone(), value.clone());
                    continue;
                }
                None => unknown(name, known_keys(options)),
            };
            problems.push(Problem {
                line: line_of(text, key.span()),
                key: name.to_owned(),
                text: problem,
            });
        }
        let sections = Spanned::new(document.span(), sections);
        // Serde takes the sections, and the place of its error is looked up in them
        // afterwards.
        let located = sections.clone();
        match Settings::deserialize(toml::de::Deserializer::from(sections)) {
            Ok(settings) => {
                file.settings = settings;
                (file.sections, file.compared.0) = show::sections(located);
            }
            Err(error) => problems.push(section_problem(text, located.get_ref(), &error)),
        }
        problems.sort_by_key(|problem| problem.line);
        if problems.is_empty() {
            Ok(file)
        } else {
            Err(problems)
        }
    }
}

/// The key of an option: its flag with underscores. Empty for the option that names the
/// file itself.
pub(crate) fn key_of(option: &Arg) -> String {
    match option.get_long() {
        Some("config") | None => String::new(),
        Some(flag) => flag.replace('-', "_"),
    }
}

fn known_keys(options: &[Arg]) -> impl Iterator<Item = String> {
    let sections = SECTIONS.iter().map(|(name, _)| (*name).to_owned());
    let keys = options.iter().map(key_of).filter(|key| !key.is_empty());
    keys.chain(sections)
}

/// The value of an option in the form in which a flag has it, checked as the flag would be.
/// A command of this option alone parses the value as its default, because a parser of
/// clap cannot be called by itself. The variable is left out, since it has precedence
/// over the file and would be checked instead.
fn flat(option: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, String> {
    let values = match value.get_ref() {
        DeValue::Array(items) if option.get_value_delimiter().is_some() => {
            let items = items.iter().map(|item| scalar(item.get_ref()));
            items.collect::<Result<Vec<_>, _>>()?
        }
        DeValue::Array(_) => return Err("takes one value, not a list".to_owned()),
        single => vec![scalar(single)?],
    };
    if values.is_empty() {
        return Err("the list is empty".to_owned());
    }
    let alone = option
        .clone()
        .env(Resettable::Reset)
        .default_values(values.clone());
    let command = Command::new("file").no_binary_name(true).arg(alone);
    match command.try_get_matches_from([""; 0]) {
        Ok(_) => Ok(values),
        Err(error) => Err(reason(&error, option.is_hide_env_values_set())),
    }
}

/// Dates and tables are refused, because no flag has such a value.
fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.as_ref().to_owned()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Boolean(is_on) => Ok(is_on.to_string()),
        other => Err(format!(
            "takes a text or a number, not a {}",
            other.type_str()
        )),
    }
}

/// Why clap refuses a value, without the flag, which the file does not mention.
/// The value of a secret must not get into logs.
fn reason(error: &ClapError, is_secret: bool) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let value = match text(ContextKind::InvalidValue) {
        Some(value) if !is_secret => format!("invalid value `{value}`"),
        _ => "invalid value".to_owned(),
    };
    let source = std::error::Error::source(error).map(ToString::to_string);
    match (source, text(ContextKind::ValidValue)) {
        (Some(source), _) => format!("{value}: {source}"),
        (None, Some(valid)) => {
            let valid = valid.split(", ").map(str::to_owned).collect::<Vec<_>>();
            format!("{value}: expected {}", valid.join(" or "))
        }
        (None, None) => value,
    }
}

/// Adds the line, the path of the key, and for an unknown key the nearest one.
fn section_problem(text: &str, table: &DeTable<'_>, error: &toml::de::Error) -> Problem {
    let span = error.span().unwrap_or_default();
    let key = path_at(table, span.start).unwrap_or_default();
    let message = error.message();
    // Serde has these errors only as text, with the wrong name first, followed by the known ones,
    // each between backticks.
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let text_of = if is_unknown {
        let mut names = message.split('`').skip(1).step_by(2).map(str::to_owned);
        let wrong = names.next().unwrap_or_default();
        if message.starts_with("unknown field") {
            unknown(&wrong, names)
        } else {
            let valid: Vec<_> = names.collect();
            format!("invalid value `{wrong}`: expected {}", valid.join(" or "))
        }
    } else {
        message.to_owned()
    };
    Problem {
        line: line_of(text, span),
        key,
        text: text_of,
    }
}

/// Adds file and line to a problem of a section that is found after the file was read. The problem
/// begins with the path of a table, and may name a key of it between backticks. The line is left
/// out if the file has neither.
pub(crate) fn placed(path: &Path, problem: &str) -> String {
    let file = path.display();
    let line = fs::read_to_string(path)
        .ok()
        .and_then(|text| line_of_problem(&text, problem));
    match line {
        Some(line) => format!("{file}:{line}: {problem}"),
        None => format!("{file}: {problem}"),
    }
}

fn line_of_problem(text: &str, problem: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let (table, rest) = problem.split_once(": ")?;
    let key = rest.split('`').nth(1).map(|key| format!("{table}.{key}"));
    let paths = key.into_iter().chain([table.to_owned()]);
    let mut offsets = paths.filter_map(|path| {
        let path = format!("{path} = 0");
        offset_of(document.get_ref(), DeTable::parse(&path).ok()?.get_ref())
    });
    offsets.next().map(|offset| line_of(text, offset..offset))
}

/// Where a table has the innermost key of a path, which is a table of single keys.
fn offset_of(table: &DeTable<'_>, path: &DeTable<'_>) -> Option<usize> {
    let (name, inner) = path.iter().next()?;
    let mut keys = table.iter();
    let (key, value) = keys.find(|(key, _)| key.get_ref() == name.get_ref())?;
    match inner.get_ref() {
        DeValue::Table(inner) => offset_of(value.get_ref().as_table()?, inner),
        _ => Some(key.span().start),
    }
}

/// An unknown key, with the nearest of those that are known.
fn unknown(key: &str, known: impl Iterator<Item = String>) -> String {
    match nearest(key, known) {
        Some((_, name)) => format!("unknown key; did you mean {name}?"),
        None => "unknown key".to_owned(),
    }
}

/// The path of the innermost key at this place, such as `namespaces."/chat".access`.
fn path_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = quoted(key.get_ref());
        let is_here = key.span().contains(&offset) || value.span().contains(&offset);
        match below(value.get_ref(), offset) {
            Some(deeper) => Some(format!("{name}{deeper}")),
            None => is_here.then_some(name),
        }
    })
}

fn below(value: &DeValue<'_>, offset: usize) -> Option<String> {
    match value {
        DeValue::Table(table) => path_at(table, offset).map(|path| format!(".{path}")),
        DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
            let deeper = below(item.get_ref(), offset);
            let is_here = item.span().contains(&offset);
            deeper
                .or_else(|| is_here.then(String::new))
                .map(|path| format!("[{index}]{path}"))
        }),
        _ => None,
    }
}

/// A key as the file has to write it.
fn quoted(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) {
        key.to_owned()
    } else {
        format!("{key:?}")
    }
}

/// Collects the variables that keys ending in `_env` name, at any depth.
/// The program warns of variables with its prefix that nothing reads, and must not warn
/// of these.
fn note_variables(table: &DeTable<'_>, variables: &mut BTreeSet<String>) {
    for (key, value) in table {
        match value.get_ref() {
            DeValue::String(name) if key.get_ref().ends_with("_env") => {
                variables.insert(name.as_ref().to_owned());
            }
            DeValue::Table(inner) => note_variables(inner, variables),
            DeValue::Array(items) => {
                let tables = items.iter().filter_map(|item| item.get_ref().as_table());
                tables.for_each(|inner| note_variables(inner, variables));
            }
            _ => {}
        }
    }
}

fn line_of(text: &str, span: Range<usize>) -> usize {
    let before = text.get(..span.start).unwrap_or(text);
    before.matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::serve_options;

    fn parse(text: &str) -> Result<File, String> {
        File::parse(text, &serve_options()).map_err(|problems| {
            let path = PathBuf::from("r.toml");
            FileError { path, problems }.to_string()
        })
    }

    #[test]
    fn keys_are_flags_with_underscores_and_take_every_form_of_value() {
        let file = parse(
            "ping_interval = \"7s\"\nmax_rooms = 1_000\nclient_rooms = true\n\
             namespace = [\"/\", \"/chat\"]\ntransports = \"polling\"\n",
        )
        .unwrap();
        let value = |flag: &str| file.values[flag].join(",");
        assert_eq!(value("ping-interval"), "7s");
        assert_eq!(value("max-rooms"), "1000");
        assert_eq!(value("client-rooms"), "true");
        assert_eq!(value("namespace"), "/,/chat");
        assert_eq!(value("transports"), "polling");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
        let error = parse("listen = \"127.0.0.1:0\"\n\nping_intervall = \"3s\"\n").unwrap_err();
        assert_eq!(
            error,
            "r.toml:3: ping_intervall: unknown key; did you mean ping_interval?"
        );
        let error = parse("[namespace.\"/chat\"]\n").unwrap_err();
        assert!(error.starts_with("r.toml:1: namespace: "), "{error}");
        let error = parse("[namespaces.\"/chat\"]\nclient_room = true\n").unwrap_err();
        assert_eq!(
            error,
            "r.toml:2: namespaces.\"/chat\".client_room: unknown key; did you mean client_rooms?"
        );
        let error = parse("[namespaces.\"/chat\"]\naccess = \"opn\"\n").unwrap_err();
        let expected =
            "r.toml:2: namespaces.\"/chat\".access: invalid value `opn`: expected closed or open";
        assert!(error.starts_with(expected), "{error}");
        assert!(parse("config = \"x\"").unwrap_err().contains("unknown key"));
    }

    #[test]
    fn a_wrong_value_is_refused_as_the_flag_would_be() {
        let cases = [
            (
                "ping_interval = 25",
                "ping_interval: invalid value `25`: the unit is missing: write 25s or 25ms",
            ),
            (
                "parser = \"xml\"",
                "parser: invalid value `xml`: expected json or msgpack",
            ),
            (
                "listen = [\"127.0.0.1:0\"]",
                "listen: takes one value, not a list",
            ),
            ("namespace = []", "namespace: the list is empty"),
            (
                "namespace = [\"chat\"]",
                "namespace: invalid value `chat`: expected a namespace that begins with /, such as / or /chat",
            ),
            (
                "client_rooms = 3",
                "client_rooms: invalid value `3`: expected true or false",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line).unwrap_err(), format!("r.toml:1: {expected}"));
        }
    }

    #[test]
    fn all_wrong_keys_are_reported_in_the_order_of_the_file() {
        let error = parse("z = 1\nping_interval = 1\na = 2\n[namespaces.x]\n").unwrap_err();
        let lines: Vec<_> = error.lines().map(|line| &line[..9]).collect();
        assert_eq!(
            lines,
            ["r.toml:1:", "r.toml:2:", "r.toml:3:", "r.toml:4:"],
            "{error}"
        );
    }

    #[test]
    fn an_error_of_the_syntax_has_its_line() {
        let error = parse("listen = \"x\"\nping = = 3\n").unwrap_err();
        assert!(error.starts_with("r.toml:2: "), "{error}");
    }

    #[test]
    fn a_key_that_is_there_twice_is_named() {
        let error = parse("max_rooms = 1\nmax_rooms = 2\n").unwrap_err();
        assert_eq!(error, "r.toml:2: max_rooms: duplicate key");
        let error = parse("[hooks.a]\nurl = \"http://a\"\n[hooks.a]\n").unwrap_err();
        assert!(error.starts_with("r.toml:3: a: duplicate key"), "{error}");
    }

    #[test]
    fn a_wrong_verb_of_a_key_is_named_with_the_verbs() {
        let hash = "0".repeat(64);
        let verbs = |verb: &str| {
            parse(&format!(
                "[[api.keys]]\nname = \"a\"\nhash = \"sha256:{hash}\"\nnamespaces = [\"*\"]\nverbs = [\"{verb}\"]\n"
            ))
        };
        assert!(verbs("*").is_ok() && verbs("emit").is_ok());
        let error = verbs("emitt").unwrap_err();
        let expected = "r.toml:5: api.keys[0].verbs: invalid value `emitt`: expected emit or join";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn a_log_that_would_keep_no_message_is_refused() {
        for log in ["history", "journal"] {
            let section = format!("[namespaces.\"/\".{log}]\nmessages = ");
            assert!(parse(&format!("{section}1\n")).is_ok());
            let error = parse(&format!("{section}0\n")).unwrap_err();
            let key = format!("r.toml:2: namespaces.\"/\".{log}.messages: ");
            assert_eq!(error, format!("{key}invalid value `0`: expected 1 or more"));
        }
    }

    #[test]
    fn a_password_of_a_wrong_url_is_not_shown() {
        let error = parse("redis = \"http://:secret@host\"\n").unwrap_err();
        assert!(
            error.contains("redis: invalid value") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn the_variables_of_secrets_are_known() {
        let document = "[[a.keys]]\nsecret_env = \"ROOMCAST_X\"\n[b]\nurl = \"ROOMCAST_Y\"\n";
        let mut variables = BTreeSet::new();
        note_variables(DeTable::parse(document).unwrap().get_ref(), &mut variables);
        assert_eq!(variables.into_iter().collect::<Vec<_>>(), ["ROOMCAST_X"]);
    }
}
