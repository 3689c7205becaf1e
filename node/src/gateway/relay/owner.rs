//! A node to which requests have been relayed, and the ways to it.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use http::Uri;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{metrics::Outcome, requests::Requests};
use crate::gateway::outbound::{Connector, ForwardClient};

/// How polls and posts reach an owner.
#[derive(Clone)]
pub(super) enum Way {
    Link(Requests),
    /// Each as a separate request, as to nodes that do not support links.
    Http,
    /// This time, none does.
    Failed(Outcome),
}

pub(super) struct Owner {
    pub(super) client: Arc<ForwardClient>,
    /// Changes to true when its lease has ended.
    pub(super) gone: watch::Sender<bool>,
    way: Mutex<Option<Shared<BoxFuture<'static, Way>>>>,
}

impl Owner {
    /// `None` if the address is none.
    pub(super) fn new(connector: Connector, address: &str, idle: Duration) -> Option<Self> {
        let uri = Uri::builder().scheme("http").authority(address);
        let uri = uri.path_and_query("/").build().ok()?;
        Some(Self {
            client: Arc::new(ForwardClient::new(connector, uri, idle)),
            gone: watch::Sender::new(false),
            way: Mutex::default(),
        })
    }

    /// The way to this owner, if it is known and still there.
    pub(super) fn known_way(&self) -> Option<Way> {
        let way = self.way.lock();
        let way = way.as_ref()?.peek()?;
        way.is_usable().then(|| way.clone())
    }

    /// Finds the way to this owner: by `opening`, unless another request has begun to.
    pub(super) fn open_once(
        &self,
        opening: BoxFuture<'static, Way>,
    ) -> Shared<BoxFuture<'static, Way>> {
        let mut way = self.way.lock();
        match &*way {
            Some(known) if known.peek().is_none_or(Way::is_usable) => known.clone(),
            _ => way.insert(opening.shared()).clone(),
        }
    }

    /// Its lease has ended.
    pub(super) fn end(&self) {
        self.gone.send_replace(true);
        if let Some(Way::Link(requests)) = self.known_way() {
            requests.end(Outcome::Gone);
        }
    }

    /// This node closes.
    pub(super) fn close(&self) {
        if let Some(Way::Link(requests)) = self.known_way() {
            requests.close();
        }
    }
}

impl Way {
    fn is_usable(&self) -> bool {
        match self {
            Self::Link(requests) => requests.is_open(),
            Self::Http => true,
            Self::Failed(_) => false,
        }
    }
}
