//! A node to which requests have been relayed, and the ways to it.

use axum::body::Body;
use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use roomcast::NodeId;
use tokio::sync::watch;

use super::{metrics::Outcome, requests::Requests};
use crate::gateway::outbound::{Connector, causes};

/// The largest body of a response, in bytes. It has one only if the protocol is not switched.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The link to an owner, or why there is none.
pub(super) type Linked = Result<Requests, Outcome>;

pub(super) struct Owner {
    pub(super) node: NodeId,
    connector: Connector,
    url: Uri,
    /// Its address, for the header `host`.
    host: HeaderValue,
    /// Changes to true when its lease has ended.
    pub(super) gone: watch::Sender<bool>,
    link: Mutex<Option<Shared<BoxFuture<'static, Linked>>>>,
}

impl Owner {
    /// `None` if the address is none.
    pub(super) fn new(node: NodeId, connector: Connector, address: &str) -> Option<Self> {
        let url = Uri::builder().scheme("http").authority(address);
        Some(Self {
            node,
            connector,
            url: url.path_and_query("/").build().ok()?,
            host: HeaderValue::from_str(address).ok()?,
            gone: watch::Sender::new(false),
            link: Mutex::default(),
        })
    }

    /// The link to this owner. If there is none, and no other request is opening one, `open`
    /// does.
    pub(super) fn link(
        &self,
        open: impl FnOnce() -> BoxFuture<'static, Linked>,
    ) -> Shared<BoxFuture<'static, Linked>> {
        let is_usable = |linked: &Linked| linked.as_ref().is_ok_and(Requests::is_open);
        let mut link = self.link.lock();
        match &*link {
            Some(linked) if linked.peek().is_none_or(is_usable) => linked.clone(),
            _ => link.insert(open().shared()).clone(),
        }
    }

    /// Sends a request that asks for another protocol, over a connection of its own. The error
    /// names its causes.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Bytes>, String> {
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        let stream = self.connector.connect(self.url.clone()).await?;
        let opening = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = opening.map_err(|error| causes(&error))?;
        // Ends with the response, or hands its stream to the other protocol.
        drop(tokio::spawn(connection.with_upgrades()));
        let response = sender.send_request(request).await;
        let (head, body) = response.map_err(|error| causes(&error))?.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|error| causes(&*error))?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}
