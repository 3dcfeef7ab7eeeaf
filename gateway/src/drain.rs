//! From the signal to the end: say not ready, stop accepting, let requests end, close streams, all within bounds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{self, millis};
use crate::metrics::Metrics;
use crate::workers::Workers;

/// How often it is looked whether only streams are left.
const LOOK: Duration = Duration::from_millis(50);

/// What is told to whom while the process drains.
pub struct Drain {
    pub settings: config::Drain,
    pub workers: Arc<Workers>,
    /// Ends the accept loops.
    pub stop_accepting: CancellationToken,
    /// Makes requests the last of their connections.
    pub last_requests: watch::Sender<bool>,
    /// Cancelled by an interrupt (Ctrl-C): somebody sits there and waits.
    pub interrupted: CancellationToken,
    /// Closes what is still open.
    pub cut: CancellationToken,
    pub connections: TaskTracker,
    pub metrics: Arc<Metrics>,
}

impl Drain {
    /// Runs after the first signal, from which on `/ready` says no; an interrupt skips the politeness.
    pub async fn run(self) {
        let began = Instant::now();
        tokio::select! {
            () = self.run_politely() => {}
            () = self.interrupted.cancelled() => tracing::warn!("interrupted, not waiting for clients"),
        }
        self.stop_accepting.cancel();
        self.cut.cancel();
        tracing::info!(
            seconds = began.elapsed().as_secs_f64(),
            connections = self.connections.len(),
            "drained"
        );
    }

    async fn run_politely(&self) {
        tokio::time::sleep(millis(self.settings.delay_ms)).await;
        self.stop_accepting.cancel();
        // The receivers are gone only when no connection is open.
        let _ = self.last_requests.send(true);
        self.workers.clean_up().await;
        self.connections.close();
        let deadline = Instant::now() + millis(self.settings.timeout_ms);
        while !self.connections.is_empty() && !self.only_streams_left() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        self.cut.cancel();
        let spread = millis(self.settings.stream_spread_ms) + LOOK;
        let _ = tokio::time::timeout(spread, self.connections.wait()).await;
    }

    /// Whether every connection carries a stream and nothing else; a stream has no end to wait for.
    fn only_streams_left(&self) -> bool {
        let open = i64::try_from(self.connections.len()).unwrap_or(i64::MAX);
        open <= self.metrics.streaming_connections() && self.metrics.requests_in_flight() == 0
    }
}
