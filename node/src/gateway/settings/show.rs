//! Prints settings: the commented default file, and the settings in force with their origins.
//!
//! In the default file, `# ` begins an explanation, and a `#` alone a line that can be switched on.

use clap::Arg;
use serde::Deserialize as _;
use toml::{Spanned, Table, Value, de::DeTable};

use super::{SECTIONS, file::key_of};
use crate::gateway::{
    config::{Config, ValueOrigin, serve_options},
    options::{shown, variable, without_secrets},
};

/// Shown instead of a secret.
const MASK: &str = "…";

/// The file with every option at its default and an example of every section, all switched off.
pub(crate) fn default_file() -> String {
    let mut text = String::from(
        "# Settings of roomcast serve. Remove the # of a line without a space behind it to switch it on.\n\
         # Environment variables and flags take precedence over this file.\n",
    );
    let mut heading = String::new();
    for option in serve_options() {
        let key = key_of(&option);
        if key.is_empty() {
            continue;
        }
        let its_heading = option.get_help_heading().unwrap_or_default();
        if its_heading != heading {
            its_heading.clone_into(&mut heading);
            text.push_str(&format!("\n# --- {heading}\n"));
        }
        let help = option.get_long_help().or_else(|| option.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        text.push('\n');
        for line in help.lines() {
            text.push_str(format!("# {line}").trim_end());
            text.push('\n');
        }
        text.push_str(&format!(
            "#{key} = {}\n",
            toml_value(&option, &default_of(&option))
        ));
    }
    text.push_str("\n# --- Sections\n");
    for (_, template) in SECTIONS {
        for line in template.lines() {
            let is_text = line.is_empty() || line.starts_with("# ");
            text.push_str(if is_text { "" } else { "#" });
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The settings in force, as a file. Each line names the origin of its value. Secrets are masked.
pub(crate) fn show(config: &Config) -> String {
    let mut text = String::new();
    for option in serve_options() {
        let (key, flag) = (key_of(&option), option.get_long().unwrap_or_default());
        let Some(value) = config.values.get(flag).filter(|_| !key.is_empty()) else {
            continue;
        };
        let origin = match value.origin {
            ValueOrigin::Default => "default".to_owned(),
            ValueOrigin::File => "file".to_owned(),
            ValueOrigin::Environment => variable(flag),
            ValueOrigin::Flag => format!("--{flag}"),
        };
        let shown = shown(&option, &value.text);
        text.push_str(&format!(
            "{key} = {} # {origin}\n",
            toml_value(&option, &shown)
        ));
    }
    if !config.sections.is_empty() {
        text.push_str("\n# The sections of the file\n\n");
        text.push_str(&config.sections.to_string());
    }
    text
}

/// The sections of a file as they were written: without secrets, and with them.
pub(super) fn sections(table: Spanned<DeTable<'_>>) -> (Table, Table) {
    let deserializer = toml::de::Deserializer::from(table);
    let written = Table::deserialize(deserializer).unwrap_or_default();
    let mut shown = written.clone();
    for (key, value) in &mut shown {
        mask(key, value);
    }
    (shown, written)
}

/// Secrets belong in files and variables. One that is in the settings nevertheless must not
/// appear in a terminal or a ticket.
fn mask(key: &str, value: &mut Value) {
    let is_reference = ["_file", "_env"].iter().any(|end| key.ends_with(end));
    let is_secret = ["secret", "password", "token", "hash"]
        .iter()
        .any(|word| key.split('_').any(|part| part == *word));
    match value {
        Value::String(text) if is_secret && !is_reference => MASK.clone_into(text),
        // A URL may hold a password.
        Value::String(text) if text.contains("://") => *text = without_secrets(text),
        Value::Array(items) => items.iter_mut().for_each(|item| match item {
            // The elements of a list such as `token_from` name places, not secrets.
            Value::String(_) => mask("", item),
            _ => mask(key, item),
        }),
        Value::Table(table) => table.iter_mut().for_each(|(key, value)| mask(key, value)),
        _ => {}
    }
}

fn default_of(option: &Arg) -> String {
    let values = option.get_default_values().iter();
    let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
    values.join(",")
}

/// A value as the file has to write it: numbers and switches bare, several values as a list.
fn toml_value(option: &Arg, text: &str) -> String {
    let quoted = |text: &str| Value::String(text.to_owned()).to_string();
    if option.get_value_delimiter().is_some() && text.contains(',') {
        let items: Vec<_> = text.split(',').map(quoted).collect();
        return format!("[{}]", items.join(", "));
    }
    match text {
        "true" | "false" => text.to_owned(),
        number if number.parse::<u32>().is_ok() => number.to_owned(),
        text => quoted(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::settings::File;

    fn read(text: &str) -> File {
        let path = std::env::temp_dir().join(format!("roomcast-show-{}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let file = File::read(&path, &serve_options());
        std::fs::remove_file(path).unwrap();
        file.unwrap()
    }

    #[test]
    fn the_default_file_switched_on_has_every_option_at_its_default() {
        let text: String = default_file()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(switched) if !line.starts_with("# ") => format!("{switched}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let file = read(&text);
        for option in serve_options() {
            let key = key_of(&option);
            if key.is_empty() {
                continue;
            }
            let value = file.values[option.get_long().unwrap()].join(",");
            assert_eq!(value, default_of(&option), "{key}");
        }
        for (section, _) in SECTIONS {
            assert!(file.sections.contains_key(*section), "{section}");
        }
    }

    #[test]
    fn secrets_in_sections_are_masked_and_references_to_them_are_not() {
        let document = "[jwt]\nsecret = \"s3cret\"\nsecret_file = \"/run/key\"\ntoken_from = [\"cookie:a\"]\n\
                        [[api.keys]]\nname = \"ci\"\nhash = \"abcd\"\n[hooks.x]\nurl = \"http://u:s3cret@h/p?k=s3cret\"\n";
        let shown = sections(DeTable::parse(document).unwrap()).0.to_string();
        for part in [
            "secret = \"…\"",
            "/run/key",
            "cookie:a",
            "hash = \"…\"",
            "http://…@h/p?…",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(
            !shown.contains("s3cret") && !shown.contains("abcd"),
            "{shown}"
        );
    }
}
