use super::{super::table::Page, *};

/// Nodes that publish into each other's hands.
struct Cluster {
    nodes: BTreeMap<String, State>,
    now: Duration,
}

impl Cluster {
    fn of(names: &[&str]) -> Self {
        let state = |name: &&str| ((*name).to_owned(), State::new(name, 100_000));
        Self {
            nodes: names.iter().map(state).collect(),
            now: Duration::ZERO,
        }
    }

    fn alive(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// All messages that are published now.
    fn published(&mut self) -> Vec<Message> {
        let (alive, now) = (self.alive(), self.now);
        let nodes = self.nodes.values_mut();
        let published = nodes.flat_map(|node| std::iter::from_fn(|| node.next(&alive, now)));
        published.collect()
    }

    fn deliver(&mut self, message: &Message) {
        for node in self.nodes.values_mut() {
            node.receive(message.clone(), self.now);
        }
    }

    /// Lets some time pass. `lose` chooses messages that arrive nowhere.
    fn run(&mut self, seconds: u64, mut lose: impl FnMut(&Message) -> bool) {
        for _ in 0..seconds * 2 {
            self.now += Duration::from_millis(500);
            for message in self.published() {
                if !lose(&message) {
                    self.deliver(&message);
                }
            }
        }
    }

    fn set(&mut self, node: &str, socket: &str, user: &str, rooms: &[&str]) {
        let rooms: Vec<_> = rooms.iter().map(|room| (*room).to_owned()).collect();
        let node = self.nodes.get_mut(node).unwrap();
        node.change(socket, Some((user, &rooms)));
    }

    /// A node starts that has place for so many sockets and memberships.
    fn start(&mut self, node: &str, max: usize) {
        self.nodes.insert(node.to_owned(), State::new(node, max));
    }

    fn gone(&mut self, node: &str, socket: &str) {
        self.nodes.get_mut(node).unwrap().change(socket, None);
    }

    /// The full states that a node has published.
    fn fulls(&self, node: &str) -> u64 {
        self.nodes[node].figures().1
    }

    fn users(&self, node: &str) -> (Vec<String>, Vec<String>) {
        let page = Page {
            limit: 10_000,
            ..Page::default()
        };
        let look = |table: &Table| table.users(None, &page);
        let found = self.nodes[node].found(&self.alive(), self.now, look);
        let users = found.page.iter().map(|online| {
            let rooms: Vec<_> = online.rooms.iter().map(|room| &**room).collect();
            let (user, sockets, rooms) = (&online.user, online.sockets.len(), rooms.join(","));
            format!("{user} {sockets} {rooms}")
        });
        (users.collect(), found.silent_nodes)
    }
}

fn nothing(_: &Message) -> bool {
    false
}

#[test]
fn each_node_knows_the_users_of_all() {
    let mut cluster = Cluster::of(&["a", "b"]);
    cluster.set("a", "a1", "ada", &["lobby"]);
    assert_eq!(cluster.users("b").1, ["a"], "nothing is known of it yet");
    cluster.run(5, nothing);
    cluster.set("b", "b1", "ada", &["vip"]);
    cluster.set("b", "b2", "bob", &[]);
    cluster.run(1, nothing);
    for node in ["a", "b"] {
        let expected = vec!["ada 2 lobby,vip".to_owned(), "bob 1 ".to_owned()];
        assert_eq!(cluster.users(node), (expected, vec![]));
    }
    cluster.gone("b", "b2");
    cluster.set("b", "b1", "ada", &[]);
    cluster.run(1, nothing);
    assert_eq!(cluster.users("a").0, ["ada 2 lobby"]);
}

#[test]
fn a_node_that_starts_later_gets_the_full_state_in_parts_while_users_come_and_go() {
    let mut cluster = Cluster::of(&["a"]);
    for index in 0..3000 {
        cluster.set("a", &format!("s{index}"), &format!("u{index}"), &["lobby"]);
    }
    cluster.run(5, nothing);
    cluster.start("b", 100_000);
    let mut parts = 0;
    cluster.run(5, |message| {
        assert!(message.set.len() <= MAX_SOCKETS);
        parts += usize::from(!message.set.is_empty());
        false
    });
    assert!(parts >= 3000 / MAX_SOCKETS);
    let (users, silent) = cluster.users("b");
    assert_eq!((users.len(), silent.len()), (3000, 0));
    let before = cluster.fulls("a");
    cluster.run(20, nothing);
    assert_eq!(cluster.fulls("a"), before, "nobody asks again");
}

#[test]
fn changes_between_the_parts_of_a_full_state_win() {
    let mut cluster = Cluster::of(&["a", "b"]);
    cluster.run(5, nothing);
    for index in 0..2000 {
        cluster.set("a", &format!("s{index:04}"), "ada", &["before"]);
    }
    cluster.run(1, |message| message.from == "a");
    let mut changed = false;
    for _ in 0..40 {
        cluster.now += Duration::from_millis(500);
        let (alive, now) = (cluster.alive(), cluster.now);
        for name in ["a", "b"] {
            let Some(message) = cluster.nodes.get_mut(name).unwrap().next(&alive, now) else {
                continue;
            };
            cluster.deliver(&message);
            if message.first && !changed {
                changed = true;
                for index in 0..2000 {
                    let socket = format!("s{index:04}");
                    match index % 2 {
                        0 => cluster.gone("a", &socket),
                        _ => cluster.set("a", &socket, "bob", &["after"]),
                    }
                }
            }
        }
    }
    assert!(changed);
    let expected = vec!["bob 1000 after".to_owned()];
    assert_eq!(cluster.users("b"), (expected, vec![]));
}

#[test]
fn a_lost_message_is_noticed_by_the_next_beat_and_made_good() {
    let mut cluster = Cluster::of(&["a", "b"]);
    cluster.run(5, nothing);
    cluster.set("a", "a1", "ada", &["lobby"]);
    cluster.run(1, |message| !message.set.is_empty());
    assert_eq!(cluster.users("b").0.len(), 0);
    cluster.run(10, nothing);
    assert_eq!(cluster.users("b"), (vec!["ada 1 lobby".to_owned()], vec![]));
}

#[test]
fn a_full_state_of_which_a_part_is_lost_is_asked_for_again() {
    let mut cluster = Cluster::of(&["a"]);
    for index in 0..2000 {
        cluster.set("a", &format!("s{index}"), &format!("u{index}"), &[]);
    }
    cluster.run(5, nothing);
    cluster.start("b", 100_000);
    let mut lost = 0;
    cluster.run(30, |message| {
        let is_part = message.set.len() == MAX_SOCKETS && !message.first;
        lost += usize::from(is_part);
        is_part && lost == 2
    });
    assert!(lost >= 2);
    let (users, silent) = cluster.users("b");
    assert_eq!((users.len(), silent.len()), (2000, 0));
}

#[test]
fn messages_that_overtake_each_other_are_put_in_order() {
    let mut cluster = Cluster::of(&["a", "b"]);
    cluster.run(5, nothing);
    let fulls = cluster.fulls("a");
    let mut published = Vec::new();
    for room in ["one", "two", "three"] {
        cluster.set("a", "a1", "ada", &[room]);
        published.extend(cluster.published());
    }
    for message in published.iter().rev() {
        cluster.deliver(message);
    }
    assert_eq!(cluster.users("b"), (vec!["ada 1 three".to_owned()], vec![]));
    for message in &published {
        cluster.deliver(message);
    }
    assert_eq!(cluster.users("b").0, ["ada 1 three"], "twice is once");
    cluster.run(5, nothing);
    assert_eq!(cluster.fulls("a"), fulls);
}

#[test]
fn what_a_dead_node_held_disappears_with_its_lease() {
    let mut cluster = Cluster::of(&["a", "b", "c"]);
    cluster.set("a", "a1", "ada", &["lobby"]);
    cluster.set("c", "c1", "ada", &["vip"]);
    cluster.run(5, nothing);
    assert_eq!(cluster.users("b").0, ["ada 2 lobby,vip"]);
    cluster.nodes.remove("a");
    cluster.run(5, nothing);
    assert_eq!(cluster.users("b"), (vec!["ada 1 vip".to_owned()], vec![]));
    assert_eq!(cluster.nodes["b"].streams.len(), 1);
}

#[test]
fn a_node_that_is_not_heard_is_named_and_its_users_stay() {
    let mut cluster = Cluster::of(&["a", "b"]);
    cluster.set("a", "a1", "ada", &[]);
    cluster.run(5, nothing);
    cluster.run(20, |message| message.from == "a");
    let known = (vec!["ada 1 ".to_owned()], vec!["a".to_owned()]);
    assert_eq!(cluster.users("b"), known);
    cluster.run(10, nothing);
    assert_eq!(cluster.users("b").1, [""; 0]);
}

#[test]
fn a_node_without_place_says_that_not_all_is_known() {
    let mut cluster = Cluster::of(&["a"]);
    cluster.start("b", 4);
    cluster.set("a", "a1", "ada", &["one"]);
    cluster.run(5, nothing);
    assert_eq!(cluster.users("b").1, [""; 0]);
    cluster.set("a", "a2", "bob", &["one", "two"]);
    cluster.run(5, nothing);
    let known = (vec!["ada 1 one".to_owned()], vec!["a".to_owned()]);
    assert_eq!(cluster.users("b"), known);
    cluster.gone("a", "a1");
    cluster.gone("a", "a2");
    cluster.set("a", "a3", "eve", &[]);
    cluster.run(40, nothing);
    assert_eq!(cluster.users("b"), (vec!["eve 1 ".to_owned()], vec![]));
}

#[test]
fn a_node_without_place_for_its_own_sockets_notes_them_again_when_others_have_gone() {
    let mut state = State::new("a", 4);
    for socket in ["1", "2", "3", "4", "5"] {
        state.change(socket, Some(("ada", &[])));
    }
    let alive = ["a".to_owned()];
    let silent = |state: &State| {
        let look = |table: &Table| table.users(None, &Page::default());
        state.found(&alive, Duration::ZERO, look).silent_nodes
    };
    assert_eq!(silent(&state), alive);
    let later = PLACE_AGAIN + Duration::from_secs(1);
    assert!(!state.has_place_again(Duration::ZERO));
    state.change("1", None);
    state.change("2", None);
    assert!(state.has_place_again(Duration::ZERO));
    assert_eq!(silent(&state), [""; 0]);
    // One that finds none again is not tried all the time.
    state.change("6", Some(("ada", &["a".into(), "b".into()])));
    assert!(!state.has_place_again(Duration::ZERO) && state.has_place_again(later));
}

#[test]
fn what_anybody_publishes_cannot_fill_a_node_or_take_its_sockets() {
    let mut state = State::new("a", 100);
    state.change("s", Some(("ada", &[])));
    for index in 0..2 * MAX_NODES {
        let from = index.to_string();
        let message = Message {
            from,
            ..Message::default()
        };
        state.receive(message, Duration::ZERO);
    }
    assert_eq!(state.streams.len(), MAX_NODES);
    for number in 1..2000 {
        let message = Message {
            from: "0".to_owned(),
            number,
            first: number == 1,
            set: vec![
                (number.to_string(), "eve".into(), Vec::new()),
                ("s".into(), "eve".into(), Vec::new()),
            ],
            gone: vec!["s".into()],
            ..Message::default()
        };
        state.receive(message, Duration::ZERO);
    }
    assert_eq!(state.table.sockets(), 100);
    assert_eq!(&*state.table.get("s").unwrap().user, "ada");
    for number in (3000..6000).step_by(2) {
        let message = Message {
            from: "1".to_owned(),
            number,
            ..Message::default()
        };
        state.receive(message, Duration::ZERO);
    }
    assert!(state.streams["1"].waiting.len() <= MAX_WAITING);
}

#[test]
fn a_quiet_node_publishes_a_beat_and_nothing_else() {
    let mut state = State::new("a", 100);
    let alive = ["a".to_owned()];
    let first = state.next(&alive, Duration::ZERO).unwrap();
    assert_eq!((first.number, first.wants), (1, vec![EVERYBODY.to_owned()]));
    assert!(state.next(&alive, Duration::from_millis(1900)).is_none());
    let beat = state.next(&alive, BEAT).unwrap();
    assert!(beat.wants.is_empty() && beat.set.is_empty());
    assert_eq!(
        serde_json::to_string(&beat).unwrap(),
        r#"{"from":"a","number":2}"#
    );
}
