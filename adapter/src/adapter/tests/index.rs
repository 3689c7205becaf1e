//! Joining and leaving under limits, and the directory, against a naive model.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use roomcast_protocol::{
    message::Message,
    question::{Answered, Question},
    target::Target,
};

use super::{Adapter, Shard};
use crate::{
    BusError, BusFuture, BusHandle, JoinError, Member, Published, RoomLimits, SocketId, Tracking,
    directory::ShardSet,
    member::fake::{Fake, id},
};

const SOCKETS: usize = 8;

const LIMITS: RoomLimits = RoomLimits {
    rooms_per_socket: 3,
    name_bytes: 30,
};

#[derive(Debug, Clone)]
enum Step {
    /// Connects the socket, or disconnects it if it is connected.
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

fn take_step(adapter: &Adapter<Fake>, sockets: &[Fake], model: &mut Model, step: &Step) {
    match step {
        Step::Toggle(socket) => match model.remove(socket) {
            Some(_) => assert!(adapter.remove(&sockets[*socket])),
            None => {
                assert!(!adapter.remove(&sockets[*socket]));
                adapter.insert(sockets[*socket].clone());
                model.insert(*socket, BTreeSet::new());
            }
        },
        Step::Join(socket, rooms) => {
            let expected = join(model, *socket, sockets[*socket].id().as_str(), rooms);
            assert_eq!(adapter.join(&sockets[*socket], rooms), expected);
        }
        Step::Leave(socket, rooms) => {
            adapter.leave(&sockets[*socket], rooms);
            if let Some(joined) = model.get_mut(socket) {
                joined.retain(|room| !rooms.contains(room));
            }
        }
    }
}

fn join(model: &mut Model, socket: usize, own: &str, rooms: &[String]) -> Result<(), JoinError> {
    let joined = model.get_mut(&socket).ok_or(JoinError::Disconnected)?;
    if rooms.iter().any(|room| room.len() > LIMITS.name_bytes) {
        let limit = LIMITS.name_bytes;
        return Err(JoinError::NameTooLong { limit });
    }
    let mut more = joined.clone();
    more.extend(rooms.iter().filter(|room| *room != own).cloned());
    if more.len() > LIMITS.rooms_per_socket {
        let limit = LIMITS.rooms_per_socket;
        let free = limit - joined.len();
        return Err(JoinError::TooManyRooms { limit, free });
    }
    *joined = more;
    Ok(())
}

fn check_equal(adapter: &Adapter<Fake>, sockets: &[Fake], model: &Model) {
    assert_eq!(adapter.len(), model.len());
    for (number, socket) in sockets.iter().enumerate() {
        let found = adapter.has_member(socket.id().as_str());
        assert_eq!(found, model.contains_key(&number));
        let rooms = adapter.rooms_of(socket);
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

/// The directory must name exactly the adapter in which a room has members.
fn check_directory(adapter: &Adapter<Fake>, sockets: &[Fake], model: &Model) {
    let mut occupied = BTreeMap::<&str, ShardSet>::new();
    for (number, rooms) in model {
        for room in rooms {
            *occupied.entry(room).or_default() |= 1 << adapter.index(&sockets[*number]);
        }
    }
    let mut listed = adapter.directory.names();
    listed.sort();
    assert!(
        listed
            .iter()
            .map(|name| &**name)
            .eq(occupied.keys().copied())
    );
    assert_eq!(adapter.room_count(), occupied.len());
    for (name, set) in occupied {
        assert_eq!(adapter.directory.shards_of(adapter.hash(name), name), set);
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
        let adapter = Adapter::new(count, LIMITS, None);
        let homes = homes.into_iter().enumerate();
        let sockets: Vec<_> = homes.map(|(socket, home)| Fake::numbered(socket, home)).collect();
        let mut model = Model::new();
        for step in &steps {
            take_step(&adapter, &sockets, &mut model, step);
            check_equal(&adapter, &sockets, &model);
            check_directory(&adapter, &sockets, &model);
        }
    }
}

/// A bus that notes whether there may be changes.
struct Notified {
    tracking: Tracking,
    is_changed: AtomicBool,
}

impl Notified {
    fn new(tracking: Tracking) -> Arc<Self> {
        Arc::new(Self {
            tracking,
            is_changed: false.into(),
        })
    }

    fn is_changed(&self) -> bool {
        self.is_changed.swap(false, Ordering::AcqRel)
    }
}

impl BusHandle for Notified {
    fn tracking(&self) -> Tracking {
        self.tracking
    }

    fn changed(&self) {
        self.is_changed.store(true, Ordering::Release);
    }

    fn publish(&self, _: Message) -> BusFuture<Result<Published, BusError>> {
        unreachable!("an index does not publish")
    }

    fn ask(&self, _: Question, _: Duration) -> BusFuture<Result<Answered, BusError>> {
        unreachable!("an index does not ask")
    }
}

fn tracked(shards: usize, bus: &Arc<Notified>) -> Adapter<Fake> {
    Adapter::new(shards, LIMITS, Some(Arc::clone(bus) as _))
}

/// The knowledge of a bus that is notified of changes: the rooms with members.
#[derive(Default)]
struct Heard(BTreeSet<String>);

impl Heard {
    fn listen(&mut self, adapter: &Adapter<Fake>) {
        adapter.take_changes(&mut |room, is_occupied| {
            let is_news = if is_occupied {
                self.0.insert(room.to_owned())
            } else {
                self.0.remove(room)
            };
            assert!(is_news, "{room} was {is_occupied} before");
        });
    }
}

/// The rooms with members that are reported to a bus.
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
        let bus = Notified::new(tracking);
        let adapter = tracked(3, &bus);
        let sockets: Vec<_> = (0..SOCKETS).map(|number| some_long(number, number)).collect();
        let ids: Vec<_> = sockets.iter().map(|socket| socket.id().to_string()).collect();
        let mut model = Model::new();
        let mut heard = Heard::default();
        for (mut step, asks) in steps {
            if let Step::Join(socket, rooms) = &mut step {
                // Rooms may bear the id of another socket, of the long ones, too.
                rooms.push(ids[(*socket + 3) % SOCKETS].clone());
            }
            take_step(&adapter, &sockets, &mut model, &step);
            let truth = told(&model, &sockets, tracking);
            if asks {
                let is_changed = bus.is_changed();
                prop_assert!(is_changed || truth == heard.0);
                heard.listen(&adapter);
                prop_assert_eq!(&heard.0, &truth);
            }
            for name in model.values().flatten().chain(&ids) {
                let number = ids.iter().position(|id| id == name);
                let is_occupied = model.values().flatten().any(|joined| joined == name)
                    || number.is_some_and(|number| model.contains_key(&number));
                prop_assert_eq!(adapter.has_room(name), is_occupied);
            }
        }
    }
}

#[test]
fn what_a_bus_hears_is_the_truth_after_joins_and_leaves_of_several_threads() {
    const ROOMS: [&str; 3] = ["a", "b", "c"];
    let bus = Notified::new(Tracking::RoomsAndSockets);
    let adapter = tracked(2, &bus);
    let sockets: Vec<_> = (0..4)
        .map(|number| Fake::numbered(number, number))
        .collect();
    let done = AtomicBool::new(false);
    let mut heard = Heard::default();
    thread::scope(|scope| {
        let workers: Vec<_> = sockets
            .iter()
            .map(|socket| scope.spawn(|| come_and_go(&adapter, socket, &ROOMS)))
            .collect();
        let listening = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if bus.is_changed() {
                    heard.listen(&adapter);
                }
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Release);
        listening.join().unwrap();
    });
    // Every change was reported.
    if bus.is_changed() {
        heard.listen(&adapter);
    }
    let mut rest = 0;
    adapter.take_changes(&mut |_, _| rest += 1);
    assert_eq!(rest, 0);
    let truth = ROOMS.iter().copied().filter(|room| adapter.has_room(room));
    let mut truth: BTreeSet<String> = truth.map(str::to_owned).collect();
    truth.extend(sockets.iter().map(|socket| socket.id().to_string()));
    assert_eq!(heard.0, truth);
}

/// Connects, joins, leaves and disconnects many times; ends connected, in one room or another.
fn come_and_go(adapter: &Adapter<Fake>, socket: &Fake, rooms: &[&str]) {
    for turn in 0..2000_usize {
        adapter.insert(socket.clone());
        let room = rooms[turn % rooms.len()];
        adapter.join(socket, &room).unwrap();
        if turn % 2 == 0 {
            adapter.leave(socket, &room);
        }
        assert!(adapter.remove(socket));
    }
    adapter.insert(socket.clone());
    adapter.join(socket, &rooms[0]).unwrap();
}

#[test]
fn changes_that_nobody_takes_are_no_more_than_rooms() {
    let adapter = tracked(2, &Notified::new(Tracking::Rooms));
    let socket = Fake::numbered(0, 0);
    adapter.insert(socket.clone());
    for number in 0..1000 {
        let room = number.to_string();
        adapter.join(&socket, &room).unwrap();
        adapter.leave(&socket, &room);
    }
    adapter.join(&socket, &"last").unwrap();
    let mut changes = Vec::new();
    adapter.take_changes(&mut |room, is_occupied| changes.push((room.to_owned(), is_occupied)));
    assert_eq!(changes, [(String::from("last"), true)]);
}

fn connected() -> (Adapter<Fake>, Fake) {
    let adapter = Adapter::new(2, LIMITS, None);
    let socket = Fake::numbered(0, 0);
    adapter.insert(socket.clone());
    (adapter, socket)
}

#[test]
fn a_private_room_cannot_be_left() {
    let (adapter, socket) = connected();
    adapter.leave(&socket, socket.id());
    assert_eq!(*adapter.rooms_of(&socket)[0], *socket.id().as_str());
    let mut target = Target::default();
    target.add_rooms(socket.id());
    let mut selected = 0;
    adapter.each_selected(&target, |_| selected += 1, || {});
    assert_eq!(selected, 1);
}

#[test]
fn first_and_last_members_reach_the_directory_under_the_lock_of_their_shard() {
    let (adapter, socket) = connected();
    // Done later, the change of one thread could undo that of the next.
    let changes: [&(dyn Fn() + Sync); 4] = [
        &|| adapter.join(&socket, &"a").unwrap(),
        &|| adapter.leave(&socket, &"a"),
        &|| adapter.join(&socket, &"b").unwrap(),
        &|| assert!(adapter.remove(&socket)),
    ];
    for change in changes {
        thread::scope(|scope| {
            let held = adapter.directory.hold();
            scope.spawn(change);
            wait_until_locked(&adapter.shards[0]);
            drop(held);
        });
    }
}

/// Waits until a lock is held by another thread, and not only in passing.
fn wait_until_locked(shard: &Shard<Fake>) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut in_a_row = 0;
    while in_a_row < 100 {
        in_a_row = if shard.0.is_locked() { in_a_row + 1 } else { 0 };
        assert!(Instant::now() < deadline, "the shard is not locked");
        thread::yield_now();
    }
}

#[test]
fn a_socket_that_has_left_does_not_take_another_one_with_its_id_out_of_the_rooms() {
    let adapter = Adapter::new(1, LIMITS, None);
    let (former, socket) = (Fake::numbered(1, 0), Fake::numbered(1, 0));
    adapter.insert(socket.clone());
    adapter.join(&socket, &"r").unwrap();
    assert!(!adapter.remove(&former));
    adapter.leave(&former, &"r");
    assert_eq!(adapter.join(&former, &"x"), Err(JoinError::Disconnected));
    assert!(adapter.rooms_of(&former).is_empty());
    let rooms = adapter.rooms_of(&socket);
    assert_eq!(rooms, [socket.id().as_str(), "r"].map(Arc::from));
    assert!(adapter.remove(&socket));
}
