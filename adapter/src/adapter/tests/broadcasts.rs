//! Broadcasts: their recipients, their flushes, and the state after two concurrent threads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Barrier,
    thread,
};

use roomcast_protocol::target::Target;

use crate::{
    Adapter, JoinError, Member, RoomLimits,
    member::fake::{Fake, Flushes, id},
};

const LIMITS: RoomLimits = RoomLimits {
    rooms_per_socket: 100,
    name_bytes: 100,
};

fn to(rooms: &[&str], except: &[&str]) -> Target {
    let mut target = Target::default();
    target.add_rooms(rooms);
    target.add_except(except);
    target
}

/// Nine sockets on three shards: `0 3 6`, `1 4 7`, `2 5 8`.
fn nine() -> (Adapter<Fake>, Vec<Fake>, Flushes) {
    let flushes = Flushes::default();
    let adapter = Adapter::new(3, LIMITS, None);
    let sockets: Vec<_> = (0..9).map(|n| Fake::new(&id(n), n, &flushes)).collect();
    for socket in &sockets {
        adapter.insert(socket.clone());
    }
    (adapter, sockets, flushes)
}

fn ids(numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(|number| id(*number)).collect()
}

fn receivers(sockets: &[Fake], frame: u64) -> Vec<usize> {
    let times = |socket: &Fake| {
        let received = socket.received();
        received.iter().filter(|(known, _)| *known == frame).count()
    };
    let numbered = sockets.iter().enumerate();
    numbered
        .flat_map(|(number, socket)| std::iter::repeat_n(number, times(socket)))
        .collect()
}

#[test]
fn nobody_receives_a_broadcast_twice() {
    let (adapter, sockets, _) = nine();
    for (socket, rooms) in [(0, "a"), (0, "b"), (1, "a"), (2, "b"), (5, "b")] {
        adapter.join(&sockets[socket], &rooms).unwrap();
    }
    // A room may have the name of a socket that has not joined it.
    let seven = id(7);
    for socket in [1, 4, 8] {
        adapter.join(&sockets[socket], &seven).unwrap();
    }
    for (frame, rooms, except, expected) in [
        (1, &["a", "b"][..], &[][..], &[0, 1, 2, 5][..]),
        (2, &["a", "b"], &["a"], &[2, 5]),
        (3, &[&seven], &[], &[1, 4, 7, 8]),
        (4, &[&seven, "a"], &[], &[0, 1, 4, 7, 8]),
        (5, &[], &[&seven, "b"], &[3, 6]),
        (6, &[], &[], &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (7, &["nobody", "a"], &["nobody"], &[0, 1]),
        (8, &["nobody"], &[], &[]),
    ] {
        let target = to(rooms, except);
        let mut seen = 0;
        let recipients = adapter.fan_out(&target, &frame, |_| seen += 1);
        assert_eq!(receivers(&sockets, frame), expected, "{target:?}");
        assert_eq!((recipients, seen), (expected.len(), expected.len()));
        let mut selected = adapter.select(&target);
        selected.sort_by(|a, b| a.id().cmp(b.id()));
        let selected: Vec<_> = selected.iter().map(|one| one.id().to_string()).collect();
        assert_eq!(selected, ids(expected));
    }
}

#[test]
fn a_batch_is_flushed_once_per_shard_with_exactly_the_touched() {
    let (adapter, sockets, flushes) = nine();
    for socket in [0, 2, 3, 5] {
        adapter.join(&sockets[socket], &["a", "b"]).unwrap();
    }
    adapter.fan_out(&to(&["a", "b"], &[]), &1, |_| {});
    let flushed = std::mem::take(&mut *flushes.lock());
    assert_eq!(flushed, [ids(&[0, 3]), ids(&[2, 5])]);
    adapter.fan_out(&to(&[], &["a"]), &2, |_| {});
    let flushed = std::mem::take(&mut *flushes.lock());
    assert_eq!(flushed, [ids(&[6]), ids(&[1, 4, 7]), ids(&[8])]);
    adapter.fan_out(&to(&["nobody"], &[]), &3, |_| {});
    assert!(flushes.lock().is_empty());
}

#[test]
fn members_hear_in_order_and_whether_a_frame_is_volatile() {
    let (adapter, sockets, _) = nine();
    adapter.fan_out(&Target::default(), &1, |_| {});
    let mut volatile = Target::default();
    volatile.flags.volatile = true;
    adapter.fan_out(&volatile, &2, |_| {});
    for socket in &sockets {
        assert_eq!(socket.received(), [(1, false), (2, true)]);
    }
}

#[test]
fn a_socket_that_has_gone_is_in_no_room() {
    let (adapter, sockets, _) = nine();
    adapter.join(&sockets[4], &["a", "b"]).unwrap();
    assert_eq!((adapter.len(), adapter.room_count()), (9, 2));
    assert!(adapter.remove(&sockets[4]));
    assert!(!adapter.remove(&sockets[4]));
    assert_eq!((adapter.len(), adapter.room_count()), (8, 0));
    assert!(!adapter.has_member(&id(4)) && adapter.rooms_of(&sockets[4]).is_empty());
    assert_eq!(adapter.fan_out(&to(&["a", &id(4)], &[]), &1, |_| {}), 0);
}

const ROOMS: [&str; 4] = ["a", "b", "c", "d"];

/// The rooms of each connected socket, by its number.
type Model = BTreeMap<usize, BTreeSet<&'static str>>;

/// One thread's work on the sockets whose number leaves `thread` when halved. Both threads meet in
/// the same rooms and on the same shards.
fn work(adapter: &Adapter<Fake>, sockets: &[Fake], thread: usize) -> Model {
    let mut model = Model::new();
    // A generator of the kind that George Marsaglia named xorshift; the seed is the thread's own.
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ thread as u64;
    for step in 0..20_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = (state >> 8) as usize % (sockets.len() / 2) * 2 + thread;
        let room = ROOMS[(state >> 24) as usize % ROOMS.len()];
        let socket = &sockets[number];
        match (state >> 40) % 8 {
            0 if model.remove(&number).is_some() => assert!(adapter.remove(socket)),
            0 | 1 if !model.contains_key(&number) => {
                adapter.insert(socket.clone());
                model.insert(number, BTreeSet::new());
            }
            2 => {
                let frame = step * 2 + thread as u64;
                adapter.fan_out(&to(&[room, "a"], &["d"]), &frame, |_| {});
            }
            3 | 4 => {
                adapter.leave(socket, &room);
                if let Some(joined) = model.get_mut(&number) {
                    joined.remove(room);
                }
            }
            _ => {
                let joined = model.get_mut(&number);
                assert_eq!(adapter.join(socket, &room).is_ok(), joined.is_some());
                joined.map(|joined| joined.insert(room));
            }
        }
    }
    model
}

#[test]
fn two_threads_at_once_leave_a_consistent_index() {
    let adapter = Adapter::new(3, LIMITS, None);
    let sockets: Vec<_> = (0..24).map(|n| Fake::numbered(n, n / 2)).collect();
    let start = Barrier::new(2);
    let run = |thread| {
        start.wait();
        work(&adapter, &sockets, thread)
    };
    let model: Model = thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let mut model = run(0);
        model.extend(other.join().unwrap());
        model
    });

    assert_eq!(adapter.len(), model.len());
    let rooms: BTreeSet<_> = model.values().flatten().copied().collect();
    let mut names = adapter.directory.names();
    names.sort();
    assert!(names.iter().map(|name| &**name).eq(rooms));
    for room in ROOMS {
        let frame = u64::MAX - u64::from(room.as_bytes()[0]);
        adapter.fan_out(&to(&[room], &[]), &frame, |_| {});
        let members = model.iter().filter(|(_, joined)| joined.contains(room));
        assert!(
            receivers(&sockets, frame)
                .iter()
                .eq(members.map(|(number, _)| number))
        );
    }
    let mut delivered = 0;
    for socket in &sockets {
        let received = socket.received();
        let distinct: BTreeSet<_> = received.iter().collect();
        assert_eq!(distinct.len(), received.len(), "a frame came twice");
        delivered += received.len();
    }
    assert!(delivered > 0);
}

#[test]
fn who_has_joined_is_reached_whatever_others_on_the_shard_do() {
    let adapter = Adapter::new(2, LIMITS, None);
    let sockets = [0, 1].map(|number| Fake::numbered(number, 0));
    let start = Barrier::new(2);
    let come_and_go = |socket: &Fake| {
        adapter.insert(socket.clone());
        start.wait();
        let is_reached = || {
            let reached = adapter.select(&to(&["a"], &[]));
            reached.iter().any(|member| member.id() == socket.id())
        };
        for _ in 0..5_000 {
            adapter.join(socket, &"a").unwrap();
            assert!(is_reached());
            adapter.leave(socket, &"a");
            assert!(!is_reached());
        }
    };
    thread::scope(|scope| {
        for socket in &sockets {
            scope.spawn(|| come_and_go(socket));
        }
    });
    assert_eq!(adapter.room_count(), 0);
}

#[test]
fn a_socket_that_goes_while_it_joins_leaves_nothing_behind() {
    let adapter = Adapter::new(2, LIMITS, None);
    let start = Barrier::new(2);
    for number in 0..500 {
        let socket = Fake::numbered(number, number);
        adapter.insert(socket.clone());
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for room in ROOMS {
                    if adapter.join(&socket, &room) == Err(JoinError::Disconnected) {
                        return;
                    }
                }
            });
            start.wait();
            assert!(adapter.remove(&socket));
        });
        assert_eq!((adapter.len(), adapter.room_count()), (0, 0));
    }
}
