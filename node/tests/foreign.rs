//! An application relays requests to the server that has the session, by the library's
//! own names. Both servers are in the test's process.

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use roomcast::{
    ForeignRequest, MemoryBus, Server,
    bus::{Attachment, Bus, BusFuture, BusHandle, Peer},
};
use support::{Polling, TestServer, http, server::main_namespace, within};
use tower::ServiceExt as _;

const UNKNOWN: &str = r#"{"code":1,"message":"Session ID unknown"}"#;

/// A bus that knows the addresses of some nodes after they were read.
#[derive(Clone, Default)]
struct Located {
    bus: MemoryBus,
    stated: Arc<Mutex<Vec<Peer>>>,
    known: Arc<Mutex<Vec<Peer>>>,
    readings: Arc<AtomicUsize>,
}

impl Bus for Located {
    fn attach(&self, attachment: Attachment<'_>) -> Arc<dyn BusHandle> {
        self.bus.attach(attachment)
    }

    fn find_peer(&self, tag: &str) -> Option<Peer> {
        let known = self.known.lock();
        let mut found = known.iter();
        found.find(|peer| &peer.node.as_str()[..4] == tag).cloned()
    }

    fn read_peers(&self) -> BusFuture<()> {
        let bus = self.clone();
        Box::pin(async move {
            bus.readings.fetch_add(1, Ordering::SeqCst);
            let stated = bus.stated.lock().clone();
            *bus.known.lock() = stated;
        })
    }
}

/// Two servers, of which the second states this address.
async fn servers(address: &str) -> (Located, TestServer, TestServer) {
    let bus = Located::default();
    let start = || {
        TestServer::start(
            Server::builder()
                .namespace(main_namespace())
                .bus(bus.clone()),
        )
    };
    let (first, second) = (start().await, start().await);
    bus.stated.lock().push(Peer {
        node: second.io.node().clone(),
        address: address.into(),
    });
    (bus, first, second)
}

/// Two servers, of which the first relays to the second.
struct Pair {
    bus: Located,
    first: TestServer,
    second: TestServer,
    relayed: Arc<AtomicUsize>,
}

async fn pair() -> Pair {
    let (bus, first, second) = servers("at the second").await;
    let (routes, relayed) = (second.io.relayed_router(), Arc::new(AtomicUsize::new(0)));
    let (count, owner) = (Arc::clone(&relayed), second.io.node().clone());
    let is_first = first.io.relay_with(move |foreign: ForeignRequest| {
        assert_eq!(
            (&foreign.owner, &*foreign.address),
            (&owner, "at the second")
        );
        count.fetch_add(1, Ordering::SeqCst);
        let routes = routes.clone();
        async move { routes.oneshot(foreign.request).await.ok() }
    });
    assert!(is_first);
    Pair {
        bus,
        first,
        second,
        relayed,
    }
}

#[tokio::test]
async fn requests_of_another_servers_session_are_relayed_and_own_ones_are_not() {
    let pair = pair().await;
    let mut own = Polling::connect(pair.first.address).await;
    own.say(r#"420["echo","a"]"#).await;
    assert_eq!(own.packet().await, r#"430["a"]"#);
    assert_eq!(pair.relayed.load(Ordering::SeqCst), 0);
    let mut foreign = Polling::connect(pair.second.address).await;
    foreign.address = pair.first.address;
    foreign.say(r#"420["echo","b"]"#).await;
    assert_eq!(foreign.packet().await, r#"430["b"]"#);
    assert_eq!(pair.relayed.load(Ordering::SeqCst), 2);
    assert_eq!(
        pair.bus.readings.load(Ordering::SeqCst),
        1,
        "then it is known"
    );
    let closed = Polling::connect(pair.first.address).await;
    closed.say("1").await;
    assert_eq!(closed.get().await.body, "6");
    let response = closed.get().await;
    assert_eq!((response.status, &*response.body), (400, UNKNOWN));
    assert_eq!(pair.relayed.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_session_of_no_node_is_unknown() {
    let pair = pair().await;
    let target = "/socket.io/?EIO=4&transport=polling&sid=";
    for id in ["nobodyhasthissession", "tooshort", "not!a!valid!id!at!al"] {
        let response = http::request(pair.first.address, "GET", &format!("{target}{id}"), "").await;
        assert_eq!((response.status, &*response.body), (400, UNKNOWN), "{id}");
    }
    assert_eq!(pair.relayed.load(Ordering::SeqCst), 0);
    assert_eq!(
        pair.bus.readings.load(Ordering::SeqCst),
        1,
        "only one was an id"
    );
}

#[tokio::test]
async fn a_session_that_the_relay_does_not_reach_is_unknown() {
    let (_, first, second) = servers("").await;
    assert!(first.io.relay_with(async |_| None));
    assert!(!first.io.relay_with(async |_| None), "the first one stays");
    let mut session = Polling::connect(second.address).await;
    session.address = first.address;
    let response = session.post("41").await;
    assert_eq!((response.status, &*response.body), (400, UNKNOWN));
}

#[tokio::test]
async fn what_is_relayed_opens_no_session_and_makes_one_hop() {
    let pair = pair().await;
    let listener = support::server::listen().await;
    let address = listener.local_addr().unwrap();
    let serving = pair
        .first
        .io
        .serve(listener, pair.first.io.relayed_router());
    let serving = tokio::spawn(serving.into_future());
    let response = http::request(address, "GET", "/socket.io/?EIO=4&transport=polling", "").await;
    assert_eq!(response.status, 400);
    assert_eq!(pair.first.io.connections(), 0);
    let foreign = Polling::connect(pair.second.address).await;
    let response = http::request(address, "GET", &foreign.target(), "").await;
    assert_eq!((response.status, &*response.body), (400, UNKNOWN));
    assert_eq!(pair.relayed.load(Ordering::SeqCst), 0);
    serving.abort();
}

#[tokio::test]
async fn a_poll_is_ended_for_a_node_that_stops() {
    let pair = pair().await;
    let session = Polling::connect(pair.second.address).await;
    let routes = pair.second.io.relayed_router();
    let end = || {
        let request = axum::http::Request::delete(session.target());
        routes
            .clone()
            .oneshot(request.body(axum::body::Body::empty()).unwrap())
    };
    // Without a poll nothing happens.
    assert_eq!(end().await.unwrap().status(), 200);
    let poll = session.get();
    let ending = async {
        // The poll may not have come yet.
        loop {
            assert_eq!(end().await.unwrap().status(), 200);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let response = within("the end of the poll", async {
        tokio::select! {
            response = poll => response,
            () = ending => unreachable!("it goes on"),
        }
    });
    assert_eq!(response.await.body, "6");
    // Clients cannot do that, at any node.
    for address in [pair.second.address, pair.first.address] {
        let response = http::request(address, "DELETE", &session.target(), "").await;
        assert_eq!(response.status, 405);
    }
    assert_eq!(pair.relayed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_request_that_travelled_in_another_form_is_served_as_one_of_http() {
    let pair = pair().await;
    let session = Polling::connect(pair.second.address).await;
    let ask = async |method: &str, target: &str, body: &'static str| {
        let request = axum::http::Request::builder().method(method).uri(target);
        let request = request.body(body.into()).unwrap();
        let response = within("the response", pair.second.io.respond_to_relayed(request)).await;
        let (head, body) = response.into_parts();
        (
            head.status.as_u16(),
            String::from_utf8(body.to_vec()).unwrap(),
        )
    };
    let target = session.target();
    let ok = (200, "ok".to_owned());
    assert_eq!(ask("POST", &target, r#"420["echo","a"]"#).await, ok);
    assert_eq!(
        ask("GET", &target, "").await,
        (200, r#"430["a"]"#.to_owned())
    );
    assert_eq!(ask("DELETE", &target, "").await, ok);
    assert_eq!(ask("PUT", &target, "").await.0, 405);
    let unknown = (400, UNKNOWN.to_owned());
    let foreign = Polling::connect(pair.first.address).await;
    assert_eq!(ask("GET", &foreign.target(), "").await, unknown, "one hop");
    let open = "/socket.io/?EIO=4&transport=polling";
    assert_eq!(ask("GET", open, "").await, unknown);
    let upgrade = target.replace("polling", "websocket");
    assert_eq!(ask("GET", &upgrade, "").await.0, 400);
    assert_eq!(ask("POST", &target, "1").await, ok);
    assert_eq!(ask("GET", &target, "").await, (200, "6".to_owned()));
    assert_eq!(ask("GET", &target, "").await, unknown, "it has ended");
}
