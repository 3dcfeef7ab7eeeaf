//! Watches the backlog of all shards, wakes their publishers, and has partitions made and dropped.

use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::backoff::Outage;
use super::status::Part;
use crate::repositories;
use crate::repositories::outbox_progress::OutboxProgress;

/// When to come again after a failure.
const RETRY: Duration = Duration::from_mins(1);
/// Wait after a failed poll.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs for ever.
pub(super) async fn run(shared: &Shared) {
    let mut outage = Outage::new("watching the outbox");
    let mut maintain_at = Instant::now();
    loop {
        match poll(shared).await {
            Ok(()) => {
                outage.worked();
                shared.status.worked(Part::Monitor);
            }
            Err(error) => {
                outage.failed(&error);
                shared.status.failed(Part::Monitor, "database", &error);
                shared.status.record_gauges();
                tokio::time::sleep(PAUSE).await;
            }
        }
        // One process is enough, and any process that holds the first shard will do.
        if Instant::now() >= maintain_at && shared.status.shards().first() == Some(&0) {
            maintain_at = Instant::now()
                + match maintain(shared).await {
                    Ok(dropped) => {
                        if dropped > 0 {
                            tracing::info!(dropped, "dropped old outbox partitions");
                        }
                        shared.config.upkeep_every
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot look after the outbox partitions now");
                        RETRY
                    }
                };
        }
        tokio::time::sleep(Duration::from_millis(shared.config.poll_ms)).await;
    }
}

async fn poll(shared: &Shared) -> Result<(), sqlx::Error> {
    let backlog = {
        let mut connection = shared.pool.acquire().await?;
        OutboxProgress::new(&mut connection).backlog().await?
    };
    let depth = backlog.iter().map(|shard| shard.depth.unsigned_abs()).sum();
    let age = backlog.iter().map(|shard| shard.age.max(0.0)).reduce(f64::max);
    shared.status.backlog(depth, age);
    for shard in backlog {
        shared.wake.notify(shard.shard);
    }
    Ok(())
}

async fn maintain(shared: &Shared) -> Result<i32, sqlx::Error> {
    let mut transaction = repositories::begin(&shared.pool).await?;
    let dropped = OutboxProgress::new(&mut transaction)
        .maintain(shared.config.keep_days)
        .await?;
    transaction.commit().await?;
    Ok(dropped)
}
