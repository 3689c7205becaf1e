//! Reports of periods in which messages may have been missed.

use std::sync::Arc;

use parking_lot::Mutex;

use super::metrics::GapMetrics;
use crate::bus::Gap;

pub(super) type GapHandler = Box<dyn Fn(&Gap) + Send + Sync>;

/// Counts gaps and passes them to the server, which logs them and notifies the application.
pub(super) struct Gaps {
    handlers: Mutex<Vec<Arc<GapHandler>>>,
    metrics: GapMetrics,
}

impl Gaps {
    pub(super) fn new(metrics: GapMetrics) -> Self {
        Self {
            handlers: Mutex::default(),
            metrics,
        }
    }

    pub(super) fn add_handler(&self, handler: GapHandler) {
        self.handlers.lock().push(Arc::new(handler));
    }

    pub(super) fn report(&self, gap: &Gap) {
        let length = gap.to.duration_since(gap.from).unwrap_or_default();
        self.metrics.count.inc();
        self.metrics.seconds.inc_by(length.as_secs_f64());
        // Called without the lock.
        let handlers = self.handlers.lock().clone();
        for handler in handlers {
            handler(gap);
        }
    }
}
