//! Hears what a server publishes, and keeps the account of it.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::ledger::{Ledger, Tally};
use crate::message::{self, Form};
use crate::payload::Label;
use crate::resp;

/// A subscriber on a thread of its own.
pub(crate) struct Ear {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<Ledger>>,
}

#[derive(Default)]
struct Shared {
    heard: AtomicU64,
    is_over: AtomicBool,
}

impl Ear {
    /// Returns when the channel of the room is subscribed.
    pub(crate) fn open(redis: u16, form: Form, room: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, redis))?;
        let channel = message::channel(room);
        let mut command = Vec::new();
        resp::command(&mut command, &[form.subscribe(), channel.as_bytes()]);
        stream.write_all(&command)?;
        // Nothing else can arrive before the confirmation.
        let mut confirmation = vec![0; 256];
        if stream.read(&mut confirmation)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.set_read_timeout(Some(LOOK_UP_INTERVAL))?;
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        let thread = thread::spawn(move || listen(stream, &own));
        Ok(Self { shared, thread })
    }

    /// How many messages were as they should be.
    pub(crate) fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Acquire)
    }

    /// Closes the account, which should hold that many messages.
    pub(crate) fn close(self, sent: u32) -> io::Result<Tally> {
        self.shared.is_over.store(true, Ordering::Release);
        let ledger = self.thread.join();
        let ledger =
            ledger.map_err(|_| io::Error::other("the listening thread has panicked"))??;
        Ok(ledger.close(|_| sent))
    }
}

fn listen(mut stream: TcpStream, shared: &Shared) -> io::Result<Ledger> {
    let mut ledger = Ledger::new(1);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    while !shared.is_over.load(Ordering::Acquire) {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let mut start = 0;
        while let Some((heard, end)) = resp::scan_heard(&buffer[start..filled])? {
            let label = heard
                .and_then(|heard| message::payload_of(heard.payload))
                .and_then(Label::read);
            match label {
                Some(label) => drop(ledger.arrived(0, label.sequence)),
                None => ledger.corrupted(),
            }
            start += end;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        shared.heard.store(ledger.arrivals(), Ordering::Release);
    }
    Ok(ledger)
}

const BUFFER_BYTES: usize = 256 * 1024;

/// How long the end of the account may go unnoticed.
const LOOK_UP_INTERVAL: Duration = Duration::from_millis(20);
