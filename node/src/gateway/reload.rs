//! Reads the settings again on SIGHUP.
//!
//! ```text
//!  read and check ──► every part prepares its new value ──► every part swaps ──► log what needs a restart
//!        └── an error in any of it ──────────┴──► nothing has changed; logged and counted
//! ```
//!
//! All that can fail happens before the first swap, so a broken file changes nothing.

use std::env;

use prometheus::{IntCounterVec, Opts};
use roomcast::Server;
use tracing::{error, info, warn};

use super::config::{Config, Job, parse};

/// Puts a prepared value in force. It cannot fail.
pub(crate) type Swap = Box<dyn FnOnce() + Send>;

/// A part of the program whose settings a reload can replace.
pub(crate) trait Reloadable: Send + Sync {
    /// The keys of the file that this part replaces: of options, or of sections.
    fn keys(&self) -> &'static [&'static str];

    /// Builds the new value completely, without effect. The error names the key.
    fn prepare(&self, config: &Config) -> Result<Swap, String>;
}

/// What a reload compares and replaces.
pub(crate) struct Reload {
    parts: Vec<Box<dyn Reloadable>>,
    current: Config,
    reloads: IntCounterVec,
}

impl Reload {
    pub(crate) fn new(
        config: Config,
        server: &Server,
        parts: Vec<Box<dyn Reloadable>>,
    ) -> Result<Self, prometheus::Error> {
        let reloads = IntCounterVec::new(
            Opts::new(
                "roomcast_reloads_total",
                "Reloads of the settings, by what became of them",
            ),
            &["outcome"],
        )?;
        for outcome in [APPLIED, REFUSED] {
            reloads.with_label_values(&[outcome]).reset();
        }
        server.registry().register(Box::new(reloads.clone()))?;
        Ok(Self {
            parts,
            current: config,
            reloads,
        })
    }

    /// Reads the settings again and puts them in force, or reports why not.
    pub(crate) fn run(&mut self) {
        let outcome = match read().and_then(|config| self.apply(config)) {
            Ok(()) => APPLIED,
            Err(error) => {
                error!(%error, "the settings were not reloaded, and nothing has changed");
                REFUSED
            }
        };
        self.reloads.with_label_values(&[outcome]).inc();
    }

    fn apply(&mut self, config: Config) -> Result<(), String> {
        let swaps = self.parts.iter().map(|part| part.prepare(&config));
        let swaps = swaps.collect::<Result<Vec<_>, _>>()?;
        swaps.into_iter().for_each(|swap| swap());
        let changed = changed_keys(&self.current, &config);
        let is_live = |key: &&String| {
            self.parts
                .iter()
                .any(|part| part.keys().contains(&key.as_str()))
        };
        let (live, rest): (Vec<_>, Vec<_>) = changed.iter().partition(is_live);
        info!(changed = ?live, "reloaded the settings");
        if !rest.is_empty() {
            warn!(settings = ?rest, "these settings have changed and need a restart");
        }
        self.current = Config {
            // What needs a restart stays listed until there is one.
            values: merged(self.current.values.clone(), &config.values, &live),
            sections: merged(self.current.sections.clone(), &config.sections, &live),
            ..config
        };
        Ok(())
    }
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

/// The keys whose values differ, of options and of sections.
fn changed_keys(before: &Config, after: &Config) -> Vec<String> {
    let flags = after.values.iter().filter(|(flag, value)| {
        let earlier = before.values.get(*flag);
        earlier.is_none_or(|earlier| earlier.text != value.text)
    });
    let options = flags.map(|(flag, _)| flag.replace('-', "_"));
    let names = before.sections.keys().chain(after.sections.keys());
    let mut sections: Vec<_> = names
        .filter(|name| before.sections.get(*name) != after.sections.get(*name))
        .cloned()
        .collect();
    sections.sort();
    sections.dedup();
    options.chain(sections).collect()
}

/// The earlier entries, with the later values of those that are in force.
fn merged<M, V>(mut earlier: M, later: &M, live: &[&String]) -> M
where
    M: Extend<(String, V)>,
    for<'a> &'a M: IntoIterator<Item = (&'a String, &'a V)>,
    V: Clone,
{
    let is_live = |key: &String| live.contains(&&key.replace('-', "_"));
    let entries = later.into_iter().filter(|(key, _)| is_live(key));
    let entries: Vec<_> = entries
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    earlier.extend(entries);
    earlier
}

/// The limit of connections.
pub(crate) struct MaxConnections(pub(crate) Server);

impl Reloadable for MaxConnections {
    fn keys(&self) -> &'static [&'static str] {
        &["max_connections"]
    }

    fn prepare(&self, config: &Config) -> Result<Swap, String> {
        let (server, limit) = (self.0.clone(), config.limits.max_connections);
        Ok(Box::new(move || server.set_max_connections(limit)))
    }
}

const APPLIED: &str = "applied";

const REFUSED: &str = "refused";
