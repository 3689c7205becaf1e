//! `chaos`: faults of nodes, networks and Redis under load, and an exact account of what became of every
//! message.
//!
//! ```text
//! publishers ──HTTP API──▶ three nodes ══proxies══▶ Redis         a fault hits one of these
//!                              │
//! clients of each mode ◀───────┘   come back by themselves, as behind a balancer that checks /readyz
//! ```
//!
//! The modes are namespaces of the same nodes, so one run of a fault fills the rows of all modes.

mod account;
mod balancer;
mod crowd;
mod faults;
mod proxy;
mod publisher;
mod returns;
mod soak;
mod stage;
mod table;
mod watcher;

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    clock::{self, Nanos},
    failure::Failure,
    options::duration,
    say,
    swarm::Transport,
};
use account::{Promise, Publication, Receiver, Tally, account, pace};
use crowd::Crowd;
use faults::{FAULTS, Fault, Scene};
use publisher::Publisher;
use stage::{Places, Programs, Servers, Setup, Stage, progress, wait_until};
use table::{Of, Row};
use watcher::{Seen, Watcher};

/// The features of a namespace of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Neither of the two
    Plain,
    /// A journal
    Journal,
    /// A journal, and clients that come back to their session
    Recovery,
}

impl Mode {
    fn namespace(self) -> &'static str {
        match self {
            Self::Plain => "/plain",
            Self::Journal => "/journal",
            Self::Recovery => "/recovery",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Journal => "journal",
            Self::Recovery => "journal and recovery",
        }
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Chaos {
    /// Numbers of the faults, like 1,5-7 [default: all]
    #[arg(long, value_parser = numbers, value_delimiter = ',', value_name = "LIST")]
    faults: Vec<RangeInclusive<u32>>,
    /// Modes to run
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "plain,journal,recovery"
    )]
    modes: Vec<Mode>,
    /// How many times each fault is caused
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Clients of each mode
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    clients: u32,
    /// Rooms of each mode, each with two publishers
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rooms: u32,
    /// Messages per second and publisher, at most
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Clients connect through HAProxy, which chooses the nodes
    #[arg(long, conflicts_with = "soak")]
    balancer: bool,
    /// The servers of the cluster. Those of Node.js have one mode
    #[arg(long, value_enum, default_value = "roomcast", conflicts_with_all = ["modes", "soak"])]
    servers: Servers,
    /// A server of Node.js with its classic adapter is a member of the cluster, with as many clients
    #[arg(long, conflicts_with_all = ["servers", "soak"])]
    member: bool,
    /// The script of servers of Node.js
    #[arg(
        long,
        value_name = "PATH",
        default_value = "loadtest/peers/node/member.js"
    )]
    node_server: PathBuf,
    /// Time over which a node that is drained closes its connections
    #[arg(long, value_parser = duration, value_name = "TIME", default_value = "3s")]
    over: Duration,
    /// The program whose nodes are tested [default: roomcast beside this program]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Cause no fault, and run for this time behind HAProxy, with recovery, relaying, and clients that are torn down
    #[arg(long, value_parser = duration, value_name = "TIME", conflicts_with_all = ["faults", "modes", "rounds"])]
    soak: Option<Duration>,
    /// Cause no fault: all clients come back within two seconds to two nodes, and the CPU time for it is measured
    #[arg(long, conflicts_with_all = ["faults", "modes", "soak"])]
    returns: bool,
    /// Keep settings and logs in this folder [default: a temporary one, which is removed]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Write the table to this file, in Markdown
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Chaos {
    fn programs(&self) -> anyhow::Result<Programs> {
        Ok(Programs {
            roomcast: match &self.program {
                Some(program) => program.clone(),
                None => std::env::current_exe()?.with_file_name("roomcast"),
            },
            node_js: self.node_server.clone(),
            servers: self.servers,
            drain_over: self.over,
        })
    }

    /// The modes that the servers have.
    fn modes(&self) -> &[Mode] {
        match self.servers {
            Servers::Roomcast => &self.modes,
            // Clients of Node.js recover where the server lets them.
            Servers::NodeClassic | Servers::NodeStreams => &[Mode::Plain],
        }
    }

    /// Starts clients of a mode.
    fn crowd(&self, mode: Mode, transport: Transport, clients: u32, places: &Arc<Places>) -> Crowd {
        let (clients, rooms) = (clients as usize, self.rooms as usize);
        Crowd::start(mode, transport, clients, rooms, places)
    }

    /// Writes the result to standard output and to `--output`.
    fn publish(&self, text: &str) -> anyhow::Result<()> {
        if let Some(path) = &self.output {
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        say(text.trim_end())
    }

    /// The row of a mode.
    fn of(&self, mode: Mode) -> Of {
        match self.servers {
            Servers::Roomcast => Of::Clients(mode),
            Servers::NodeClassic => Of::NodeJs("Node.js, classic adapter"),
            Servers::NodeStreams => Of::NodeJs("Node.js, streams adapter, recovery"),
        }
    }
}

/// A number, or a range of them.
fn numbers(text: &str) -> Result<RangeInclusive<u32>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.parse().ok().zip(last.parse().ok());
    let range = range.map(|(first, last): (u32, u32)| first..=last);
    range
        .filter(|range| !range.is_empty())
        .ok_or_else(|| "like 1,5-7".to_owned())
}

/// Causes the faults and prints the table. Returns whether every bar was met.
pub(crate) fn run(options: &Chaos) -> anyhow::Result<bool> {
    crate::system::raise_descriptor_limit();
    if let Some(time) = options.soak {
        return soak::run(options, time);
    }
    if options.returns {
        return returns::run(options);
    }
    let wanted = &options.faults;
    let is_wanted = |(_, fault): &(usize, &Fault)| {
        wanted.is_empty() || wanted.iter().any(|range| range.contains(&fault.number))
    };
    let faults: Vec<_> = FAULTS.iter().enumerate().filter(is_wanted).collect();
    if faults.is_empty() {
        let said = "--faults: none of these can be caused".to_owned();
        return Err(Failure::Arguments(said).into());
    }
    let folder = Folder::new(options.folder.as_deref())?;
    let mut rows = Vec::new();
    for (index, fault) in faults {
        if let Some(reason) = fault.missing(options.servers) {
            progress(&format!("fault {}: {reason}", fault.number));
            rows.push(Row::new(fault, Of::Nobody(reason)));
            continue;
        }
        let mut of_fault = Vec::new();
        for round in 1..=options.rounds {
            let name = format!("fault{}-{index}-{round}", fault.number);
            let of_round = one(options, fault, &folder.path.join(&name))
                .with_context(|| format!("fault {}, round {round}", fault.number))?;
            for row in &of_round {
                let (number, of, line) = (fault.number, options.rounds, row.line());
                progress(&format!("fault {number}, round {round} of {of}: {line}"));
            }
            if of_fault.is_empty() {
                of_fault = of_round;
            } else {
                let pairs = of_fault.iter_mut().zip(of_round);
                pairs.for_each(|(row, of_round)| row.add(of_round));
            }
        }
        rows.extend(of_fault);
    }
    options.publish(&table::markdown(&rows))?;
    Ok(rows.iter().all(Row::meets_bars))
}

/// Causes a fault once, and makes the account of each mode.
fn one(options: &Chaos, fault: &Fault, folder: &Path) -> anyhow::Result<Vec<Row>> {
    let modes = options.modes();
    let setup = Setup {
        has_balancer: options.balancer,
        ..fault.setup
    };
    let mut stage = Stage::start(folder, options.programs()?, modes, setup)?;
    let member = options.member.then(|| stage.start_member()).transpose()?;
    let watcher = Watcher::start(&stage.places);
    let mut crowds = Vec::new();
    for places in [Some(&stage.places), member.as_ref()].into_iter().flatten() {
        let start =
            |mode: &Mode| options.crowd(*mode, Transport::Websocket, options.clients, places);
        crowds.extend(modes.iter().map(start));
    }
    let traffic = Traffic::start(options, modes, &stage.places, watcher, crowds)?;
    thread::sleep(BEFORE);
    let mut scene = Scene {
        stage: &mut stage,
        crowds: &traffic.crowds[..modes.len()],
        over: None,
        drains: Vec::new(),
    };
    fault.cause(&mut scene)?;
    let mended = scene.over.unwrap_or_else(clock::now);
    let drains = scene.drains;
    // A client that does not come back is in the account, so it need not stop the run.
    let back = wait_until("all nodes and clients", || {
        Ok(stage.is_ready() && traffic.has_joined())
    });
    if let Err(error) = back {
        progress(&format!("after fault {}: {error}", fault.number));
    }
    thread::sleep(AFTER);
    let ended = traffic.finish()?;
    let of_clients = modes.iter().map(|mode| options.of(*mode));
    let of_members = modes.iter().map(|mode| Of::Member(*mode));
    let to_row = |(of, (mode, receivers)): (Of, &(Mode, Vec<Receiver>))| {
        let mut tally = ended.account(*mode, receivers, mended);
        (tally.peak, tally.paced) = pace(receivers, &drains);
        let mut row = Row::new(fault, of);
        row.tally = tally;
        row.metrics.clone_from(&ended.seen.metrics);
        row
    };
    let all = of_clients.chain(of_members).zip(&ended.receivers);
    Ok(all.map(to_row).collect())
}

/// The clients and publishers of a run.
struct Traffic {
    crowds: Vec<Crowd>,
    publishers: Vec<(Mode, Vec<JoinHandle<Publication>>)>,
    watcher: Watcher,
    is_over: Arc<AtomicBool>,
}

/// The records of a run.
struct Ended {
    publications: Vec<(Mode, Vec<Publication>)>,
    /// Of each crowd.
    receivers: Vec<(Mode, Vec<Receiver>)>,
    seen: Seen,
}

impl Traffic {
    /// Waits until all clients are in their rooms, and starts two publishers for each room and mode, at different nodes.
    fn start(
        options: &Chaos,
        modes: &[Mode],
        places: &Arc<Places>,
        watcher: Watcher,
        crowds: Vec<Crowd>,
    ) -> anyhow::Result<Self> {
        wait_until("all clients", || Ok(crowds.iter().all(Crowd::has_joined)))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let start = |mode, index: u32| {
            let publisher = Publisher {
                mode,
                index: index as usize,
                room: (index / PUBLISHERS) as usize,
                pause: Duration::from_secs(1) / options.rate,
                places: Arc::clone(places),
                is_over: Arc::clone(&is_over),
            };
            thread::spawn(move || publisher.run())
        };
        let of_mode = |mode: &Mode| {
            let indices = 0..options.rooms * PUBLISHERS;
            (*mode, indices.map(|index| start(*mode, index)).collect())
        };
        Ok(Self {
            publishers: modes.iter().map(of_mode).collect(),
            crowds,
            watcher,
            is_over,
        })
    }

    fn has_joined(&self) -> bool {
        self.crowds.iter().all(Crowd::has_joined)
    }

    /// Ends the publishers, and then the clients, once these have received all messages that they must receive.
    fn finish(self) -> anyhow::Result<Ended> {
        self.is_over.store(true, Relaxed);
        let mut ended = Ended {
            publications: Vec::new(),
            receivers: Vec::new(),
            seen: Seen::default(),
        };
        for (mode, threads) in self.publishers {
            let threads = threads.into_iter();
            let all = threads.map(|thread| thread.join().ok().context("a publisher"));
            ended
                .publications
                .push((mode, all.collect::<anyhow::Result<_>>()?));
        }
        let crowds = self.crowds.iter();
        let owed = crowds.map(|crowd| crowd.owed(ended.publications_of(crowd.mode)));
        settle(&self.crowds, &owed.collect::<Vec<_>>());
        ended.seen = self.watcher.finish()?;
        for crowd in self.crowds {
            ended.receivers.push((crowd.mode, crowd.finish()?));
        }
        Ok(ended)
    }
}

impl Ended {
    fn publications_of(&self, mode: Mode) -> &[Publication] {
        let mut all = self.publications.iter();
        all.find(|(of, _)| *of == mode)
            .map_or(&[], |(_, found)| found)
    }

    /// The account of clients of a mode. `mended`: when the fault was over.
    fn account(&self, mode: Mode, receivers: &[Receiver], mended: Nanos) -> Tally {
        let promise = Promise {
            is_journal: mode != Mode::Plain,
            mended,
        };
        let publications = self.publications_of(mode);
        account(publications, receivers, self.seen.reports(mode), promise)
    }
}

/// Waits until all clients have received what they are owed, or nothing has arrived for a while.
fn settle(crowds: &[Crowd], owed: &[u64]) {
    let deadline = Instant::now() + LONGEST_SETTLING;
    let (mut last, mut quiet_since) = (0, Instant::now());
    while Instant::now() < deadline {
        let arrived = crowds.iter().map(Crowd::arrived);
        let is_complete = arrived
            .clone()
            .zip(owed)
            .all(|(arrived, owed)| arrived >= *owed);
        let enough = if is_complete { SHORT_QUIET } else { QUIET };
        let now = arrived.sum::<u64>();
        if now != last {
            (last, quiet_since) = (now, Instant::now());
        } else if quiet_since.elapsed() > enough {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A folder for a run. A temporary one is removed.
struct Folder {
    path: PathBuf,
    is_temporary: bool,
}

impl Folder {
    fn new(wanted: Option<&Path>) -> anyhow::Result<Self> {
        let path = match wanted {
            Some(path) => path.to_owned(),
            None => std::env::temp_dir().join(format!("roomcast-chaos-{}", std::process::id())),
        };
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self {
            path,
            is_temporary: wanted.is_none(),
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_temporary {
            // A folder that remains does no harm.
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}

/// A generator of random numbers, another one at each call.
fn random() -> fastrand::Rng {
    fastrand::Rng::with_seed(clock::now())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const PUBLISHERS: u32 = 2;
/// Traffic before the fault, and after the clients are back.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(3);
/// Longer than a node needs to notice a gap and read what it has missed, also on a busy machine.
const QUIET: Duration = Duration::from_secs(8);
/// In which copies would arrive.
const SHORT_QUIET: Duration = Duration::from_millis(500);
const LONGEST_SETTLING: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_by_numbers_and_ranges() {
        assert_eq!((numbers("1"), numbers("5-7")), (Ok(1..=1), Ok(5..=7)));
        for wrong in ["", "x", "7-5", "1-"] {
            assert!(numbers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn faults_have_names_of_their_own_and_ascend() {
        let mut names: Vec<_> = FAULTS.iter().map(|fault| fault.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAULTS.len());
        assert!(FAULTS.is_sorted_by_key(|fault| fault.number));
        for fault in FAULTS {
            let groups = table::GROUPS.iter();
            let of_fault = groups.filter(|(_, numbers)| numbers.contains(&fault.number));
            assert_eq!(of_fault.count(), 1, "{}", fault.name);
        }
    }
}
