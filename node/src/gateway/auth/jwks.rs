//! A set of keys that somebody else publishes, read again at intervals and when a token names an unknown
//! key.
//!
//! A failed attempt keeps the keys that are known, because an issuer that is away must not lock
//! everybody out. Attempts are bounded: tokens with invented key ids cost the issuer nothing more.

use std::{fs, sync::Arc, time::Duration};

use jsonwebtoken::get_current_timestamp;
use parking_lot::RwLock;
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::{
    sync::Mutex,
    time::{MissedTickBehavior, interval},
};

use super::{
    JwksSettings,
    keys::{Key, KeyError, read_set},
};

/// The least time between two attempts that unknown keys cause, in seconds.
const MIN_INTERVAL: u64 = 10;

/// The largest set that is read.
const MAX_SET: u64 = 1 << 20;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Jwks(Arc<Inner>);

struct Inner {
    settings: JwksSettings,
    keys: RwLock<Arc<[Key]>>,
    /// When it was read last, in seconds since 1970. Held while it is read, so that many tokens with a new
    /// key wait for one attempt.
    last: Mutex<u64>,
    loads: IntCounterVec,
}

impl Jwks {
    /// Reads the set.
    pub(super) async fn start(settings: JwksSettings) -> Result<Self, KeyError> {
        let loads = Opts::new(
            "roomcast_jwks_loads_total",
            "Attempts to read the set of keys, by result.",
        );
        let loads = IntCounterVec::new(loads, &["result"]).expect("the name of a metric is valid");
        let keys = read(&settings)?;
        loads.with_label_values(&["ok"]).inc();
        Ok(Self(Arc::new(Inner {
            settings,
            keys: RwLock::new(keys.into()),
            last: Mutex::new(get_current_timestamp()),
            loads,
        })))
    }

    /// Adds the metric to the server's, and starts to read the set at intervals.
    pub(super) fn watch(&self, registry: &Registry) {
        let loads = Box::new(self.0.loads.clone());
        registry
            .register(loads)
            .expect("the metric is registered once");
        let jwks = self.clone();
        tokio::spawn(async move {
            let mut ticks = interval(jwks.0.settings.refresh.max(Duration::from_secs(1)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is at once, and the set has just been read.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let mut last = jwks.0.last.lock().await;
                *last = get_current_timestamp();
                jwks.load();
            }
        });
    }

    pub(super) fn keys(&self) -> Arc<[Key]> {
        Arc::clone(&self.0.keys.read())
    }

    /// Reads the set because a token names an unknown key. Returns `false` if that is too soon after the
    /// last attempt or fails.
    pub(super) async fn renew(&self) -> bool {
        let before = self.keys();
        let mut last = self.0.last.lock().await;
        if !Arc::ptr_eq(&before, &self.keys()) {
            // Another token has caused it meanwhile.
            return true;
        }
        let now = get_current_timestamp();
        if now < last.saturating_add(MIN_INTERVAL) {
            return false;
        }
        *last = now;
        self.load()
    }

    fn load(&self) -> bool {
        let read = read(&self.0.settings);
        let result = if read.is_ok() { "ok" } else { "failed" };
        self.0.loads.with_label_values(&[result]).inc();
        match read {
            Ok(keys) => {
                *self.0.keys.write() = keys.into();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the set of keys cannot be read; the known keys stay in use");
                false
            }
        }
    }
}

fn read(settings: &JwksSettings) -> Result<Vec<Key>, KeyError> {
    let path = &settings.file;
    let failed = |error: std::io::Error| KeyError::Set(format!("{}: {error}", path.display()));
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > MAX_SET {
        return Err(KeyError::Set(format!(
            "{}: larger than 1 MiB",
            path.display()
        )));
    }
    read_set(&fs::read(path).map_err(failed)?, &settings.algorithms)
}
