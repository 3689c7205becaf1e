//! A plain WebSocket whose events are those of a stream.
//!
//! ```text
//!  request ─► handshake of WebSocket ─► open_stream: limits, authorizers ─► 101 ─► task
//!  task: chunk of the stream ─► text frame     text frame ─► on_text     silence ─► ping ─► end
//! ```

use std::{pin::pin, time::Duration};

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use roomcast::{
    Server, Socket,
    plain::{Open, OpenError, Stream},
};
use tokio::time::{interval, timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Bytes, Message, Utf8Bytes,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

/// How often a client is pinged. One that has sent nothing since the last ping is gone.
const PING_INTERVAL: Duration = Duration::from_secs(25);

/// How long a client may leave a frame unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The bytes that are read at a time, kept for each connection.
const READ_BUFFER: usize = 4 << 10;

/// Upgrades a request to a WebSocket. The namespace decides before, so a refusal is a response. The texts
/// of a client are handled one after the other; the next is read when `on_text` is done.
pub(crate) async fn open<F>(
    server: &Server,
    request: Request,
    open: Open,
    max_message: usize,
    on_text: impl Fn(Socket, String) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let (mut parts, _) = request.into_parts();
    let Some(accept) = accept(&parts.headers) else {
        let reason = "this is no handshake of WebSocket, version 13\n";
        return (StatusCode::BAD_REQUEST, reason).into_response();
    };
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        let reason = "the connection cannot become a WebSocket\n";
        return (StatusCode::BAD_REQUEST, reason).into_response();
    };
    let stream = match server.open_stream(&parts, open).await {
        Ok(stream) => stream,
        Err(error) => return refused(&error),
    };
    drop(tokio::spawn(async move {
        // An error means that the client has gone.
        if let Ok(upgraded) = upgrade.await {
            let config = WebSocketConfig::default()
                .read_buffer_size(READ_BUFFER)
                .write_buffer_size(0)
                .max_message_size(Some(max_message))
                .max_frame_size(Some(max_message));
            let io = TokioIo::new(upgraded);
            let websocket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config));
            carry(websocket.await, stream, on_text).await;
        }
    }));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// The value of `Sec-WebSocket-Accept`, or `None` if the handshake is not one.
fn accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(header::CONNECTION)?.to_str().ok()?;
    let mut tokens = connection.split(',').map(str::trim);
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    // 16 bytes in base64.
    if !tokens.any(|token| token.eq_ignore_ascii_case("upgrade"))
        || headers.get(header::SEC_WEBSOCKET_VERSION)? != "13"
        || key.len() != 24
    {
        return None;
    }
    derive_accept_key(key.as_bytes()).try_into().ok()
}

fn refused(error: &OpenError) -> Response {
    let mut response = (error.status, format!("{}\n", error.message)).into_response();
    if let Some(seconds) = error.retry_after {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Carries both directions until one of them ends. Dropping the stream disconnects its socket.
async fn carry<S, F>(
    mut websocket: WebSocketStream<S>,
    mut stream: Stream,
    on_text: impl Fn(Socket, String) -> F,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let mut pings = pin!(interval(PING_INTERVAL));
    pings.as_mut().get_mut().reset();
    let mut is_alive = true;
    loop {
        let frame = tokio::select! {
            chunk = stream.next() => match chunk {
                Some(chunk) => Utf8Bytes::try_from(chunk.bytes).ok().map(Message::Text),
                None => break,
            },
            message = websocket.next() => {
                is_alive = true;
                match message {
                    Some(Ok(Message::Text(text))) => {
                        on_text(stream.socket().clone(), text.to_string()).await;
                        None
                    }
                    // Pings are answered by the next write.
                    Some(Ok(Message::Ping(_))) => {
                        match timeout(WRITE_TIMEOUT, websocket.flush()).await {
                            Ok(Ok(())) => None,
                            _ => return,
                        }
                    }
                    Some(Ok(Message::Binary(_) | Message::Pong(_) | Message::Frame(_))) => None,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                }
            },
            _ = pings.tick() => {
                if !std::mem::take(&mut is_alive) {
                    return;
                }
                Some(Message::Ping(Bytes::new()))
            },
        };
        if let Some(frame) = frame
            && !matches!(
                timeout(WRITE_TIMEOUT, websocket.send(frame)).await,
                Ok(Ok(()))
            )
        {
            return;
        }
    }
    // The client may be gone.
    drop(timeout(WRITE_TIMEOUT, websocket.close(None)).await);
}
