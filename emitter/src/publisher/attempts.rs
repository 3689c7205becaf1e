//! One command on its way through a cluster: to the owner of its slot, and on to where that has
//! moved.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time,
};

use super::{
    PublishError, accepted,
    cluster::{Hint, View, until_up},
    redirect::Redirect,
};
use crate::{endpoint::Address, link::Pending, value::Value};

/// How often a command follows a redirection before it is given up.
const MAX_REDIRECTIONS: u32 = 3;

/// How long a command that was redirected waits for the map or the link that it needs.
pub(super) const REDIRECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// One command on its way to the owner of a slot.
pub(super) struct Attempts {
    view: watch::Receiver<Arc<View>>,
    hints: mpsc::Sender<Hint>,
    slot: u16,
    command: Vec<u8>,
}

/// Where a command has got to.
enum Attempt {
    Sent {
        asked: Address,
        version: u64,
        reply: Pending,
    },
    /// There is no link yet to where it belongs.
    Wants(Address),
}

impl Attempts {
    pub(super) fn new(
        view: watch::Receiver<Arc<View>>,
        hints: mpsc::Sender<Hint>,
        slot: u16,
        command: Vec<u8>,
    ) -> Self {
        Self {
            view,
            hints,
            slot,
            command,
        }
    }

    /// Says the command at once; the rest follows.
    pub(super) fn start(mut self) -> Routed {
        let hints = self.hints.clone();
        let first = self.send_to_owner();
        Routed {
            hints,
            following: Some(Box::pin(async move { self.follow(first).await })),
        }
    }

    fn send_to_owner(&self) -> Result<Attempt, PublishError> {
        let view = self.view.borrow().clone();
        let Some(owner) = view.map.owner(self.slot) else {
            self.hint(Hint::Outdated);
            let reason = format!("no node is known that serves slot {}", self.slot);
            return Err(PublishError::Unavailable(reason.into()));
        };
        // One that others have wanted a moment ago is waited for as if it were not there.
        let Some(link) = view.links.get(owner).filter(|link| !link.is_starting()) else {
            self.hint(Hint::Wanted(owner.clone()));
            return Ok(Attempt::Wants(owner.clone()));
        };
        Ok(Attempt::Sent {
            asked: owner.clone(),
            version: view.version,
            reply: link.send_encoded(None, &self.command),
        })
    }

    async fn follow(
        &mut self,
        first: Result<Attempt, PublishError>,
    ) -> Result<Value, PublishError> {
        let mut attempt = first?;
        let mut redirections = 0;
        loop {
            let (asked, version, reply) = match attempt {
                Attempt::Wants(node) => {
                    attempt = self.send_to(node, None).await?;
                    continue;
                }
                Attempt::Sent {
                    asked,
                    version,
                    reply,
                } => (asked, version, reply.await?),
            };
            redirections += 1;
            attempt = match Redirect::read(&reply, &asked) {
                Some(redirect) if redirections <= MAX_REDIRECTIONS => {
                    self.redirected(redirect, version).await?
                }
                // A redirection too many is an error as any other.
                _ => return accepted(Ok(reply)),
            };
        }
    }

    /// The command was surely not carried out: it is said once more, where it belongs.
    async fn redirected(
        &mut self,
        redirect: Redirect,
        version: u64,
    ) -> Result<Attempt, PublishError> {
        match redirect {
            Redirect::Moved { slot, to } => {
                let hint = Hint::Moved {
                    slot,
                    to: to.clone(),
                };
                self.hint(hint);
                self.send_to(to, None).await
            }
            Redirect::Ask { to } => {
                self.hint(Hint::Wanted(to.clone()));
                self.send_to(to, Some(ASKING)).await
            }
            Redirect::Down => {
                self.hint(Hint::Outdated);
                let newer = self.view.wait_for(|view| view.version > version);
                if time::timeout(REDIRECTION_TIMEOUT, newer).await.is_err() {
                    return Err(PublishError::Unavailable("the cluster is down".into()));
                }
                self.send_to_owner()
            }
        }
    }

    /// Waits for the link, as it may be a new one.
    async fn send_to(
        &mut self,
        to: Address,
        preparation: Option<&[u8]>,
    ) -> Result<Attempt, PublishError> {
        let known = self.view.wait_for(|view| view.links.contains_key(&to));
        // Whether it is there now, says the next line.
        let _ = time::timeout(REDIRECTION_TIMEOUT, known).await.is_ok();
        let view = self.view.borrow().clone();
        let Some(link) = view.links.get(&to) else {
            let reason = format!("there is no link to {to}");
            return Err(PublishError::Unavailable(reason.into()));
        };
        until_up(link).await;
        Ok(Attempt::Sent {
            reply: link.send_encoded(preparation, &self.command),
            version: view.version,
            asked: to,
        })
    }

    fn hint(&self, hint: Hint) {
        let _ = self.hints.try_send(hint);
    }
}

/// Says that the next command is for a slot that is on its way to the server.
const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// The rest of the way of a command.
pub(super) type Following = Pin<Box<dyn Future<Output = Result<Value, PublishError>> + Send>>;

/// The reply to a command that goes where its slot is. If nobody waits for it any more, the keeper
/// does: it may have to be said again, and the map may have to be read.
pub(super) struct Routed {
    hints: mpsc::Sender<Hint>,
    /// Until it is there.
    following: Option<Following>,
}

impl Routed {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Value, PublishError>> {
        let following = self.following.as_mut().expect("it is not polled again");
        let reply = ready!(following.as_mut().poll(context));
        self.following = None;
        Poll::Ready(reply)
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        if let Some(following) = self.following.take() {
            let _ = self.hints.try_send(Hint::Abandoned(following));
        }
    }
}

impl std::fmt::Debug for Routed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routed").finish_non_exhaustive()
    }
}
