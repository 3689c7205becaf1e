//! Everything that follows from the options' definitions in `config`: their environment
//! variables, the table for the documentation, and the remedy in errors.
//!
//! An option is defined once, with its type, default and help. Its variable, its key in
//! the file, its row in the book and its line in errors are derived from that, so none
//! of them can be forgotten or differ.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use clap::{
    Arg, Command,
    builder::StyledStr,
    error::{ContextKind, ContextValue},
};

use super::config::serve_options;

/// Prefix of the program's environment variables.
/// A variable with it that no option reads is an error.
const PREFIX: &str = "ROOMCAST_";

/// Gives each option the settings that follow from its name and type: its environment variable, and
/// for a switch the right to stand without a value.
/// For `emit`, only the options about Redis have a variable, because the others belong to one
/// message; for `token`, only the file has one, and for `token key` none; for `doctor`, those of
/// `serve` do, which have headings.
pub(super) fn complete(command: Command) -> Command {
    command.mut_subcommands(|command| {
        let command = complete(command);
        // The options of these commands that concern more than one call.
        let name = command.get_name().to_owned();
        let is_shared = |option: &Arg| match name.as_str() {
            "emit" => option.get_help_heading() == Some("Redis"),
            "token" => option.get_id() == "config",
            "key" => false,
            "doctor" => option.get_help_heading().is_some(),
            _ => true,
        };
        command.mut_args(|option| match option.get_long().map(variable) {
            Some(variable) if is_shared(&option) => complete_option(option).env(variable),
            _ => option,
        })
    })
}

fn complete_option(option: Arg) -> Arg {
    if option
        .get_value_names()
        .is_some_and(|names| names == ["BOOL"])
    {
        option
            .num_args(0..=1)
            // Otherwise, a switch without a value would take the next argument for one.
            .require_equals(true)
            .default_missing_value("true")
    } else {
        option
    }
}

/// The environment variable of an option: `ROOMCAST_` and the flag in capitals.
pub(super) fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_uppercase().replace('-', "_"))
}

/// Looks for a variable with the program's prefix that no option reads. Without this
/// check, a misspelt variable would silently leave a default in force. `others` are
/// variables to which the file refers. Returns the problem.
pub(super) fn unknown_variable(
    command: &Command,
    others: &BTreeSet<String>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Option<String> {
    let known: BTreeSet<_> = command
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .filter_map(Arg::get_env)
        .map(|variable| variable.to_string_lossy().into_owned())
        .collect();
    let (unknown, _) = environment.into_iter().find(|(name, value)| {
        let is_known = known.contains(name) || others.contains(name);
        name.starts_with(PREFIX) && !is_known && !is_service_link(name, value)
    })?;
    let tip = nearest(&unknown, &known)
        .map_or_else(String::new, |(_, name)| format!("; did you mean {name}?"));
    Some(format!(
        "the environment variable {unknown} belongs to no option, and no settings file that was read refers to it{tip} `roomcast options` lists all variables"
    ))
}

/// The name that is most similar to another one, and how similar it is.
pub(super) fn nearest<T: AsRef<str>>(
    name: &str,
    known: impl IntoIterator<Item = T>,
) -> Option<(f64, T)> {
    let known = known.into_iter();
    let known = known.map(|known| (strsim::jaro_winkler(name, known.as_ref()), known));
    known.max_by(|(one, _), (other, _)| one.total_cmp(other))
}

/// Whether Kubernetes set this variable. It sets the addresses of all services in every
/// container, and a service may be called `roomcast`.
fn is_service_link(name: &str, value: &str) -> bool {
    let has_port_number = name
        .split("_PORT_")
        .skip(1)
        .any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || has_port_number
        || (name.ends_with("_PORT") && value.contains("://"))
}

/// Writes the options of `serve` as a Markdown table to standard output.
pub(crate) fn print_table() -> io::Result<()> {
    io::stdout().write_all(table().as_bytes())
}

/// Adds the flag and the environment variable to an error about a value. The value may come from
/// either, and clap names only the flag.
pub(crate) fn with_way_out(mut error: clap::Error, command: &Command) -> clap::Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = argument
        .trim_start_matches('-')
        .split([' ', '=', '['])
        .next()
        .unwrap_or_default();
    let option = command
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .find(|option| option.get_long() == Some(flag));
    if let Some(variable) = option.and_then(Arg::get_env) {
        let variable = variable.to_string_lossy();
        let tip = format!("set it with --{flag} or the environment variable {variable}");
        let tips = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
        error.insert(ContextKind::Suggested, tips);
    }
    if let Some(option) = option
        && let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
    {
        let shown = ContextValue::String(shown(option, value));
        error.insert(ContextKind::InvalidValue, shown);
    }
    error
}

/// The value of an option as it may be shown: a key not at all, a URL without its secrets.
/// Errors and `config show` are copied into tickets.
pub(super) fn shown(option: &Arg, value: &str) -> String {
    let is_key = option
        .get_value_names()
        .is_some_and(|names| names == ["KEY"]);
    match option.is_hide_env_values_set() {
        true if is_key && value != "off" => "…".to_owned(),
        true => without_secrets(value),
        false => value.to_owned(),
    }
}

/// Removes the login and the query from a URL, because both may contain passwords and
/// errors end up in logs.
pub(super) fn without_secrets(url: &str) -> String {
    // It is cut as text, because an invalid URL is shown as well, and may hold a
    // password.
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let scheme = &url[..url.len() - rest.len()];
    let (login, place) = match rest.rsplit_once('@') {
        Some((_, place)) => ("…@", place),
        None => ("", rest),
    };
    match place.split_once('?') {
        Some((place, _)) => format!("{scheme}{login}{place}?…"),
        None => format!("{scheme}{login}{place}"),
    }
}

fn table() -> String {
    let mut text = String::from("| flag | environment | default | meaning |\n|---|---|---|---|\n");
    for option in serve_options() {
        let [flag, variable, default, help] = row(&option);
        text.push_str(&format!(
            "| `--{flag}` | `{variable}` | {default} | {help} |\n"
        ));
    }
    text
}

fn row(option: &Arg) -> [String; 4] {
    let flag = option.get_long().unwrap_or_default().to_owned();
    let variable = option
        .get_env()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let defaults: Vec<_> = option
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let default = match defaults.join(",") {
        none if none.is_empty() => "none".to_owned(),
        some => format!("`{some}`"),
    };
    let help = option
        .get_help()
        .map(ToString::to_string)
        .unwrap_or_default()
        .replace('|', "\\|");
    [flag, variable, default, help]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_url_is_shown_without_its_secrets() {
        let cases = [
            ("redis://app:a@b/c@host/x", "redis://…@host/x"),
            ("app:secret@host", "…@host"),
            ("unix://nope?user=app&pass=secret", "unix://nope?…"),
            ("redis+cluster://a:1,b:2/3", "redis+cluster://a:1,b:2/3"),
            ("", ""),
        ];
        for (url, shown) in cases {
            assert_eq!(without_secrets(url), shown);
        }
    }

    #[test]
    fn a_variable_that_no_option_reads_is_an_error_unless_kubernetes_set_it() {
        let command = super::super::config::command();
        let check = |name: &str, value: &str| {
            let others = BTreeSet::from(["ROOMCAST_SECRET".to_owned()]);
            unknown_variable(&command, &others, [(name.to_owned(), value.to_owned())])
        };
        let problem = check("ROOMCAST_PING_INTERVALL", "3s").unwrap();
        assert!(
            problem.contains("did you mean ROOMCAST_PING_INTERVAL?"),
            "{problem}"
        );
        assert!(check("ROOMCAST_PORT", "3000").is_some());
        // The options of one call of `token` and `emit` have none.
        for flag in ["ROOMCAST_USER", "ROOMCAST_VALID_FOR", "ROOMCAST_ROOM"] {
            assert!(check(flag, "1").is_some(), "{flag}");
        }
        for (name, value) in [
            ("ROOMCAST_LISTEN", "127.0.0.1:0"),
            ("ROOMCAST_PORT", "tcp://10.0.0.7:3000"),
            ("ROOMCAST_PORT_3000_TCP_ADDR", "10.0.0.7"),
            ("ROOMCAST_INTERNAL_SERVICE_HOST", "10.0.0.7"),
            ("ROOMCAST_SERVICE_PORT_HTTP", "3000"),
            ("ROOMCASTER", "1"),
            ("ROOMCAST_SECRET", "to which the file refers"),
        ] {
            assert_eq!(check(name, value), None, "{name}");
        }
    }

    #[test]
    fn the_table_has_a_complete_row_for_every_option() {
        let table = table();
        let rows: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(rows.len(), serve_options().len());
        for row in rows {
            let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            assert_eq!(cells.len(), 4, "{row}");
            assert!(
                cells.iter().all(|cell| !cell.is_empty() && *cell != "``"),
                "{row}"
            );
        }
    }

    #[test]
    fn the_table_shows_a_default_as_a_person_would_write_it() {
        let wanted = "| `--ping-interval` | `ROOMCAST_PING_INTERVAL` | `25s` | ";
        assert!(table().contains(wanted));
    }
}
