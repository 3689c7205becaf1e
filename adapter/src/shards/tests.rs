//! Joining and leaving under limits, and the directory, against a naive model.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::member::fake::{Fake, id};

const SOCKETS: usize = 8;

const LIMITS: RoomLimits = RoomLimits {
    rooms_per_socket: 3,
    name_bytes: 20,
};

#[derive(Debug, Clone)]
enum Step {
    /// Connects the socket, or disconnects it if it is there.
    Toggle(usize),
    Join(usize, Vec<String>),
    Leave(usize, Vec<String>),
}

fn names() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof![
        20 => "[a-f]",
        4 => (0..SOCKETS).prop_map(id),
        1 => Just("x".repeat(LIMITS.name_bytes + 1)),
    ];
    prop::collection::vec(name, 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..SOCKETS).prop_map(Step::Toggle),
        3 => (0..SOCKETS, names()).prop_map(|(socket, rooms)| Step::Join(socket, rooms)),
        1 => (0..SOCKETS, names()).prop_map(|(socket, rooms)| Step::Leave(socket, rooms)),
    ]
}

/// The rooms of each connected socket by its number, private ones left out.
type Model = BTreeMap<usize, BTreeSet<String>>;

fn take_step(shards: &Shards<Fake>, sockets: &[Fake], model: &mut Model, step: &Step) {
    match step {
        Step::Toggle(socket) => match model.remove(socket) {
            Some(_) => assert!(shards.remove(&sockets[*socket])),
            None => {
                assert!(!shards.remove(&sockets[*socket]));
                shards.insert(sockets[*socket].clone());
                model.insert(*socket, BTreeSet::new());
            }
        },
        Step::Join(socket, rooms) => {
            let expected = join(model, *socket, rooms);
            assert_eq!(shards.join(&sockets[*socket], rooms, LIMITS), expected);
        }
        Step::Leave(socket, rooms) => {
            shards.leave(&sockets[*socket], rooms);
            if let Some(joined) = model.get_mut(socket) {
                joined.retain(|room| !rooms.contains(room));
            }
        }
    }
}

fn join(model: &mut Model, socket: usize, rooms: &[String]) -> Result<(), JoinError> {
    let joined = model.get_mut(&socket).ok_or(JoinError::Disconnected)?;
    if rooms.iter().any(|room| room.len() > LIMITS.name_bytes) {
        let limit = LIMITS.name_bytes;
        return Err(JoinError::NameTooLong { limit });
    }
    let mut more = joined.clone();
    more.extend(rooms.iter().filter(|room| **room != id(socket)).cloned());
    if more.len() > LIMITS.rooms_per_socket {
        let limit = LIMITS.rooms_per_socket;
        return Err(JoinError::TooManyRooms { limit });
    }
    *joined = more;
    Ok(())
}

fn check_equal(shards: &Shards<Fake>, sockets: &[Fake], model: &Model) {
    assert_eq!(shards.len(), model.len());
    for (number, socket) in sockets.iter().enumerate() {
        let found = shards.member(socket.id().as_str());
        assert_eq!(found.is_some(), model.contains_key(&number));
        let rooms = shards.rooms_of(socket);
        let Some(joined) = model.get(&number) else {
            assert!(rooms.is_empty());
            continue;
        };
        assert_eq!(*rooms[0], *socket.id().as_str());
        let mut rooms: Vec<_> = rooms[1..].iter().map(|room| &**room).collect();
        rooms.sort_unstable();
        assert!(rooms.iter().eq(joined), "{rooms:?}, not {joined:?}");
    }
}

/// The directory must name exactly the shards in which a room has members.
fn check_directory(shards: &Shards<Fake>, sockets: &[Fake], model: &Model) {
    let mut occupied = BTreeMap::<&str, ShardSet>::new();
    for (number, rooms) in model {
        for room in rooms {
            *occupied.entry(room).or_default() |= 1 << shards.index(&sockets[*number]);
        }
    }
    let mut listed = shards.room_names();
    listed.sort();
    assert!(
        listed
            .iter()
            .map(|name| &**name)
            .eq(occupied.keys().copied())
    );
    assert_eq!(shards.room_count(), occupied.len());
    for (name, set) in occupied {
        assert_eq!(shards.directory.shards_of(shards.hash(name), name), set);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn joins_and_leaves_equal_a_naive_model_and_so_does_the_directory(
        count in prop_oneof![Just(1), Just(3), Just(64), Just(100)],
        homes in prop::collection::vec(any::<usize>(), SOCKETS),
        steps in prop::collection::vec(step(), 1..50),
    ) {
        let shards = Shards::new(count);
        let homes = homes.into_iter().enumerate();
        let sockets: Vec<_> = homes.map(|(socket, home)| Fake::numbered(socket, home)).collect();
        let mut model = Model::new();
        for step in &steps {
            take_step(&shards, &sockets, &mut model, step);
            check_equal(&shards, &sockets, &model);
            check_directory(&shards, &sockets, &model);
        }
    }
}

/// What a bus knows that hears of changes: the rooms with members.
#[derive(Default)]
struct Heard(BTreeSet<String>);

impl Heard {
    fn listen(&mut self, shards: &Shards<Fake>) {
        shards.take_changes(&mut |room, is_occupied| {
            let is_news = if is_occupied {
                self.0.insert(room.to_owned())
            } else {
                self.0.remove(room)
            };
            assert!(is_news, "{room} was {is_occupied} before");
        });
    }
}

/// The rooms with members that a bus is told of.
fn told(model: &Model, sockets: &[Fake], tracking: Tracking) -> BTreeSet<String> {
    let mut rooms: BTreeSet<String> = model.values().flatten().cloned().collect();
    let ids = model.keys().map(|number| sockets[*number].id().to_string());
    match tracking {
        Tracking::Nothing => rooms.clear(),
        Tracking::Rooms => rooms.extend(ids.filter(|id| id.len() != SocketId::LEN)),
        Tracking::RoomsAndSockets => rooms.extend(ids),
    }
    rooms
}

/// Every third socket has a long id, as clients of Engine.IO revision 3 outside the main namespace.
fn some_long(number: usize, home: usize) -> Fake {
    let id = match number % 3 {
        0 => format!("/chat#{}", id(number)),
        _ => id(number),
    };
    Fake::new(&id, home, &Default::default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_a_bus_hears_of_rooms_is_the_truth_whenever_it_asks(
        tracking in prop_oneof![
            Just(Tracking::Nothing), Just(Tracking::Rooms), Just(Tracking::RoomsAndSockets),
        ],
        steps in prop::collection::vec((step(), any::<bool>()), 1..60),
    ) {
        let limits = RoomLimits { name_bytes: 30, ..LIMITS };
        let shards = Shards::new(3);
        shards.track(tracking);
        let sockets: Vec<_> = (0..SOCKETS).map(|number| some_long(number, number)).collect();
        let ids: Vec<_> = sockets.iter().map(|socket| socket.id().to_string()).collect();
        let mut model = Model::new();
        let mut heard = Heard::default();
        for (step, asks) in &steps {
            match step {
                Step::Toggle(socket) => if shards.remove(&sockets[*socket]) {
                    model.remove(socket);
                } else {
                    shards.insert(sockets[*socket].clone());
                    model.insert(*socket, BTreeSet::new());
                },
                Step::Join(socket, rooms) => {
                    // Rooms may bear the id of another socket, of the long ones, too.
                    let names = rooms.iter().cloned().chain(Some(ids[(socket + 3) % SOCKETS].clone()));
                    let names: Vec<_> = names.filter(|name| *name != ids[*socket]).collect();
                    if shards.join(&sockets[*socket], &names, limits).is_ok() {
                        model.get_mut(socket).unwrap().extend(names);
                    }
                }
                Step::Leave(socket, rooms) => {
                    shards.leave(&sockets[*socket], rooms);
                    if let Some(joined) = model.get_mut(socket) {
                        joined.retain(|room| !rooms.contains(room));
                    }
                }
            }
            let truth = told(&model, &sockets, tracking);
            if *asks {
                let is_changed = shards.is_changed();
                prop_assert!(is_changed || truth == heard.0);
                heard.listen(&shards);
                prop_assert_eq!(&heard.0, &truth);
            }
            for name in model.values().flatten().chain(&ids) {
                let number = ids.iter().position(|id| id == name);
                let is_occupied = model.values().flatten().any(|joined| joined == name)
                    || number.is_some_and(|number| model.contains_key(&number));
                prop_assert_eq!(shards.has_room(name), is_occupied);
            }
        }
    }
}

#[test]
fn what_a_bus_hears_is_the_truth_after_joins_and_leaves_of_several_threads() {
    const ROOMS: [&str; 3] = ["a", "b", "c"];
    let shards = Shards::new(2);
    shards.track(Tracking::RoomsAndSockets);
    let sockets: Vec<_> = (0..4)
        .map(|number| Fake::numbered(number, number))
        .collect();
    let done = AtomicBool::new(false);
    let mut heard = Heard::default();
    thread::scope(|scope| {
        let workers: Vec<_> = sockets
            .iter()
            .map(|socket| scope.spawn(|| come_and_go(&shards, socket, &ROOMS)))
            .collect();
        let listening = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if shards.is_changed() {
                    heard.listen(&shards);
                }
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Release);
        listening.join().unwrap();
    });
    // Nothing was left behind without a notice.
    if shards.is_changed() {
        heard.listen(&shards);
    }
    let mut rest = 0;
    shards.take_changes(&mut |_, _| rest += 1);
    assert_eq!(rest, 0);
    let truth = ROOMS.iter().copied().filter(|room| shards.has_room(room));
    let mut truth: BTreeSet<String> = truth.map(str::to_owned).collect();
    truth.extend(sockets.iter().map(|socket| socket.id().to_string()));
    assert_eq!(heard.0, truth);
}

/// Comes, joins, leaves and goes many times; ends connected, in one room or another.
fn come_and_go(shards: &Shards<Fake>, socket: &Fake, rooms: &[&str]) {
    for turn in 0..2000_usize {
        shards.insert(socket.clone());
        let room = rooms[turn % rooms.len()];
        shards.join(socket, &room, LIMITS).unwrap();
        if turn % 2 == 0 {
            shards.leave(socket, &room);
        }
        assert!(shards.remove(socket));
    }
    shards.insert(socket.clone());
    shards.join(socket, &rooms[0], LIMITS).unwrap();
}

#[test]
fn changes_that_nobody_takes_are_no_more_than_rooms() {
    let shards = Shards::new(2);
    shards.track(Tracking::Rooms);
    let socket = Fake::numbered(0, 0);
    shards.insert(socket.clone());
    for number in 0..1000 {
        let room = number.to_string();
        shards.join(&socket, &room, LIMITS).unwrap();
        shards.leave(&socket, &room);
    }
    shards.join(&socket, &"last", LIMITS).unwrap();
    let mut changes = Vec::new();
    shards.take_changes(&mut |room, is_occupied| changes.push((room.to_owned(), is_occupied)));
    assert_eq!(changes, [(String::from("last"), true)]);
}

fn connected() -> (Shards<Fake>, Fake) {
    let shards = Shards::new(2);
    let socket = Fake::numbered(0, 0);
    shards.insert(socket.clone());
    (shards, socket)
}

#[test]
fn a_join_beyond_a_limit_joins_none_of_its_rooms() {
    let (shards, socket) = connected();
    shards.join(&socket, &["a", "b"], LIMITS).unwrap();
    let too_many = shards.join(&socket, &["a", "c", "d"], LIMITS);
    assert_eq!(too_many, Err(JoinError::TooManyRooms { limit: 3 }));
    let long = "x".repeat(21);
    let too_long = shards.join(&socket, &["c", &long], LIMITS);
    assert_eq!(too_long, Err(JoinError::NameTooLong { limit: 20 }));
    assert_eq!(shards.rooms_of(&socket).len(), 3);
    assert_eq!(shards.room_count(), 2);
}

#[test]
fn a_room_named_twice_or_joined_before_counts_once() {
    let (shards, socket) = connected();
    shards.join(&socket, &["a", "b"], LIMITS).unwrap();
    let own = socket.id().as_str();
    let names = ["c", "a", "c", own, "c"];
    assert_eq!(shards.join(&socket, &names, LIMITS), Ok(()));
    assert_eq!(shards.rooms_of(&socket).len(), 4);
}

#[test]
fn a_private_room_cannot_be_left() {
    let (shards, socket) = connected();
    shards.leave(&socket, socket.id());
    assert_eq!(*shards.rooms_of(&socket)[0], *socket.id().as_str());
    let mut target = Target::default();
    target.add_rooms(socket.id());
    let mut selected = 0;
    shards.select(&target, |_| selected += 1, || {});
    assert_eq!(selected, 1);
}

#[test]
fn a_disconnected_socket_joins_nothing() {
    let (shards, socket) = connected();
    assert!(shards.remove(&socket));
    let joined = shards.join(&socket, &"a", LIMITS);
    assert_eq!(joined, Err(JoinError::Disconnected));
    assert_eq!((shards.len(), shards.room_count()), (0, 0));
}

#[test]
fn first_and_last_members_reach_the_directory_under_the_lock_of_their_shard() {
    let (shards, socket) = connected();
    // Done later, the change of one thread could undo that of the next.
    let changes: [&(dyn Fn() + Sync); 4] = [
        &|| shards.join(&socket, &"a", LIMITS).unwrap(),
        &|| shards.leave(&socket, &"a"),
        &|| shards.join(&socket, &"b", LIMITS).unwrap(),
        &|| assert!(shards.remove(&socket)),
    ];
    for change in changes {
        thread::scope(|scope| {
            let held = shards.directory.hold();
            scope.spawn(change);
            wait_until_locked(&shards.shards[0]);
            drop(held);
        });
    }
}

/// Waits until a lock is held by another thread, and not only in passing.
fn wait_until_locked(shard: &Shard<Fake>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut in_a_row = 0;
    while in_a_row < 1000 {
        in_a_row = if shard.0.is_locked() { in_a_row + 1 } else { 0 };
        assert!(Instant::now() < deadline, "the shard is not locked");
        thread::yield_now();
    }
}
