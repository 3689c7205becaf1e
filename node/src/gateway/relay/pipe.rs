//! Passes the bytes of a relayed WebSocket on, in both directions.
//!
//! It ends with the first of: an end in either direction, after which the other one has a
//! moment to deliver the close frame; a peer that takes nothing for too long; the end of
//! the owner's lease. Silence is no reason, because the owner sends a heartbeat and
//! closes if the client is dead.

use std::{io, pin::pin, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    time::timeout,
};

/// The bytes that are passed on at once, in each direction. A WebSocket has two such buffers.
const BUFFER_BYTES: usize = 2048;

/// Time for the rest of the other direction after one has ended.
const LINGER: Duration = Duration::from_secs(5);

/// Carries two streams until one of them ends or `gone` resolves.
pub(super) async fn carry<T>(
    client: impl AsyncRead + AsyncWrite,
    owner: impl AsyncRead + AsyncWrite,
    stall: Duration,
    gone: impl Future<Output = T>,
) {
    let (from_client, to_client) = split(client);
    let (from_owner, to_owner) = split(owner);
    let mut up = pin!(copy(from_client, to_owner, stall));
    let mut down = pin!(copy(from_owner, to_client, stall));
    // After an error nothing is left to deliver.
    tokio::select! {
        ended = &mut up => if ended.is_ok() { drop(timeout(LINGER, down).await) },
        ended = &mut down => if ended.is_ok() { drop(timeout(LINGER, up).await) },
        _ = gone => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    stall: Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        let writing = async {
            to.write_all(&buffer[..count]).await?;
            to.flush().await
        };
        timeout(stall, writing).await??;
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::io::duplex;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn bytes_go_in_both_directions_until_one_side_ends() {
        let (mut client, left) = duplex(64);
        let (mut owner, right) = duplex(64);
        let carrying = tokio::spawn(carry(left, right, LONG, pending::<()>()));
        let long = vec![7; 10 * BUFFER_BYTES];
        let sending = tokio::spawn(async move {
            client.write_all(&long).await.unwrap();
            client.shutdown().await.unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            received
        });
        let mut received = Vec::new();
        owner.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 10 * BUFFER_BYTES);
        owner.write_all(b"closed").await.unwrap();
        drop(owner);
        assert_eq!(sending.await.unwrap(), b"closed");
        carrying.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_ends_it() {
        let (mut client, left) = duplex(64);
        let (_owner, right) = duplex(16);
        let stall = Duration::from_millis(20);
        let carrying = tokio::spawn(carry(left, right, stall, pending::<()>()));
        client.write_all(&[0; 40]).await.unwrap();
        carrying.await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_the_owner_ends_it() {
        let (_client, left) = duplex(16);
        let (_owner, right) = duplex(16);
        carry(left, right, LONG, ready(())).await;
    }
}
