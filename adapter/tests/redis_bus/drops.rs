//! What a node drops is in its log, whatever the reason, and a flood of it does not flood the log.

use std::{io, time::Duration};

use parking_lot::Mutex;
use roomcast_adapter::Question;
use roomcast_protocol::{channel::Dialect, target::Target};

use crate::{
    deployment::{Deployment, uid_of},
    node::broadcast,
};

/// The log of all tests of this process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_reason_to_drop_a_message_is_logged_once_however_many_come() {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(|| Writer)
        .init();
    let mut deployment = Deployment::start();
    deployment.config.prefix = "drops".into();
    let (a, b) = (deployment.node().await, deployment.node().await);
    a.join("r").await;
    // Answers are read only while a question waits.
    b.be_mute();
    let question = Question::Sockets(Target::default());
    let asking = tokio::spawn(a.handle.ask(question, Duration::from_secs(3600)));
    let channels = deployment.channels();
    let room = channels.room("/", "r");
    let own = channels.response_of("/", uid_of(&a, Dialect::Classic).as_str());
    let other = r#"["u",{"type":2,"data":["e"],"nsp":"/b"},{"rooms":["r"]}]"#;
    let late = r#"{"requestId":"nobody","sockets":[]}"#;
    let published: [(&str, &[u8], &str); 3] = [
        (&room, b"\xc1", "it cannot be read"),
        (&room, other.as_bytes(), "its namespace or kind is unknown"),
        (&own, late.as_bytes(), "no question is waiting for it"),
    ];
    let mut stranger = deployment.plain();
    for (channel, payload, _) in published.iter().cycle().take(300) {
        stranger.command(&[b"PUBLISH", channel.as_bytes(), payload]);
    }
    let good = broadcast(&["r"], 4711);
    b.publish(good.clone()).await;
    a.hears(&good).await;
    asking.abort();
    let log = String::from_utf8(LOG.lock().clone()).unwrap();
    for (channel, _, reason) in published {
        let is_it = |line: &&str| line.contains(channel) && line.contains(reason);
        let lines: Vec<_> = log.lines().filter(is_it).collect();
        // One every ten seconds, and a busy machine may take some.
        assert!((1..20).contains(&lines.len()), "{reason}: {log}");
        assert!(lines[0].contains("suppressed=0"), "{}", lines[0]);
    }
}
