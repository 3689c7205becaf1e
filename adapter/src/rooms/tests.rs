//! The index against a naive model, and its memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::member::fake::{Fake, id};

/// Socket by id, with the rooms it has joined.
type Model = BTreeMap<String, BTreeSet<String>>;

/// Some sockets may be there, and their ids may be names of rooms.
const SOCKETS: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    /// Connects the socket, or disconnects it if it is connected.
    Toggle(usize),
    Join(usize, String),
    Leave(usize, String),
    Select(Target),
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[a-d]",
        1 => (0..SOCKETS).prop_map(id),
    ]
}

fn names() -> impl Strategy<Value = Vec<Box<str>>> {
    prop::collection::vec(name().prop_map(Box::from), 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..SOCKETS).prop_map(Step::Toggle),
        4 => (0..SOCKETS, name()).prop_map(|(socket, room)| Step::Join(socket, room)),
        2 => (0..SOCKETS, name()).prop_map(|(socket, room)| Step::Leave(socket, room)),
        3 => (names(), names()).prop_map(|(rooms, except)| {
            let flags = Default::default();
            Step::Select(Target { rooms, except, flags })
        }),
    ]
}

/// A poor hash on purpose: many names share one, in both of its halves.
fn hash(name: &str) -> Hash {
    let sum: u64 = name.bytes().map(u64::from).sum();
    ((sum % 3) << 62) | ((sum % 3) << 32) | (sum % 2)
}

fn select(rooms: &mut Rooms<Fake>, target: &Target) -> Vec<String> {
    let names = target.rooms.iter().chain(&target.except);
    let hashes: Vec<_> = names.map(|name| hash(name)).collect();
    let mut selected = Vec::new();
    rooms.select(target, &hashes, |member| {
        selected.push(member.id().to_string())
    });
    selected.sort();
    selected
}

fn meant(model: &Model, target: &Target) -> Vec<String> {
    let in_any = |id: &String, joined: &BTreeSet<String>, names: &[Box<str>]| {
        names
            .iter()
            .any(|name| **name == **id || joined.contains(&**name))
    };
    let meant = model.iter().filter(|(id, joined)| {
        (target.rooms.is_empty() || in_any(id, joined, &target.rooms))
            && !in_any(id, joined, &target.except)
    });
    meant.map(|(id, _)| id.clone()).collect()
}

fn members_of(model: &Model, room: &str) -> usize {
    model
        .values()
        .filter(|joined| joined.contains(room))
        .count()
}

/// The index and the model must return the same for a change, including first and last members.
fn take_step(rooms: &mut Rooms<Fake>, model: &mut Model, step: &Step) {
    match step {
        Step::Toggle(socket) => toggle(rooms, model, *socket),
        Step::Join(socket, room) => {
            let id = id(*socket);
            let Some(slot) = rooms.find_member(hash(&id), &id) else {
                return assert!(!model.contains_key(&id));
            };
            let is_new = model.get_mut(&id).unwrap().insert(room.clone());
            let (change, name) = rooms.join(slot, hash(room), room);
            assert_eq!(change, expected(is_new, members_of(model, room) == 1));
            assert_eq!(*name, **room);
        }
        Step::Leave(socket, room) => {
            let id = id(*socket);
            let Some(slot) = rooms.find_member(hash(&id), &id) else {
                return assert!(!model.contains_key(&id));
            };
            let was_in = model.get_mut(&id).unwrap().remove(room);
            let change = rooms.leave(slot, hash(room), room);
            assert_eq!(change, expected(was_in, members_of(model, room) == 0));
        }
        Step::Select(target) => {
            assert_eq!(select(rooms, target), meant(model, target), "{target:?}");
        }
    }
}

fn toggle(rooms: &mut Rooms<Fake>, model: &mut Model, socket: usize) {
    let id = id(socket);
    let Some(joined) = model.remove(&id) else {
        let member = Fake::numbered(socket, 0);
        let slot = rooms.insert(member.clone(), hash(&id));
        assert_eq!(rooms.slot(hash(&id), &member), Some(slot));
        model.insert(id, BTreeSet::new());
        return;
    };
    let slot = rooms.find_member(hash(&id), &id).unwrap();
    let mut emptied = BTreeSet::new();
    rooms.remove(slot, |known, name| {
        assert_eq!(known, hash(name));
        assert!(emptied.insert(name.to_string()), "{name} twice");
    });
    let lonely = joined
        .into_iter()
        .filter(|room| members_of(model, room) == 0);
    assert_eq!(emptied, lonely.collect());
}

fn expected(changed: bool, edge: bool) -> Change {
    match (changed, edge) {
        (false, _) => Change::None,
        (true, false) => Change::Some,
        (true, true) => Change::Edge,
    }
}

fn check_equal(rooms: &Rooms<Fake>, model: &Model) {
    assert_eq!(rooms.len(), model.len());
    for socket in 0..SOCKETS {
        let id = id(socket);
        let slot = rooms.find_member(hash(&id), &id);
        assert_eq!(rooms.member(hash(&id), &id).is_some(), slot.is_some());
        assert_eq!(slot.is_some(), model.contains_key(&id));
        let Some(slot) = slot else { continue };
        let mut listed: Vec<_> = rooms.rooms_of(slot).map(|name| name.to_string()).collect();
        listed.sort();
        let joined = &model[&id];
        assert!(listed.iter().eq(joined), "{listed:?}, not {joined:?}");
        assert_eq!(rooms.room_count_of(slot), joined.len());
        for name in ["a", "b", "c", "d"] {
            assert_eq!(rooms.is_in(slot, hash(name), name), joined.contains(name));
        }
    }
}

/// Sockets and rooms must know each other's places.
fn check_sound(rooms: &Rooms<Fake>) {
    let mut places = 0;
    for (slot, entry) in &rooms.members {
        for place in &entry.places {
            let room = &rooms.rooms[place.room as usize];
            assert_eq!(room.members[place.position as usize] as usize, slot);
            places += 1;
        }
    }
    let members = rooms.rooms.iter().map(|(_, room)| room.members.len());
    assert_eq!(members.clone().sum::<usize>(), places);
    assert!(members.clone().all(|members| members > 0));
    assert_eq!(rooms.names.len(), rooms.rooms.len());
    assert_eq!(rooms.ids.len(), rooms.members.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_index_equals_a_naive_model_after_any_steps(
        steps in prop::collection::vec(step(), 1..60),
        until_wrap in 0u32..10,
    ) {
        let epoch = u32::MAX - until_wrap;
        let mut rooms = Rooms { epoch, ..Rooms::default() };
        let mut model = Model::new();
        for step in &steps {
            take_step(&mut rooms, &mut model, step);
            check_equal(&rooms, &model);
            check_sound(&rooms);
        }
    }
}

#[test]
fn marks_of_an_older_round_of_epochs_exclude_nobody() {
    let mut rooms = Rooms::default();
    let ids = [id(0), id(1)];
    for (socket, id) in ids.iter().enumerate() {
        rooms.insert(Fake::numbered(socket, 0), hash(id));
    }
    let mut all_but_the_first = Target::default();
    all_but_the_first.add_except(&ids[0]);
    assert_eq!(select(&mut rooms, &all_but_the_first), ids[1..]);
    assert_eq!(rooms.epoch, 1);
    rooms.epoch = u32::MAX;
    // This selection has the number that marked the first socket.
    assert_eq!(select(&mut rooms, &Target::default()), ids);
    assert_eq!(rooms.epoch, 1);
}

#[test]
fn an_empty_shard_gives_its_memory_back() {
    let mut rooms = Rooms::default();
    let count = SHARD_KEEPS + 1;
    let slots: Vec<_> = (0..count)
        .map(|socket| rooms.insert(Fake::numbered(socket, 0), spread(socket as u32)))
        .collect();
    for slot in &slots {
        rooms.join(*slot, u64::from(*slot), &format!("room {slot}"));
    }
    for slot in slots {
        assert!(rooms.members.capacity() > SHARD_KEEPS);
        rooms.remove(slot, |_, _| {});
    }
    assert_eq!((rooms.members.capacity(), rooms.rooms.capacity()), (0, 0));
    assert_eq!((rooms.ids.capacity(), rooms.names.capacity()), (0, 0));
    rooms.insert(Fake::numbered(0, 0), 0);
    check_sound(&rooms);
}

#[test]
fn a_room_that_has_shrunk_gives_its_memory_back() {
    let mut rooms = Rooms::default();
    let slots: Vec<_> = (0..1000)
        .map(|socket| rooms.insert(Fake::numbered(socket, 0), spread(socket as u32)))
        .collect();
    for slot in &slots {
        rooms.join(*slot, hash("a"), "a");
    }
    for slot in &slots[1..] {
        assert_eq!(rooms.leave(*slot, hash("a"), "a"), Change::Some);
    }
    let room = rooms.find_room(hash("a"), "a").unwrap();
    assert!(rooms.rooms[room as usize].members.capacity() <= ROOM_KEEPS);
    check_sound(&rooms);
}

#[test]
fn a_socket_that_has_left_most_rooms_needs_no_list_beside_it() {
    let mut rooms = Rooms::default();
    let slot = rooms.insert(Fake::numbered(0, 0), 0);
    for name in ["a", "b", "c"] {
        rooms.join(slot, hash(name), name);
    }
    assert!(rooms.entry(slot).places.spilled());
    rooms.leave(slot, hash("a"), "a");
    assert!(!rooms.entry(slot).places.spilled());
    assert_eq!(rooms.room_count_of(slot), 2);
}
