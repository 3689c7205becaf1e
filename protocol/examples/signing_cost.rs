//! The cost of a signed message for its sender and each receiver:
//!
//!     cargo run --release -p roomcast-protocol --example signing_cost
//!
//! A line per size of a message: nanoseconds of the median of several rounds.

#![expect(clippy::disallowed_methods, reason = "it measures time")]
#![expect(clippy::print_stdout, reason = "it prints its result")]

use std::{hint::black_box, time::Instant};

use roomcast_protocol::signing::{Sealed, Senders, SigningKeys, Stamp};

/// Many short rounds: most of them are over before the system gives the core to somebody else.
const ROUNDS: usize = 2_001;
const MESSAGES: u64 = 50;
const CHANNEL: &str = "socket.io#/#room:4711#";

fn main() {
    let keys: SigningKeys = "0123456789abcdef0123456789abcdef"
        .parse()
        .expect("it is long enough");
    println!("bytes  sign ns  open ns");
    for bytes in [64, 128, 256, 1024, 4096] {
        let message = vec![b'x'; bytes];
        let mut senders = Senders::default();
        let (mut sign, mut open) = (Vec::new(), Vec::new());
        let mut number = 0;
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let mut sealed = Vec::with_capacity(MESSAGES as usize);
            for _ in 0..MESSAGES {
                number += 1;
                let stamp = Stamp {
                    sender: "AAAAbbbbccccddddeeee",
                    number,
                    time: 1_700_000_000_000,
                };
                sealed.push(keys.seal(stamp, &[CHANNEL], black_box(&message)));
            }
            sign.push(begin.elapsed().as_nanos() as u64 / MESSAGES);
            let begin = Instant::now();
            for payload in &sealed {
                let sealed = Sealed::read(black_box(payload)).expect("it was just sealed");
                assert!(keys.verify(&sealed, CHANNEL));
                let admitted = senders.admit(sealed.stamp(), 1_700_000_000_000, 30_000);
                admitted.expect("it is new");
            }
            open.push(begin.elapsed().as_nanos() as u64 / MESSAGES);
        }
        sign.sort_unstable();
        open.sort_unstable();
        println!("{bytes:5} {:8} {:8}", sign[ROUNDS / 2], open[ROUNDS / 2]);
    }
}
