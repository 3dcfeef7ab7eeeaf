//! What can be measured; one file each.

pub mod connections;
pub mod fanout;
pub mod gateway;
pub mod messages;
pub mod search;
pub mod signin;
pub mod soak;
pub mod storm;
pub mod telemetry;

use std::path::PathBuf;
use std::time::Duration;

use crate::processes::{Look, Shares, Watched};

/// What all modes need to know.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Folder of the platform's binaries.
    pub binaries: PathBuf,
    /// Seconds of each measurement, unless a mode has its own.
    pub length: Duration,
    /// Load that comes before it and does not count.
    pub warmup: Duration,
    /// Kept connections that requests are sent on.
    pub connections: usize,
}

/// Processor time from now on.
pub(crate) struct Meter {
    watched: Watched,
    before: Look,
}

impl Meter {
    pub(crate) fn start(watched: &Watched) -> anyhow::Result<Self> {
        Ok(Self {
            watched: watched.clone(),
            before: watched.look()?,
        })
    }

    pub(crate) fn stop(&self) -> anyhow::Result<Shares> {
        Ok(self.watched.look()?.since(&self.before))
    }
}

/// How long what is on its way may take to arrive after the last request.
pub(crate) const SETTLE: Duration = Duration::from_secs(15);

/// Waits on a state, with a bound; false when it was not reached.
pub(crate) async fn until(bound: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let started = std::time::Instant::now();
    while !ready() {
        if started.elapsed() > bound || crate::progress::is_stopped() {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}
