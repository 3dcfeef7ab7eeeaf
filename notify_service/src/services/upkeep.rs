//! What happens by the clock: forgetting, and ending streams when the process stops.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::hub::{End, Hub};

const SWEEP: Duration = Duration::from_secs(10);
/// Steps in which streams end.
const STEPS: u32 = 50;

/// Sweeps until shutdown, then ends the streams one after the other within three quarters of `drain`: their clients come
/// back to other processes spread over that time.
pub async fn run(hub: Arc<Hub>, shutdown: CancellationToken, drain: Duration) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(SWEEP) => hub.sweep(),
        }
    }
    let connections = hub.connections();
    let step = connections.len().div_ceil(STEPS as usize).max(1);
    for some in connections.chunks(step) {
        for connection in some {
            connection.end(End::Rotated, None);
        }
        tokio::time::sleep(drain * 3 / 4 / STEPS).await;
    }
    // Those that came in at the last moment.
    for connection in hub.connections() {
        connection.end(End::Rotated, None);
    }
}
