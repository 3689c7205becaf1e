//! Reads the settings again on SIGHUP.
//!
//! ```text
//!  read and check ──► every part prepares its new value ──► every part swaps ──► log what needs a restart
//!        └── an error in any of it ──────────┴──► nothing has changed; logged and counted
//! ```
//!
//! Every step that can fail happens before the first swap, so a broken file changes nothing.
//! Preparing may wait for others, such as the issuer of a set of keys, and a signal to stop ends
//! it.

use std::{collections::BTreeMap, env, future::ready, pin::Pin};

use prometheus::{IntCounterVec, Opts};
use roomcast::Server;
use tracing::{error, info, warn};

use super::config::{Config, Job, parse};

/// Activates a prepared value. It cannot fail.
pub(crate) type Swap = Box<dyn FnOnce() + Send>;

/// A value that is being prepared.
pub(crate) type Preparing<'a> = Pin<Box<dyn Future<Output = Result<Swap, String>> + 'a>>;

/// A value that is prepared without waiting. `swap` puts it in force.
pub(crate) fn prepared<'a>(swap: Result<impl FnOnce() + Send + 'static, String>) -> Preparing<'a> {
    Box::pin(ready(swap.map(|swap| Box::new(swap) as Swap)))
}

/// A part of the program whose settings a reload can replace.
pub(crate) trait Reloadable: Send + Sync {
    /// The keys of the file that this part replaces: of options, or of sections. A `*`
    /// stands for any text.
    fn keys(&self) -> &'static [&'static str];

    /// Builds the new value completely, without effect. The error names the key.
    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a>;
}

/// The parts that a reload compares and replaces.
pub(crate) struct Reload {
    parts: Vec<Box<dyn Reloadable>>,
    /// The settings in force, as [`keys`] returns them.
    current: BTreeMap<String, String>,
    reloads: IntCounterVec,
}

impl Reload {
    pub(crate) fn new(
        config: &Config,
        server: &Server,
        parts: Vec<Box<dyn Reloadable>>,
    ) -> Result<Self, prometheus::Error> {
        let reloads = IntCounterVec::new(
            Opts::new(
                "roomcast_reloads_total",
                "Reloads of the settings, by outcome",
            ),
            &["outcome"],
        )?;
        for outcome in [APPLIED, REFUSED] {
            reloads.with_label_values(&[outcome]).reset();
        }
        server.registry().register(Box::new(reloads.clone()))?;
        Ok(Self {
            parts,
            current: keys(config),
            reloads,
        })
    }

    /// Reloads and activates the settings, or reports the reason of a failure.
    pub(crate) async fn run(&mut self) {
        let applied = match read() {
            Ok(config) => self.apply(&config).await,
            Err(error) => Err(error),
        };
        // Counted first, so that the metric has every reload of which the log has a line.
        let outcome = if applied.is_ok() { APPLIED } else { REFUSED };
        self.reloads.with_label_values(&[outcome]).inc();
        match applied {
            Ok(Changed { live, rest }) => {
                info!(changed = ?live, "reloaded the settings");
                if !rest.is_empty() {
                    warn!(settings = ?rest, "these settings have changed and need a restart");
                }
            }
            Err(error) => {
                error!(%error, "the settings were not reloaded, and nothing has changed");
            }
        }
    }

    async fn apply(&mut self, config: &Config) -> Result<Changed, String> {
        let mut swaps = Vec::new();
        for part in &self.parts {
            swaps.push(part.prepare(config).await?);
        }
        swaps.into_iter().for_each(|swap| swap());
        let later = keys(config);
        let changed = changed_keys(&self.current, &later);
        let (live, rest): (Vec<_>, Vec<_>) = changed.into_iter().partition(|key| self.is_live(key));
        // Settings that need a restart stay listed until there is one.
        for key in &live {
            match later.get(key) {
                Some(value) => drop(self.current.insert(key.clone(), value.clone())),
                None => drop(self.current.remove(key)),
            }
        }
        Ok(Changed { live, rest })
    }

    fn is_live(&self, key: &str) -> bool {
        let mut patterns = self.parts.iter().flat_map(|part| part.keys());
        patterns.any(|pattern| match pattern.split_once('*') {
            Some((start, end)) => key
                .strip_prefix(start)
                .is_some_and(|rest| rest.ends_with(end)),
            None => *pattern == key,
        })
    }
}

/// The keys whose values a reload has changed.
struct Changed {
    live: Vec<String>,
    /// Those that need a restart.
    rest: Vec<String>,
}

/// The settings as a start would read them now.
fn read() -> Result<Config, String> {
    match parse(env::args_os()) {
        Ok(Job::Serve(config)) => Ok(*config),
        Ok(Job::Demo(demo)) => Ok((*demo).into()),
        Ok(_) => Err("the command does not serve".to_owned()),
        Err(error) => {
            let text = error.to_string();
            let reason = text.split("\n\n").next().unwrap_or_default();
            Err(reason.trim_start_matches("error: ").to_owned())
        }
    }
}

/// The values by key, of options and of sections. The keys of each namespace, of the API and
/// of each door are separate, because not all of them can be reloaded.
fn keys(config: &Config) -> BTreeMap<String, String> {
    let options = config.values.iter();
    let options = options.map(|(flag, value)| (flag.replace('-', "_"), value.text.clone()));
    let mut keys: BTreeMap<_, _> = options.collect();
    for (section, value) in &config.compared.0 {
        if section == NAMESPACES
            && let Some(namespaces) = value.as_table()
        {
            for (name, namespace) in namespaces {
                let namespace = namespace.as_table().into_iter().flatten();
                let of_name = namespace.map(|(key, value)| {
                    let key = format!("{NAMESPACES}.{name}.{key}");
                    (key, value.to_string())
                });
                keys.extend(of_name);
            }
        } else if section == API
            && let Some(api) = value.as_table()
        {
            keys.extend(each(API, api));
        } else if section == DOORS
            && let Some(doors) = value.as_table()
        {
            for (name, value) in doors {
                let name = format!("{DOORS}.{name}");
                let is_door = value.as_table().map(|door| keys.extend(each(&name, door)));
                // Its table opens a door, which needs a restart.
                let value = is_door.map_or_else(|| value.to_string(), |()| String::new());
                keys.insert(name, value);
            }
        } else {
            keys.insert(section.clone(), value.to_string());
        }
    }
    let served = config.namespaces().into_iter();
    keys.extend(served.map(|name| (format!("{NAMESPACES}.{name}"), String::new())));
    keys
}

/// The keys of a table, each with its value.
fn each<'a>(name: &'a str, table: &'a toml::Table) -> impl Iterator<Item = (String, String)> + 'a {
    let keys = table.iter();
    keys.map(move |(key, value)| (format!("{name}.{key}"), value.to_string()))
}

/// The keys whose values differ.
fn changed_keys(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<String> {
    let names = before.keys().chain(after.keys());
    let changed = names.filter(|name| before.get(*name) != after.get(*name));
    let mut changed: Vec<_> = changed.cloned().collect();
    changed.sort();
    changed.dedup();
    changed
}

/// A section whose keys are compared one by one.
const NAMESPACES: &str = "namespaces";

/// Others.
const API: &str = "api";
const DOORS: &str = "doors";

const APPLIED: &str = "applied";

const REFUSED: &str = "refused";
