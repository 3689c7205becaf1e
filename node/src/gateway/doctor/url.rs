//! Round trips through the balancer, as clients make them.
//!
//! ```text
//!   polling ──► sessions ──► round trip, upgrade        (a session must stay on its node)
//!      │            └── spread: both are left out, because they fail for that reason
//!      ├──────► bodies
//!   websocket
//!   with --wait: a ping by WebSocket, and by polling
//! ```
//!
//! A session's namespace may be closed to this client. Its refusal is a round trip, too,
//! so no check needs a token.
//!
//! **Why each request on a new connection.** A balancer may choose a node once for each
//! connection, and then requests on one connection show nothing.

use std::{str::FromStr, time::Duration};

use http::{StatusCode, Uri};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use super::{
    client::{Client, Failure, Open, Session, TIMEOUT},
    report::{Finding, Status},
};

/// Requests of one session, each on a new connection. Two nodes in random order get them
/// all on the same one in one of 256 cases.
const REQUESTS: usize = 8;

/// Time in which a node refuses a request whose body has not come yet.
const EARLY: Duration = Duration::from_secs(5);

/// Time beyond the ping interval that a ping may take.
const GRACE: Duration = Duration::from_secs(5);

const STICKY: &str = "make sessions sticky at the balancer, by cookie or client address, or let clients \
                      use WebSocket only (transports: [\"websocket\"])";

const UPGRADES: &str = "let the balancer pass upgrades on: HTTP/1.1 and the headers Upgrade and Connection \
                        (nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
                        proxy_set_header Connection \"upgrade\")";

/// The URL of a site, or of an endpoint if it has a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicUrl(Uri);

impl FromStr for PublicUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected http://HOST[:PORT][/PATH/] or https://…";
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        // A login would not be used, because the checks do not authenticate.
        let has_login = uri
            .authority()
            .is_none_or(|host| host.as_str().contains('@'));
        match is_web && !has_login && uri.query().is_none() {
            true => Ok(Self(uri)),
            false => Err(EXPECTED),
        }
    }
}

impl PublicUrl {
    /// The endpoint, at the path of the settings unless the URL has one.
    pub(super) fn endpoint(&self, path: &str) -> Uri {
        let url = self.0.to_string();
        match self.0.path() {
            "/" | "" => format!("{}{path}", url.trim_end_matches('/')),
            _ => url,
        }
        .parse()
        .unwrap_or_else(|_| self.0.clone())
    }
}

pub(super) async fn findings(endpoint: Uri, waits: bool) -> Vec<Finding> {
    let client = match Client::new(endpoint) {
        Ok(client) => client,
        Err(error) => return vec![fail("tls", error)],
    };
    let mut findings = Vec::new();
    let mut is_sticky = false;
    match client.handshake().await {
        Err(failure) => findings.push(unusable("polling", &failure)),
        Ok(session) => {
            let sessions = sessions(&client, &session).await;
            is_sticky = sessions.status == Status::Ok;
            // Polling and upgrades fail anyhow where sessions do not stay, and their
            // remedies would mislead.
            if is_sticky {
                findings.push(polling(&client, &session).await);
                findings.push(sessions);
                findings.push(upgrade(&client).await);
            } else {
                findings.push(sessions);
            }
            // It needs no session, so it runs in any case.
            findings.push(bodies(&client).await);
        }
    }
    findings.push(websocket(&client).await);
    if waits {
        // At the same time, because each waits for a ping interval.
        let (by_websocket, by_polling) =
            tokio::join!(websocket_ping(&client), polling_ping(&client, is_sticky));
        findings.push(by_websocket);
        findings.extend(by_polling);
    }
    findings
}

fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    Finding::new("url", check, Status::Ok, found)
}

fn fail(check: &'static str, found: impl Into<String>) -> Finding {
    Finding::new("url", check, Status::Fail, found)
}

/// A failure that has no cause particular to the check.
fn unusable(check: &'static str, failure: &Failure) -> Finding {
    let finding = fail(check, failure.to_string());
    match failure {
        Failure::Connect(_) => {
            finding.remedy("check the name, the port, the certificate, the firewall")
        }
        Failure::Timeout(_) => finding.remedy("check that the balancer reaches a node"),
        Failure::Status {
            location: Some(url),
            ..
        } => finding.remedy(format!("the balancer redirects to {url}; use that URL")),
        Failure::Status { status, .. } => match *status {
            StatusCode::NOT_FOUND => {
                finding.remedy("let the balancer pass the path on, and compare it with --path")
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => {
                finding.remedy("check that a node runs, is ready, and is below its limits")
            }
            _ => finding,
        },
        Failure::Ended(_) | Failure::Foreign(_) => {
            finding.remedy("check that the URL leads to a Socket.IO server")
        }
    }
}

/// Whether the requests of one session reach its node. A noop has no effect.
/// One lost request is enough, since a client would end its session.
async fn sessions(client: &Client, session: &Session) -> Finding {
    let mut lost = 0;
    for _ in 0..REQUESTS {
        match client.post(session, "6").await {
            Ok(_) => {}
            Err(failure) if failure.is_unknown_session() => lost += 1,
            Err(failure) => return unusable("sessions", &failure),
        }
    }
    match lost {
        0 => ok(
            "sessions",
            format!("{REQUESTS} requests of a session reached its node"),
        ),
        lost => fail(
            "sessions",
            format!(
                "{lost} of {REQUESTS} requests of a session reached a node that does not know it"
            ),
        )
        .remedy(STICKY),
    }
}

/// Connects to the main namespace. The reply may be a refusal.
async fn polling(client: &Client, session: &Session) -> Finding {
    let begin = Instant::now();
    let round_trip = async {
        client.post(session, "40").await?;
        client.poll(session, TIMEOUT).await
    };
    match round_trip.await {
        Err(failure) => unusable("polling", &failure),
        Ok(packets) => replied("polling", &packets, begin),
    }
}

fn replied(check: &'static str, packets: &str, begin: Instant) -> Finding {
    let took = begin.elapsed().as_millis();
    let mut each = packets.split('\u{1e}');
    // The first packets of a session may be others, such as events that a connect
    // handler emits.
    match each.any(|packet| packet.starts_with("40") || packet.starts_with("44")) {
        true => ok(check, format!("a round trip takes {took} ms")),
        false => fail(check, "the reply to a connect is not one of Socket.IO")
            .remedy("check that the URL leads to a Socket.IO server"),
    }
}

async fn websocket(client: &Client) -> Finding {
    let round_trip = async {
        let mut websocket = client.websocket(None).await?;
        websocket.open_packet().await?;
        let begin = Instant::now();
        websocket.send("40").await?;
        let reply = websocket.receive(TIMEOUT).await?;
        Ok((reply, begin))
    };
    match round_trip.await {
        Ok((reply, begin)) => replied("websocket", &reply, begin),
        Err(failure) => not_upgraded("websocket", &failure),
    }
}

/// A node that gets no header `Upgrade` refuses the request with a special status, as if it were a
/// poll.
fn not_upgraded(check: &'static str, failure: &Failure) -> Finding {
    match failure {
        Failure::Status { status, .. } if status.is_client_error() || status.is_success() => {
            let found = format!("the WebSocket is not established: {failure}");
            match failure.is_unknown_session() {
                true => fail(check, found).remedy(STICKY),
                false => fail(check, found).remedy(UPGRADES),
            }
        }
        // A response that is neither a status nor an upgrade.
        Failure::Ended(_) => fail(check, failure.to_string()).remedy(UPGRADES),
        _ => unusable(check, failure),
    }
}

/// The exchange of a client that begins by polling: probe, confirmation, and a packet by WebSocket.
async fn upgrade(client: &Client) -> Finding {
    let session = match client.handshake().await {
        Ok(session) => session,
        Err(failure) => return unusable("upgrade", &failure),
    };
    // The server's setting, and no fault of the balancer.
    if !session.open.upgrades.iter().any(|name| name == "websocket") {
        return ok("upgrade", "the server offers none");
    }
    let upgrading = async {
        let mut websocket = client.websocket(Some(&session)).await?;
        websocket.send("2probe").await?;
        let reply = websocket.receive(TIMEOUT).await?;
        if reply != "3probe" {
            return Err(Failure::Foreign(
                "the reply to a probe is not one".to_owned(),
            ));
        }
        websocket.send("5").await?;
        let begin = Instant::now();
        websocket.send("40").await?;
        let reply = websocket.receive(TIMEOUT).await?;
        Ok((reply, begin))
    };
    match upgrading.await {
        Ok((reply, begin)) => replied("upgrade", &reply, begin),
        Err(failure) => not_upgraded("upgrade", &failure),
    }
}

/// A node refuses a request of an unknown session before its body has come. If the refusal arrives
/// only after the rest of the body, a proxy in between has waited for it.
async fn bodies(client: &Client) -> Finding {
    let exchange = async {
        let ended = |error: std::io::Error| Failure::Ended(error.to_string());
        let mut stream = client.connect().await?;
        // No node can have given this id, since ids are longer.
        let uri = client.uri("polling", Some("doctor"));
        let target = uri.path_and_query().map_or("/", |path| path.as_str());
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {}\r\nContent-Type: text/plain\r\nConnection: close\r\n\
             Content-Length: 3\r\n\r\n6",
            client.host()
        );
        stream.write_all(head.as_bytes()).await.map_err(ended)?;
        stream.flush().await.map_err(ended)?;
        let mut byte = [0];
        let early = timeout(EARLY, stream.read(&mut byte)).await;
        let is_early = early.is_ok();
        let read = match early {
            Ok(read) => read,
            Err(_) => {
                stream.write_all(b"\x1e6").await.map_err(ended)?;
                stream.flush().await.map_err(ended)?;
                let late = timeout(TIMEOUT, stream.read(&mut byte)).await;
                late.map_err(|_| Failure::Timeout(TIMEOUT))?
            }
        };
        match read.map_err(ended)? {
            0 => Err(Failure::Ended("closed without a response".to_owned())),
            _ => Ok(is_early),
        }
    };
    match exchange.await {
        Ok(true) => ok("bodies", "reach the node as they come"),
        Ok(false) => Finding::new(
            "url",
            "bodies",
            Status::Warn,
            "the balancer keeps the bodies of requests until they are complete",
        )
        .remedy(
            "pass them on as they come, because each message costs memory and time there \
                 (nginx: proxy_request_buffering off)",
        ),
        Err(failure) => unusable("bodies", &failure),
    }
}

/// Whether a WebSocket lives without traffic until the server's first ping.
async fn websocket_ping(client: &Client) -> Finding {
    let opening = async {
        let mut websocket = client.websocket(None).await?;
        let open = websocket.open_packet().await?;
        // Otherwise the server closes the connection for having joined nothing.
        websocket.send("40").await?;
        Ok((websocket, open))
    };
    let (mut websocket, open) = match opening.await {
        Ok(opened) => opened,
        Err(failure) => return not_upgraded("websocket ping", &failure),
    };
    let begin = Instant::now();
    let deadline = begin + patience(&open);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match websocket.receive(left).await {
            Ok(packet) if packet == "2" => return pinged("websocket ping", begin),
            Ok(_) => {}
            Err(failure) => return unpinged("websocket ping", &failure, &open, begin),
        }
    }
}

/// The same for a poll, which waits as long.
async fn polling_ping(client: &Client, is_sticky: bool) -> Option<Finding> {
    if !is_sticky {
        return None;
    }
    let session = match client.handshake().await {
        Ok(session) => session,
        Err(failure) => return Some(unusable("polling ping", &failure)),
    };
    if let Err(failure) = client.post(&session, "40").await {
        return Some(unusable("polling ping", &failure));
    }
    let begin = Instant::now();
    let deadline = begin + patience(&session.open);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.poll(&session, left).await {
            Ok(packets) if packets.split('\u{1e}').any(|packet| packet == "2") => {
                return Some(pinged("polling ping", begin));
            }
            Ok(_) => {}
            Err(failure) => return Some(unpinged("polling ping", &failure, &session.open, begin)),
        }
    }
}

/// The server chooses when it pings, so the wait follows from its handshake.
fn patience(open: &Open) -> Duration {
    Duration::from_millis(open.ping_interval) + GRACE
}

fn pinged(check: &'static str, begin: Instant) -> Finding {
    let took = begin.elapsed().as_secs();
    ok(check, format!("came after {took} s of silence"))
}

fn unpinged(check: &'static str, failure: &Failure, open: &Open, begin: Instant) -> Finding {
    let took = begin.elapsed().as_secs();
    let interval = open.ping_interval.div_ceil(1000);
    let least = (open.ping_interval + open.ping_timeout).div_ceil(1000);
    fail(
        check,
        format!("none came, which is due every {interval} s; after {took} s of silence: {failure}"),
    )
    .remedy(format!(
        "raise the timeouts of the balancer above {least} s (nginx: proxy_read_timeout; HAProxy: \
         timeout server, timeout client, timeout tunnel)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_the_path_of_the_settings_unless_it_has_one() {
        let endpoint = |url: &str| {
            let url: PublicUrl = url.parse().unwrap();
            url.endpoint("/socket.io/").to_string()
        };
        assert_eq!(
            endpoint("https://a.example"),
            "https://a.example/socket.io/"
        );
        assert_eq!(endpoint("http://a:81/"), "http://a:81/socket.io/");
        assert_eq!(endpoint("http://a/chat/"), "http://a/chat/");
    }

    #[test]
    fn a_url_without_scheme_or_with_a_login_or_a_query_is_refused() {
        for url in [
            "a.example",
            "ws://a",
            "http://user:secret@a",
            "http://a/?b",
            "/a",
        ] {
            assert!(url.parse::<PublicUrl>().is_err(), "{url}");
        }
    }

    #[test]
    fn a_refused_websocket_is_told_from_a_lost_session() {
        let failure = |body: &str| Failure::Status {
            status: StatusCode::BAD_REQUEST,
            location: None,
            body: body.to_owned(),
        };
        let bad = not_upgraded(
            "websocket",
            &failure("{\"code\":3,\"message\":\"Bad request\"}"),
        );
        assert_eq!(bad.remedy.as_deref(), Some(UPGRADES));
        let lost = failure("{\"code\":1,\"message\":\"Session ID unknown\"}");
        assert_eq!(
            not_upgraded("upgrade", &lost).remedy.as_deref(),
            Some(STICKY)
        );
    }
}
