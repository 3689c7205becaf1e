//! Idempotency keys in the memory of one process: for servers without Redis, and for tests.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use roomcast_protocol::receipt::Receipt;

use crate::bus::{BusError, Once, Published};

/// The most results that are kept. Those that expire first are removed for new ones.
const MAX_KEPT: usize = 100_000;

/// The results of broadcasts with an idempotency key.
#[derive(Clone, Default)]
pub struct MemoryKeys(Arc<Mutex<HashMap<Box<str>, Kept>>>);

struct Kept {
    lapses: Instant,
    fingerprint: Box<str>,
    published: Published,
}

impl MemoryKeys {
    /// Publishes unless that was done under this key, and returns the first result. One
    /// is published after the other.
    pub async fn once(
        &self,
        namespace: &str,
        once: &Once,
        publish: impl Future<Output = Result<Published, BusError>> + Send,
    ) -> Result<Published, BusError> {
        let key = key(namespace, once);
        let mut kept = self.0.lock().await;
        let now = now();
        if let Some(first) = kept.get(&key).filter(|first| first.lapses > now) {
            if first.fingerprint != once.fingerprint {
                return Err(BusError::KeyReused);
            }
            return Ok(Published {
                is_replayed: true,
                ..first.published.clone()
            });
        }
        let published = publish.await?;
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, kept| kept.lapses > now);
        }
        if kept.len() >= MAX_KEPT
            && let Some(first) = kept.iter().min_by_key(|(_, kept)| kept.lapses)
        {
            let first = first.0.clone();
            kept.remove(&first);
        }
        let lapses = now + once.lifetime.max(Duration::from_millis(1));
        let first = Kept {
            lapses,
            fingerprint: once.fingerprint.clone(),
            published: published.clone(),
        };
        kept.insert(key, first);
        Ok(published)
    }

    /// Keeps the receipt of a broadcast with its result.
    pub async fn keep(&self, namespace: &str, once: &Once, receipt: Receipt) {
        let mut kept = self.0.lock().await;
        if let Some(first) = kept.get_mut(&key(namespace, once))
            && first.fingerprint == once.fingerprint
        {
            first.published.receipt.get_or_insert(receipt);
        }
    }
}

impl std::fmt::Debug for MemoryKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryKeys").finish_non_exhaustive()
    }
}

fn key(namespace: &str, once: &Once) -> Box<str> {
    [namespace, "~", &once.key].concat().into()
}

fn now() -> Instant {
    Instant::now()
}
