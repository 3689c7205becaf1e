//! The limits, one by one, with times of the test's own.

use super::*;

const START: Duration = Duration::from_secs(1_000_000);

fn entries(change: impl FnOnce(&mut HistoryLimits)) -> Entries {
    let mut limits = HistoryLimits::default();
    change(&mut limits);
    Entries::new(limits.into())
}

fn append(entries: &mut Entries, room: &str, text: &str, now: Duration) -> Position {
    let args = Args::encode(&(text,)).unwrap();
    let position = entries.next(now);
    entries.append(position, room, "e", &args, now);
    position
}

fn texts(entries: &Entries, room: &str, page: Page, now: Duration) -> Vec<String> {
    let read = entries.read(room, page, usize::MAX, now).into_iter();
    read.map(|entry| entry.args.decode::<(String,)>().unwrap().0)
        .collect()
}

#[test]
fn ids_grow_over_all_rooms_and_times_are_those_of_the_clock() {
    let mut log = entries(|_| ());
    let first = append(&mut log, "a", "1", START);
    let second = append(&mut log, "b", "2", START);
    let third = append(&mut log, "a", "3", START + Duration::from_secs(60));
    assert_eq!((first.id, second.id), (1_000_000, 1_000_001));
    assert_eq!((third.id, third.time), (1_000_060, 1_000_060_000));
    // The clock was put back.
    assert_eq!(append(&mut log, "a", "4", START).id, 1_000_061);
}

#[test]
fn a_room_keeps_as_many_bytes_as_allowed_and_always_the_newest_entry() {
    let mut log = entries(|limits| limits.bytes = 2 * (OVERHEAD + 110));
    for text in ["a", "b", "c"] {
        append(&mut log, "a", &text.repeat(100), START);
    }
    assert_eq!(texts(&log, "a", Page::Latest, START).len(), 2);
    append(&mut log, "a", &"x".repeat(1000), START);
    assert_eq!(texts(&log, "a", Page::Latest, START).len(), 1);
    assert_eq!(log.bytes, log.rooms["a"].bytes);
}

#[test]
fn an_entry_is_kept_as_long_as_allowed() {
    let mut log = entries(|limits| limits.age = Duration::from_secs(10));
    append(&mut log, "a", "1", START);
    append(&mut log, "a", "2", START + Duration::from_secs(5));
    let later = START + Duration::from_secs(11);
    assert_eq!(texts(&log, "a", Page::Latest, later), ["2"]);
    let much_later = START + Duration::from_secs(20);
    assert_eq!(texts(&log, "a", Page::Latest, much_later), [""; 0]);
    append(&mut log, "b", "3", much_later);
    assert_eq!(log.rooms.len(), 1);
    assert_eq!(log.bytes, log.rooms["b"].bytes);
}

#[test]
fn the_rooms_that_were_silent_for_the_longest_time_are_forgotten() {
    let mut log = entries(|limits| limits.memory_bytes = 3 * (OVERHEAD + 110));
    for room in ["a", "b", "c", "a", "d"] {
        append(&mut log, room, &"x".repeat(100), START);
    }
    let kept = |room| texts(&log, room, Page::Latest, START).len();
    assert_eq!(["a", "b", "c", "d"].map(kept), [2, 0, 0, 1]);
    assert_eq!(log.by_latest.len(), log.rooms.len());
}
