//! The account of a run: what became of every message at every client that was owed it.
//!
//! Publishers number their messages and await each result; clients keep a record of what happened to them, in
//! order. A missing message counts as reported if something that the system said covers it:
//!
//! ```text
//! the publisher was told      an error: the message is not published if no client has received it
//! the client was told         its connection broke, and it came back as a new socket, not recovered: covers
//!                             what followed the last message that it had received before
//! the operator was told       its node counted a gap after the message was published
//! ```
//!
//! Everything else that is missing was lost silently.

use std::collections::{HashMap, HashSet};

use crate::clock::{self, MILLISECOND, Nanos, SECOND};

/// The result that a publisher has got for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The node accepted it.
    Accepted,
    /// The node failed to pass it to the other nodes, and said so.
    Refused,
    /// The call failed in a way that leaves both possible.
    Unknown,
}

/// A message that was published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// The node that got the call.
    pub(super) via: usize,
    pub(super) begin: Nanos,
    pub(super) end: Nanos,
    pub(super) told: Told,
}

/// The messages of one publisher to one room. A message's index is its number.
#[derive(Debug, Default)]
pub(super) struct Publication {
    pub(super) room: usize,
    pub(super) sent: Vec<Sent>,
}

/// An event in the life of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// It is a new socket, and has joined its room.
    Joined { node: usize, at: Nanos },
    /// It has come back as the socket that it was.
    Recovered { node: usize, at: Nanos },
    /// Its connection has ended.
    Cut { at: Nanos },
    Arrived {
        publisher: usize,
        number: usize,
        at: Nanos,
    },
}

impl Entry {
    /// The node on which the client was from then on, and since when.
    fn place(&self) -> Option<(usize, Nanos)> {
        match self {
            Self::Joined { node, at } | Self::Recovered { node, at } => Some((*node, *at)),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Receiver {
    pub(super) room: usize,
    pub(super) entries: Vec<Entry>,
}

/// A node has counted a gap at some time before `at`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) node: usize,
    pub(super) at: Nanos,
}

/// A node was told to drain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    pub(super) node: usize,
    pub(super) at: Nanos,
    /// The time over which it closes its connections.
    pub(super) over: Nanos,
}

/// The guarantees to which an account holds a mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    /// One order for all clients of a room, and a message with an uncertain result reaches all or nobody.
    pub(super) is_journal: bool,
    /// When the fault was over.
    pub(super) mended: Nanos,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Messages times clients.
    pub(super) owed: u64,
    pub(super) silent: u64,
    pub(super) reported: u64,
    /// The publisher got an error, and the message has reached nobody.
    pub(super) unpublished: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    /// Time from the end of the fault until the last late message had arrived and the last client was back.
    pub(super) repaired: Nanos,
    /// From the call of a publisher until a message arrived, 99th percentile.
    pub(super) delivery: Nanos,
    /// From the end of a client's connection until it was back, 95th percentile.
    pub(super) outage: Nanos,
    /// The same, 99th percentile.
    pub(super) longest: Nanos,
    /// Peak of the clients per second that came back after a drain, in percent of the paced rate.
    pub(super) peak: u64,
    /// The lowest of the paced rates, in clients per second.
    pub(super) paced: u64,
}

impl Tally {
    /// Adds another run: counts are added, times are the longest.
    pub(super) fn add(&mut self, other: &Self) {
        self.owed += other.owed;
        self.silent += other.silent;
        self.reported += other.reported;
        self.unpublished += other.unpublished;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.repaired = self.repaired.max(other.repaired);
        self.delivery = self.delivery.max(other.delivery);
        self.outage = self.outage.max(other.outage);
        self.longest = self.longest.max(other.longest);
        self.peak = self.peak.max(other.peak);
        self.paced = match self.paced {
            0 => other.paced,
            paced => paced.min(other.paced),
        };
    }
}

type Message = (usize, usize);

/// Makes the account of a run.
pub(super) fn account(
    publications: &[Publication],
    receivers: &[Receiver],
    reports: &[Report],
    promise: Promise,
) -> Tally {
    let received: HashSet<Message> = receivers.iter().flat_map(arrivals).collect();
    let mut tally = Tally::default();
    let mut references: HashMap<usize, HashMap<Message, usize>> = HashMap::new();
    if promise.is_journal {
        for room in receivers.iter().map(|receiver| receiver.room) {
            let make = || ranks(receivers, room);
            references.entry(room).or_insert_with(make);
        }
    }
    for receiver in receivers {
        let ranks = references.get(&receiver.room);
        one(publications, receiver, ranks, promise, &mut tally);
        missing(
            publications,
            receiver,
            reports,
            promise,
            &received,
            &mut tally,
        );
    }
    let (mut deliveries, mut outages) = (Vec::new(), Vec::new());
    for receiver in receivers {
        times(publications, receiver, &mut deliveries, &mut outages);
    }
    tally.delivery = percentile(&mut deliveries, 99);
    tally.outage = percentile(&mut outages, 95);
    tally.longest = percentile(&mut outages, 99);
    tally
}

/// The number of entries of a kind.
pub(super) fn count(receivers: &[Receiver], is_meant: fn(&Entry) -> bool) -> usize {
    let entries = receivers.iter().flat_map(|receiver| &receiver.entries);
    entries.filter(|entry| is_meant(entry)).count()
}

/// Collects how long deliveries and outages took.
fn times(
    publications: &[Publication],
    receiver: &Receiver,
    deliveries: &mut Vec<Nanos>,
    outages: &mut Vec<Nanos>,
) {
    let mut cut = None;
    for entry in &receiver.entries {
        match entry {
            Entry::Cut { at } => cut = cut.or(Some(*at)),
            Entry::Joined { at, .. } | Entry::Recovered { at, .. } => {
                outages.extend(cut.take().map(|cut| at.saturating_sub(cut)));
            }
            Entry::Arrived {
                publisher,
                number,
                at,
            } => {
                let sent = publications[*publisher].sent.get(*number);
                deliveries.extend(sent.map(|sent| at.saturating_sub(sent.begin)));
            }
        }
    }
}

/// Peak of the returns per second in percent of the paced rate, and the lowest paced rate, over all drains.
pub(super) fn pace(receivers: &[Receiver], drains: &[Drain]) -> (u64, u64) {
    let (mut peak, mut lowest) = (0, 0);
    for drain in drains {
        let until = drain.at + drain.over + AFTER_DRAIN;
        let mut returns: Vec<Nanos> = receivers
            .iter()
            .filter_map(|receiver| receiver.back_from(drain, until))
            .collect();
        returns.sort_unstable();
        let paced = returns.len() as u64 * SECOND / drain.over.max(1);
        if let Some(percent) = (clock::peak(&returns) * 100).checked_div(paced) {
            peak = peak.max(percent);
            lowest = if lowest == 0 {
                paced
            } else {
                paced.min(lowest)
            };
        }
    }
    (peak, lowest)
}

/// Zero without values.
fn percentile(values: &mut [Nanos], percent: usize) -> Nanos {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

fn arrivals(receiver: &Receiver) -> impl Iterator<Item = Message> {
    receiver.entries.iter().filter_map(|entry| match entry {
        Entry::Arrived {
            publisher, number, ..
        } => Some((*publisher, *number)),
        _ => None,
    })
}

/// The order of a room: that of the client that has received most.
fn ranks(receivers: &[Receiver], room: usize) -> HashMap<Message, usize> {
    let members = receivers.iter().filter(|receiver| receiver.room == room);
    let reference = members.max_by_key(|receiver| arrivals(receiver).count());
    let mut ranks = HashMap::new();
    for (rank, message) in reference.into_iter().flat_map(arrivals).enumerate() {
        ranks.entry(message).or_insert(rank);
    }
    ranks
}

/// Counts what arrived twice, out of order, or late.
fn one(
    publications: &[Publication],
    receiver: &Receiver,
    ranks: Option<&HashMap<Message, usize>>,
    promise: Promise,
    tally: &mut Tally,
) {
    let mut seen = HashSet::new();
    let mut latest: HashMap<(usize, usize), usize> = HashMap::new();
    let mut highest = 0;
    for entry in &receiver.entries {
        let (message, at) = match entry {
            Entry::Joined { at, .. } | Entry::Recovered { at, .. } => {
                tally.repaired = tally.repaired.max(at.saturating_sub(promise.mended));
                continue;
            }
            Entry::Cut { .. } => continue,
            Entry::Arrived {
                publisher,
                number,
                at,
            } => ((*publisher, *number), *at),
        };
        let Some(sent) = publications[message.0].sent.get(message.1) else {
            // It arrives before the publisher has its result, which is missing only if the run ended first.
            continue;
        };
        if !seen.insert(message) {
            tally.duplicated += 1;
            continue;
        }
        if at.saturating_sub(sent.end) > LATE {
            tally.repaired = tally.repaired.max(at.saturating_sub(promise.mended));
        }
        // Without a journal, only the messages that a node has published are in order.
        let sender = (message.0, if promise.is_journal { 0 } else { sent.via });
        let last = latest.entry(sender).or_insert(message.1);
        let mut is_early = message.1 < *last && sent.told != Told::Unknown;
        *last = (*last).max(message.1);
        if let Some(rank) = ranks.and_then(|ranks| ranks.get(&message)) {
            is_early |= *rank < highest;
            highest = highest.max(*rank);
        }
        tally.reordered += u64::from(is_early);
    }
}

/// Counts what has not arrived.
fn missing(
    publications: &[Publication],
    receiver: &Receiver,
    reports: &[Report],
    promise: Promise,
    received: &HashSet<Message>,
    tally: &mut Tally,
) {
    let own: HashSet<Message> = arrivals(receiver).collect();
    let joined = receiver.entries.iter().find_map(|entry| match entry {
        Entry::Joined { at, .. } => Some(*at),
        _ => None,
    });
    let Some(joined) = joined else {
        return;
    };
    for (publisher, publication) in publications.iter().enumerate() {
        if publication.room != receiver.room {
            continue;
        }
        let breaks = breaks(receiver, publisher);
        for (number, sent) in publication.sent.iter().enumerate() {
            if sent.begin < joined {
                continue;
            }
            tally.owed += 1;
            if own.contains(&(publisher, number)) {
                continue;
            }
            let publisher_knows = sent.told != Told::Accepted;
            if publisher_knows && !received.contains(&(publisher, number)) {
                tally.unpublished += 1;
                continue;
            }
            let is_reported = (publisher_knows && !promise.is_journal)
                || breaks.iter().any(|gone| gone.covers(number, sent))
                || reports
                    .iter()
                    .any(|report| report.at >= sent.begin && receiver.is_on(report, sent));
            if is_reported {
                tally.reported += 1;
            } else {
                tally.silent += 1;
            }
        }
    }
}

/// A time in which a client was away, and after which it was a new socket.
struct Break {
    /// The number after the highest that had arrived before.
    next: usize,
    until: Nanos,
}

impl Break {
    fn covers(&self, number: usize, sent: &Sent) -> bool {
        number >= self.next && sent.begin < self.until
    }
}

/// The breaks of a client, as seen from one publisher.
fn breaks(receiver: &Receiver, of: usize) -> Vec<Break> {
    let (mut next, mut cut, mut breaks) = (0, None, Vec::new());
    for entry in &receiver.entries {
        match entry {
            Entry::Arrived {
                publisher, number, ..
            } if *publisher == of => next = next.max(number + 1),
            Entry::Arrived { .. } => {}
            Entry::Cut { .. } => cut = cut.or(Some(next)),
            Entry::Recovered { .. } => cut = None,
            Entry::Joined { at, .. } => {
                if let Some(next) = cut.take() {
                    breaks.push(Break { next, until: *at });
                }
            }
        }
    }
    // It has not come back, and knows that.
    if let Some(next) = cut {
        breaks.push(Break {
            next,
            until: Nanos::MAX,
        });
    }
    breaks
}

impl Receiver {
    /// When the client was back, if it was on the node of a drain and lost its connection by it.
    fn back_from(&self, drain: &Drain, until: Nanos) -> Option<Nanos> {
        let mut places = self.entries.iter().filter_map(Entry::place);
        let (node, _) = places.clone().rfind(|(_, at)| *at < drain.at)?;
        let (_, back) = places.find(|(_, at)| *at >= drain.at)?;
        (node == drain.node && back < until).then_some(back)
    }

    /// Whether the client was on the node of a report between a message and the report.
    fn is_on(&self, report: &Report, sent: &Sent) -> bool {
        let places = self.entries.iter().filter_map(Entry::place);
        let ends = places.clone().skip(1).map(|(_, at)| at);
        let mut spans = places.zip(ends.chain([Nanos::MAX]));
        spans.any(|((node, from), to)| node == report.node && from < report.at && to > sent.begin)
    }
}

/// A delivery that takes longer is late. A busy machine delivers within this time.
const LATE: Nanos = 1000 * MILLISECOND;
/// A client that is back later did not come back because of the drain.
const AFTER_DRAIN: Nanos = 10 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Entry = Entry::Cut { at: 22 };
    const PLAIN: Promise = Promise {
        is_journal: false,
        mended: 0,
    };
    const JOURNAL: Promise = Promise {
        is_journal: true,
        mended: 0,
    };

    /// A publisher whose messages were sent at 10, 20, 30 …
    fn publication(told: &[Told]) -> Publication {
        let sent = |(index, told): (usize, &Told)| Sent {
            via: 0,
            begin: (index as u64 + 1) * 10,
            end: (index as u64 + 1) * 10 + 1,
            told: *told,
        };
        Publication {
            room: 0,
            sent: told.iter().enumerate().map(sent).collect(),
        }
    }

    fn receiver(entries: &[Entry]) -> Receiver {
        let joined = Entry::Joined { node: 0, at: 5 };
        let entries = [&[joined][..], entries].concat();
        Receiver { room: 0, entries }
    }

    fn arrived(publisher: usize, number: usize) -> Entry {
        Entry::Arrived {
            publisher,
            number,
            at: 0,
        }
    }

    /// Owed, lost silently, lost and reported, duplicated, out of order. Checks that the rest is published.
    fn counts(tally: &Tally) -> [u64; 5] {
        assert_eq!(tally.unpublished, 0);
        [
            tally.owed,
            tally.silent,
            tally.reported,
            tally.duplicated,
            tally.reordered,
        ]
    }

    #[test]
    fn what_nobody_was_told_of_is_lost_silently() {
        let sent = [publication(&[Told::Accepted; 3])];
        let hole = receiver(&[arrived(0, 0), arrived(0, 2)]);
        let tally = account(&sent, &[hole], &[], JOURNAL);
        assert_eq!(counts(&tally), [3, 1, 0, 0, 0]);
    }

    #[test]
    fn what_is_published_before_the_join_is_not_owed() {
        let sent = [publication(&[Told::Accepted; 2])];
        let late = Receiver {
            room: 0,
            entries: vec![Entry::Joined { node: 0, at: 15 }, arrived(0, 1)],
        };
        let tally = account(&sent, &[late, Receiver::default()], &[], PLAIN);
        assert_eq!(counts(&tally), [1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_client_that_is_a_new_socket_knows_that_it_missed_something_but_not_about_a_hole_before() {
        let sent = [publication(&[Told::Accepted; 5])];
        let back = Entry::Joined { node: 1, at: 45 };
        let one = receiver(&[arrived(0, 0), arrived(0, 2), CUT, back, arrived(0, 4)]);
        let tally = account(&sent, &[one], &[], PLAIN);
        assert_eq!(counts(&tally), [5, 1, 1, 0, 0]);
    }

    #[test]
    fn a_client_that_is_recovered_may_miss_nothing() {
        let sent = [publication(&[Told::Accepted; 3])];
        let back = Entry::Recovered { node: 1, at: 25 };
        let one = receiver(&[arrived(0, 0), CUT, back, arrived(0, 2)]);
        let tally = account(&sent, &[one], &[], JOURNAL);
        assert_eq!(counts(&tally), [3, 1, 0, 0, 0]);
    }

    #[test]
    fn an_error_covers_a_message_and_one_that_nobody_has_received_is_not_published() {
        let sent = [publication(&[Told::Unknown, Told::Refused])];
        let receivers = [receiver(&[arrived(0, 0)]), receiver(&[])];
        let counts = |promise| {
            let tally = account(&sent, &receivers, &[], promise);
            [tally.owed, tally.silent, tally.reported, tally.unpublished]
        };
        assert_eq!(counts(PLAIN), [4, 0, 1, 2]);
        assert_eq!(counts(JOURNAL), [4, 1, 0, 2]);
    }

    #[test]
    fn a_gap_of_the_clients_node_covers_what_was_published_before_it() {
        let sent = [publication(&[Told::Accepted; 2])];
        let gap = |node, at| {
            let receivers = [receiver(&[arrived(0, 1)])];
            let tally = account(&sent, &receivers, &[Report { node, at }], PLAIN);
            (tally.silent, tally.reported)
        };
        assert_eq!(gap(0, 30), (0, 1));
        assert_eq!(gap(1, 30), (1, 0));
        assert_eq!(gap(0, 9), (1, 0));
    }

    #[test]
    fn what_arrives_twice_or_after_a_later_one_is_counted() {
        let sent = [publication(&[Told::Accepted; 3])];
        let one = receiver(&[arrived(0, 1), arrived(0, 0), arrived(0, 2), arrived(0, 1)]);
        let tally = account(&sent, &[one], &[], PLAIN);
        assert_eq!(counts(&tally), [3, 0, 0, 1, 1]);
    }

    #[test]
    fn a_journal_promises_one_order_of_all_publishers() {
        let sent = [
            publication(&[Told::Accepted; 2]),
            publication(&[Told::Accepted; 2]),
        ];
        let one = || receiver(&[arrived(0, 0), arrived(1, 0), arrived(0, 1), arrived(1, 1)]);
        let other = receiver(&[arrived(1, 0), arrived(0, 0), arrived(0, 1), arrived(1, 1)]);
        let receivers = [one(), one(), other];
        assert_eq!(account(&sent, &receivers, &[], PLAIN).reordered, 0);
        // Seen from one of them, one message of the other came late.
        assert_eq!(account(&sent, &receivers, &[], JOURNAL).reordered, 2);
    }

    #[test]
    fn a_pace_is_that_of_the_clients_that_were_on_the_node() {
        let second = |number: u64| number * SECOND;
        let client = |node, back| Receiver {
            room: 0,
            entries: vec![
                Entry::Joined { node, at: 5 },
                Entry::Recovered { node: 1, at: back },
            ],
        };
        let drain = Drain {
            node: 0,
            at: second(10),
            over: second(2),
        };
        // Two per second are paced, and three come back within one.
        let back = [second(11), second(12), second(12) + 1, second(12) + 2];
        let mut clients: Vec<_> = back.into_iter().map(|at| client(0, at)).collect();
        clients.push(client(2, second(12)));
        clients.push(client(0, second(100)));
        assert_eq!(pace(&clients, &[drain]), (150, 2));
        assert_eq!(pace(&clients, &[]), (0, 0));
    }

    #[test]
    fn deliveries_and_outages_have_percentiles() {
        assert_eq!(
            percentile(&mut (1..=200).rev().collect::<Vec<_>>(), 99),
            198
        );
        assert_eq!(percentile(&mut [], 99), 0);
        let sent = [publication(&[Told::Accepted; 2])];
        let late = Entry::Arrived {
            publisher: 0,
            number: 1,
            at: 60,
        };
        let back = Entry::Recovered { node: 1, at: 52 };
        let one = receiver(&[arrived(0, 0), CUT, back, late]);
        let tally = account(&sent, &[one], &[], JOURNAL);
        let times = (tally.delivery, tally.outage, tally.longest);
        assert_eq!(times, (40, 30, 30));
    }
}
