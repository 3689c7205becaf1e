//! The messages to emit: one from the command line, or one per line of a file.
//!
//! JSON is checked token by token and passed on unchanged, so a number keeps its digits.
//! A line has a maximum length, and only one line is in memory at a time.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use roomcast::{
    Args,
    emitter::protocol::args::{
        from_json,
        json::{MAX_DEPTH, Tokens},
    },
};
use serde::Deserialize;
use serde_json::Value;

use super::outcome::Failure;

/// The longest line of a file, in bytes.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Bytes per read, and so the most that is emitted together.
const BUFFER_BYTES: usize = 256 << 10;

/// One message.
#[derive(Debug, PartialEq)]
pub(super) struct Message {
    pub(super) event: String,
    pub(super) args: Args,
    /// In addition to those of the command line.
    pub(super) rooms: Vec<String>,
    pub(super) except: Vec<String>,
}

/// The source of the messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// One message on the command line.
    Arguments(Vec<String>),
    /// A file, with one message per line.
    File(PathBuf),
    /// Standard input, with one message per line.
    StandardInput,
}

impl Source {
    /// Returns the event too if all messages have the same. `-` means standard input: as
    /// a file, as the only argument, and in place of the event.
    pub(super) fn new(
        event: Option<String>,
        arguments: Vec<String>,
        file: Option<PathBuf>,
    ) -> (Self, Option<String>) {
        match file {
            Some(path) if path.as_os_str() == "-" => (Self::StandardInput, event),
            Some(path) => (Self::File(path), event),
            None if arguments == ["-"] => (Self::StandardInput, event),
            None if arguments.is_empty() && event.as_deref() == Some("-") => {
                (Self::StandardInput, None)
            }
            None => (Self::Arguments(arguments), event),
        }
    }
}

/// Returns the message of the command line.
pub(super) fn of_arguments(event: &str, arguments: &[String]) -> Result<Message, Failure> {
    for argument in arguments {
        check_json(argument)?;
    }
    Ok(Message {
        event: event.to_owned(),
        args: args(&arguments.join(","))?,
        rooms: Vec::new(),
        except: Vec::new(),
    })
}

/// The messages of a file, one per line. Empty lines are skipped.
pub(super) struct Lines {
    reader: BufReader<Box<dyn Read>>,
    event: Option<String>,
    buffer: Vec<u8>,
    /// Number of the line that was read last, counted from 1.
    pub(super) number: usize,
    /// Bytes that have been read.
    pub(super) read_bytes: u64,
    /// Size of the file in bytes, if known.
    pub(super) total_bytes: Option<u64>,
}

impl Lines {
    /// With an event, each line is its one argument. Without one, each line is a whole message.
    pub(super) fn open(path: &Path, event: Option<String>) -> Result<Self, Failure> {
        let cannot = |error: io::Error| Failure::Input(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(cannot)?;
        let meta = file.metadata().map_err(cannot)?;
        let total_bytes = meta.is_file().then_some(meta.len());
        Ok(Self::new(Box::new(file), event, total_bytes))
    }

    pub(super) fn of_standard_input(event: Option<String>) -> Self {
        Self::new(Box::new(io::stdin()), event, None)
    }

    fn new(reader: Box<dyn Read>, event: Option<String>, total_bytes: Option<u64>) -> Self {
        Self {
            reader: BufReader::with_capacity(BUFFER_BYTES, reader),
            event,
            buffer: Vec::new(),
            number: 0,
            read_bytes: 0,
            total_bytes,
        }
    }

    /// Returns the next message, or `None` at the end.
    pub(super) fn next(&mut self) -> Option<Result<Message, Failure>> {
        loop {
            match self.read_line() {
                Ok(0) => return None,
                Ok(_) if self.buffer.trim_ascii().is_empty() => {}
                Ok(_) => return Some(self.message()),
                Err(failure) => return Some(Err(failure)),
            }
        }
    }

    /// Whether the next line is in the buffer already. Lines of a slow source are emitted
    /// as they come.
    pub(super) fn has_more_at_hand(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }

    fn read_line(&mut self) -> Result<usize, Failure> {
        self.buffer.clear();
        // One byte more, so that a line that is too long differs from the longest one.
        let mut limited = (&mut self.reader).take(MAX_LINE_BYTES as u64 + 1);
        let read = limited
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| Failure::Input(error.to_string()))?;
        self.number += 1;
        self.read_bytes += read as u64;
        if self.number == 1 {
            self.strip_byte_order_mark()?;
        }
        if read > MAX_LINE_BYTES {
            // The beginning of the next line is unknown now, so this error is final.
            let problem = format!("line {} has more than {MAX_LINE_BYTES} bytes", self.number);
            return Err(Failure::Input(problem));
        }
        Ok(read)
    }

    /// Editors on Windows begin UTF-8 with a mark that is not JSON. UTF-16 gets a separate error,
    /// because its lines cannot be split at a byte.
    fn strip_byte_order_mark(&mut self) -> Result<(), Failure> {
        match self.buffer.as_slice() {
            [0xEF, 0xBB, 0xBF, ..] => drop(self.buffer.drain(..3)),
            [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => {
                let problem = "the input is UTF-16: save it as UTF-8";
                return Err(Failure::Input(problem.to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    fn message(&self) -> Result<Message, Failure> {
        let text = std::str::from_utf8(&self.buffer)
            .map_err(|error| Failure::Json(error.to_string()))?
            .trim();
        match &self.event {
            Some(event) => of_arguments(event, &[text.to_owned()]),
            None => Message::read(text),
        }
    }
}

/// A line that contains a whole message.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    event: String,
    #[serde(default)]
    args: Vec<Value>,
    #[serde(default)]
    rooms: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
}

impl Message {
    fn read(text: &str) -> Result<Self, Failure> {
        let line: Line = from_json(text).map_err(|error| Failure::Json(in_column(&error)))?;
        let values: Vec<_> = line.args.iter().map(Value::to_string).collect();
        Ok(Self {
            event: line.event,
            args: args(&values.join(","))?,
            rooms: line.rooms,
            except: line.except,
        })
    }
}

fn check_json(text: &str) -> Result<(), Failure> {
    // One level is the array of arguments.
    let tokens = Tokens::new(text, MAX_DEPTH - 1);
    tokens.finish().map_err(|error| {
        let shown = shortened(text);
        let tip = if is_bare_word(text) {
            format!(
                "; a JSON string needs quotes, and the shell takes one pair away: '\"{}\"'",
                shown.trim_matches('`')
            )
        } else {
            String::new()
        };
        Failure::Json(format!("{shown}: {error}{tip}"))
    })
}

/// Whether a text looks like a JSON string without its quotes.
fn is_bare_word(text: &str) -> bool {
    text.starts_with(char::is_alphabetic) && !text.contains(['"', '{', '['])
}

fn args(values: &str) -> Result<Args, Failure> {
    let json = format!("[{values}]");
    Args::from_text(json.into(), Vec::new()).map_err(|error| Failure::Json(error.to_string()))
}

/// The problem without serde's line number, which is always 1: the caller adds the line
/// of the file.
fn in_column(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    match text.strip_suffix(&format!(" at line {line} column {column}")) {
        Some(problem) => format!("{problem} at column {column}"),
        None => text,
    }
}

/// The beginning of a text, short enough for an error message.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str, event: Option<&str>) -> Vec<Result<Message, Failure>> {
        let reader = Box::new(text.as_bytes());
        let mut lines = Lines::new(reader, event.map(str::to_owned), None);
        std::iter::from_fn(|| lines.next()).collect()
    }

    fn json(message: &Result<Message, Failure>) -> &str {
        message.as_ref().unwrap().args.json()
    }

    #[test]
    fn arguments_pass_as_they_are_written_with_numbers_in_their_one_form() {
        let arguments = ["1e400", r#"{"b":1,"a":[1.0]}"#, r#""x""#].map(str::to_owned);
        let message = of_arguments("news", &arguments).unwrap();
        assert_eq!(message.args.json(), r#"[null,{"b":1,"a":[1]},"x"]"#);
        assert_eq!(of_arguments("news", &[]).unwrap().args.json(), "[]");
    }

    #[test]
    fn what_is_not_one_json_value_is_refused() {
        for text in ["", "hello", "{", "1,2", "1 2", "[1]]", "'a'", "{\"a\":}"] {
            let refusal = of_arguments("news", &[text.to_owned()]);
            assert!(matches!(refusal, Err(Failure::Json(_))), "{text}");
        }
        let deep = "[".repeat(1_000);
        assert!(of_arguments("news", &[deep]).is_err());
    }

    #[test]
    fn with_an_event_each_line_is_its_argument() {
        let messages = lines("1\n\n  [1, 2] \r\n{\"a\":null}", Some("tick"));
        let texts: Vec<_> = messages.iter().map(json).collect();
        assert_eq!(texts, ["[1]", "[[1, 2]]", "[{\"a\":null}]"]);
    }

    #[test]
    fn without_an_event_each_line_says_all() {
        let text = "{\"event\":\"a\",\"args\":[1,\"x\"],\"rooms\":[\"r\"],\"except\":[\"s\"]}\n\
                    {\"event\":\"b\"}\n{\"event\":\"c\",\"room\":\"r\"}\n[]\n";
        let messages = lines(text, None);
        let all = messages[0].as_ref().unwrap();
        assert_eq!((all.event.as_str(), all.args.json()), ("a", "[1,\"x\"]"));
        assert_eq!(
            (&all.rooms[..], &all.except[..]),
            (&["r".into()][..], &["s".into()][..])
        );
        assert_eq!(json(&messages[1]), "[]");
        assert!(matches!(&messages[2], Err(Failure::Json(problem))
            if problem.contains("`room`") && problem.ends_with("` at column 19")));
        assert!(matches!(&messages[3], Err(Failure::Json(_))));
    }

    #[test]
    fn a_wrong_line_does_not_hide_the_next_one() {
        let messages = lines("1\noops\n3\n", Some("tick"));
        assert_eq!((json(&messages[0]), json(&messages[2])), ("[1]", "[3]"));
        assert!(matches!(messages[1], Err(Failure::Json(_))));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let input = b"\xEF\xBB\xBF1\n2\n".as_slice();
        let mut lines = Lines::new(Box::new(input), Some("tick".to_owned()), None);
        assert_eq!(lines.next().unwrap().unwrap().args.json(), "[1]");
        assert_eq!(lines.next().unwrap().unwrap().args.json(), "[2]");
        assert!(lines.next().is_none());
        let input = b"\xFF\xFE1\0\n\0".as_slice();
        let mut lines = Lines::new(Box::new(input), Some("tick".to_owned()), None);
        let failure = lines.next().unwrap().unwrap_err().to_string();
        assert!(failure.contains("UTF-16"), "{failure}");
    }

    #[test]
    fn a_string_without_quotes_is_an_error_that_shows_them() {
        let failure = of_arguments("message", &["hello".to_owned()]).unwrap_err();
        assert!(failure.to_string().contains("'\"hello\"'"), "{failure}");
        let failure = of_arguments("message", &["{1}".to_owned()]).unwrap_err();
        assert!(!failure.to_string().contains("needs quotes"), "{failure}");
    }

    #[test]
    fn an_endless_line_is_refused_and_not_kept() {
        let reader = Box::new(io::repeat(b'1'));
        let mut lines = Lines::new(reader, Some("tick".to_owned()), None);
        assert!(matches!(lines.next(), Some(Err(Failure::Input(_)))));
        assert!(lines.buffer.len() <= MAX_LINE_BYTES + 1);
    }

    #[test]
    fn a_dash_is_the_standard_input() {
        let read = |event: &str, arguments: &[&str], file: Option<&str>| {
            let arguments = arguments.iter().map(ToString::to_string).collect();
            Source::new(Some(event.to_owned()), arguments, file.map(PathBuf::from))
        };
        let tick = Some("tick".to_owned());
        let file = Source::File("a.jsonl".into());
        assert_eq!(read("tick", &[], Some("a.jsonl")), (file, tick.clone()));
        for dash in [read("tick", &[], Some("-")), read("tick", &["-"], None)] {
            assert_eq!(dash, (Source::StandardInput, tick.clone()));
        }
        assert_eq!(read("-", &[], None), (Source::StandardInput, None));
        let arguments = Source::Arguments(vec!["1".into()]);
        assert_eq!(read("tick", &["1"], None), (arguments, tick));
    }
}
