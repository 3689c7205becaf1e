//! The limits of new connections, and the rates of what a client sends.
//!
//! The rates are low, so that a slow machine lets no more through while a test runs; no test depends on
//! how much more that is.

use roomcast::{Rate, RatePolicy, TrustedProxies};
use serde_json::json;

use super::*;

const TARGET: &str = "/socket.io/?EIO=4&transport=polling";

/// Events that are sent at once. They arrive with one read.
const AT_ONCE: usize = 20;

pub(super) async fn one_connection_too_many_of_an_address_is_refused(limit: &str) {
    let server = limited(|limits| limits.connections_per_address = Some(2)).await;
    let mut first = WebSocket::connect(server.address).await;
    let polling = Polling::connect(server.address).await;
    let refused = http::get(server.address, TARGET).await;
    assert_eq!(refused.status, 429);
    let body = json!({ "limit": limit, "message": "too many connections from this address" });
    assert_eq!(json(&refused.body), body);
    assert_retry_after(&refused, 5);
    assert_eq!(
        WebSocket::refused(server.address, websocket::NEW).await,
        429
    );
    assert_eq!(server.reached(limit), 2);
    let other = server.bystander_from([127, 0, 0, 9]).await;

    first.assert_served().await;
    polling.say("1").await;
    assert_eq!(polling.get().await.body, "6");
    eventually("there is room", || server.io.connections() == 2).await;
    let mut third = WebSocket::connect(server.address).await;
    third.assert_served().await;
    drop(other);
}

pub(super) async fn the_address_that_a_trusted_proxy_names_counts(limit: &str) {
    let server = serve(|io, limits| {
        limits.connections_per_address = Some(1);
        io.trusted_proxies(TrustedProxies::new(["127.0.0.1"]).unwrap())
    })
    .await;
    let open = async |client: &str| {
        let head =
            format!("GET {TARGET} HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {client}\r\n\r\n");
        let mut stream = http::send(server.address, head).await;
        http::response(&mut stream).await.status
    };
    assert_eq!(open("2001:db8:0:1::1").await, 200);
    assert_eq!(open("2001:db8:0:1::2").await, 429);
    assert_eq!(open("2001:db8:0:2::1").await, 200);
    assert_eq!(open("192.0.2.1").await, 200);
    assert_eq!(server.reached(limit), 1);
}

pub(super) async fn a_limit_that_is_replaced_holds_for_new_connections(limit: &str) {
    let server = serve(|io, _| io).await;
    let mut uncounted = WebSocket::connect(server.address).await;
    let limits = |per_address| Limits {
        connections_per_address: per_address,
        ..Limits::default()
    };
    server.io.set_limits(&limits(Some(1)));
    let mut counted = WebSocket::connect(server.address).await;
    let refused = http::get(server.address, TARGET).await;
    assert_eq!(refused.status, 429);
    assert_eq!(server.reached(limit), 1);
    server.io.set_limits(&limits(None));
    let mut third = WebSocket::connect(server.address).await;
    for socket in [&mut uncounted, &mut counted, &mut third] {
        socket.assert_served().await;
    }
}

pub(super) async fn new_connections_beyond_the_rate_come_later(limit: &str) {
    let server = limited(|limits| limits.connect_rate = Some(Rate::per_second(1).burst(2))).await;
    let mut first = WebSocket::connect(server.address).await;
    let refused = within("one is refused", async {
        loop {
            let response = http::get(server.address, TARGET).await;
            if response.status != 200 {
                return response;
            }
        }
    });
    let refused = refused.await;
    assert_eq!(refused.status, 503);
    let body = json!({ "limit": limit, "message": "too many new connections per second" });
    assert_eq!(json(&refused.body), body);
    assert_retry_after(&refused, 60);
    assert_eq!(server.reached(limit), 1);
    first.assert_served().await;
    within("it may connect later", async {
        while http::get(server.address, TARGET).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

pub(super) async fn events_beyond_the_rate_are_dropped_with_an_error(limit: &str) {
    let server = limited(|limits| limits.event_rate = Some(Rate::per_second(1).burst(4))).await;
    let mut bystander = server.bystander().await;
    let mut socket = WebSocket::connect(server.address).await;
    let acks = burst(&mut socket).await;
    // The connect has taken one.
    assert!(
        acks[..3].iter().all(|ack| ack == r#"["hello"]"#),
        "{acks:?}"
    );
    let refused = json!([{ "error": "too many events", "data": { "limit": limit } }]);
    let dropped = acks.iter().filter(|ack| json(ack) == refused).count();
    assert!(dropped > 0, "{acks:?}");
    assert_eq!(server.reached(limit), dropped as u64);
    within("its events pass again", async {
        while socket.ask(r#"["echo","later"]"#).await != r#"["later"]"# {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    bystander.assert_served().await;
}

pub(super) async fn connects_beyond_the_rate_are_refused(limit: &str) {
    let server = serve(|io, limits| {
        limits.event_rate = Some(Rate::per_second(1).burst(1));
        io.namespace(echoing("/a"))
    })
    .await;
    let mut socket = WebSocket::open(server.address).await;
    for _ in 0..AT_ONCE {
        socket.send("40/a,").await;
    }
    let replies = socket.texts(AT_ONCE).await;
    assert!(replies[0].starts_with(r#"40/a,{"sid":"#), "{replies:?}");
    let refused = r#"44/a,{"message":"too many events","data":{"limit":"event_rate"}}"#;
    let count = replies.iter().filter(|reply| *reply == refused).count();
    assert!(count > 0, "{replies:?}");
    assert_eq!(server.reached(limit), count as u64);
    let series = r#"roomcast_connect_refused_total{reason="event_rate"}"#;
    assert_eq!(server.metric(series), count as u64);
}

pub(super) async fn events_beyond_the_rate_are_only_counted_if_the_policy_is_to_warn(limit: &str) {
    let server = limited(|limits| {
        limits.event_rate = Some(Rate::per_second(1).burst(2));
        limits.rate_policy = RatePolicy::Warn;
    })
    .await;
    let mut socket = WebSocket::connect(server.address).await;
    let acks = burst(&mut socket).await;
    assert!(acks.iter().all(|ack| ack == r#"["hello"]"#), "{acks:?}");
    assert!(server.reached(limit) > 0);
}

pub(super) async fn events_beyond_the_rate_close_the_connection_if_the_policy_says_so(limit: &str) {
    let server = limited(|limits| {
        limits.event_rate = Some(Rate::per_second(1).burst(2));
        limits.rate_policy = RatePolicy::Close;
    })
    .await;
    let mut socket = WebSocket::connect(server.address).await;
    let mut bystander = server.bystander().await;
    for id in 0..AT_ONCE {
        socket.send(&format!(r#"42{id}["echo","hello"]"#)).await;
    }
    let acks = socket.rest().await;
    assert_eq!(acks[0], r#"430["hello"]"#);
    assert!(acks.len() < AT_ONCE, "{acks:?}");
    assert_counted(&server, limit).await;
    bystander.assert_served().await;
}

pub(super) async fn bytes_beyond_the_rate_are_dropped_with_an_error(limit: &str) {
    let server = limited(|limits| limits.byte_rate = Some(Rate::per_second(1).burst(200))).await;
    let mut socket = WebSocket::connect(server.address).await;
    let large = format!(r#"["echo","{}"]"#, "x".repeat(1000));
    assert!(socket.ask(&large).await.starts_with(r#"["xxx"#));
    let refused = json!([{ "error": "too many bytes", "data": { "limit": limit } }]);
    assert_eq!(json(&socket.ask(r#"["echo","x"]"#).await), refused);
    assert_eq!(server.reached(limit), 1);
    server.bystander().await.assert_served().await;
}

pub(super) async fn attachments_count_as_bytes(limit: &str) {
    let server = limited(|limits| limits.byte_rate = Some(Rate::per_second(1).burst(200))).await;
    let mut socket = WebSocket::connect(server.address).await;
    socket
        .send(r#"451-["other",{"_placeholder":true,"num":0}]"#)
        .await;
    socket.send_frame(true, 2, &[7; 1000]).await;
    let refused = json!([{ "error": "too many bytes", "data": { "limit": limit } }]);
    assert_eq!(json(&socket.ask(r#"["echo","x"]"#).await), refused);
    assert_eq!(server.reached(limit), 1);
}

/// The acknowledgements of events that are sent at once, in their order.
async fn burst(socket: &mut WebSocket) -> Vec<String> {
    let frame = |id| websocket::frame(true, 1, format!(r#"42{id}["echo","hello"]"#).as_bytes());
    let frames: Vec<_> = (0..AT_ONCE).flat_map(frame).collect();
    socket.stream.write_all(&frames).await.unwrap();
    let mut acks = Vec::new();
    for id in 0..AT_ONCE {
        let ack = socket.text().await;
        let args = ack.strip_prefix(&format!("43{id}"));
        acks.push(args.unwrap_or_else(|| panic!("{ack}")).to_owned());
    }
    acks
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn assert_retry_after(refused: &http::Response, most: u64) {
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=most).contains(&seconds), "{seconds}");
}
