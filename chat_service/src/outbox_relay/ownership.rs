//! Which shards this process publishes.
//!
//! A shard belongs to the holder of a session lock in PostgreSQL, taken on one connection kept for nothing else. When
//! that connection ends, its locks are free at once, and this process stops publishing: at the latest [`TICK`] +
//! [`PING_TIMEOUT`] later. A publisher that has lost its lock without knowing does no harm, see `docs/events.md`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fechatter_core::events::SHARDS;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, Outage};
use super::status::Part;
use super::{STOP_TIMEOUT, Shared, shard};
use crate::repositories::outbox_progress::OutboxProgress;

/// How often shards are shared out; also the ping that keeps the connection, and finds it broken.
const TICK: Duration = Duration::from_millis(500);
/// Longest time one statement may take before the connection counts as broken.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time a publisher may take to finish a batch when its shard goes to another process.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes and publishes shards until `shutdown`.
pub(super) async fn run(shared: &Arc<Shared>, shutdown: &CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    let mut outage = Outage::new("the connection that holds the shards");
    while !shutdown.is_cancelled() {
        let mut shards = OwnedShards::new(shared);
        let connected = shutdown.run_until_cancelled(open(shared)).await;
        let error = match connected {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(mut connection)) => {
                backoff.reset();
                outage.worked();
                shared.status.worked(Part::Ownership);
                match shards.hold(&mut connection, shutdown).await {
                    Ok(()) => {
                        shards.stop_all(STOP_TIMEOUT).await;
                        // Ends the session and with it the locks; if it cannot, the closed socket does.
                        let _ = timeout(PING_TIMEOUT, connection.close()).await;
                        return;
                    }
                    Err(error) => error,
                }
            }
        };
        shards.abort_all();
        outage.failed(&error);
        shared.status.failed(Part::Ownership, "ownership", &error);
        let _ = shutdown.run_until_cancelled(tokio::time::sleep(backoff.delay())).await;
    }
}

async fn open(shared: &Shared) -> Result<PgConnection, sqlx::Error> {
    let options = shared.pool.connect_options();
    let opened = timeout(PING_TIMEOUT * 2, async {
        let mut connection = PgConnection::connect_with(&options).await?;
        OutboxProgress::new(&mut connection).join().await?;
        Ok(connection)
    });
    opened.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

async fn ping<T>(statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(PING_TIMEOUT, statement)
        .await
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

struct Publisher {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct OwnedShards<'a> {
    shared: &'a Arc<Shared>,
    publishers: BTreeMap<i16, Publisher>,
    /// Where this process begins to look for free shards, so that several spread.
    first: i16,
}

impl Drop for OwnedShards<'_> {
    fn drop(&mut self) {
        self.abort_all();
    }
}

impl<'a> OwnedShards<'a> {
    fn new(shared: &'a Arc<Shared>) -> Self {
        Self {
            shared,
            publishers: BTreeMap::new(),
            first: rand::random_range(0..SHARDS),
        }
    }

    /// Shares out again and again until `shutdown` (`Ok`) or until the connection breaks.
    async fn hold(&mut self, connection: &mut PgConnection, shutdown: &CancellationToken) -> Result<(), sqlx::Error> {
        loop {
            self.share_out(connection).await?;
            if shutdown.run_until_cancelled(tokio::time::sleep(TICK)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Takes free shards up to this process's part, or gives up what is beyond it.
    async fn share_out(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        self.fail_if_one_panicked().await;
        let mut outbox = OutboxProgress::new(connection);
        let locks = ping(outbox.locks()).await?;
        let members = locks.iter().filter(|lock| lock.is_member()).count().max(1);
        let part = usize::from(SHARDS.unsigned_abs()).div_ceil(members);
        while self.publishers.len() > part {
            let Some((shard, publisher)) = self.publishers.pop_last() else {
                break;
            };
            stop(publisher, RELEASE_TIMEOUT).await;
            ping(outbox.unlock(shard)).await?;
        }
        let is_taken = |shard: i16| locks.iter().any(|lock| lock.shard() == Some(shard));
        for shard in (0..SHARDS).map(|offset| (self.first + offset) % SHARDS) {
            if self.publishers.len() >= part {
                break;
            }
            if is_taken(shard) || self.publishers.contains_key(&shard) || !ping(outbox.try_lock(shard)).await? {
                continue;
            }
            let stop = CancellationToken::new();
            let task = tokio::spawn(shard::run(Arc::clone(self.shared), shard, stop.clone()));
            self.publishers.insert(shard, Publisher { stop, task });
        }
        self.shared.status.own(self.publishers.keys().copied().collect());
        Ok(())
    }

    /// A publisher never ends by itself: if one has, it panicked, and so does the relay, for all to see.
    async fn fail_if_one_panicked(&mut self) {
        let ended = self
            .publishers
            .iter()
            .find(|(_, publisher)| publisher.task.is_finished())
            .map(|(shard, _)| *shard);
        if let Some(publisher) = ended.and_then(|shard| self.publishers.remove(&shard))
            && let Err(error) = publisher.task.await
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// Lets every publisher finish its batch, all at once.
    async fn stop_all(&mut self, within: Duration) {
        let publishers = std::mem::take(&mut self.publishers);
        for publisher in publishers.values() {
            publisher.stop.cancel();
        }
        futures::future::join_all(publishers.into_values().map(|publisher| stop(publisher, within))).await;
        self.shared.status.own(Vec::new());
    }

    /// Stops every publisher where it is.
    fn abort_all(&mut self) {
        for publisher in std::mem::take(&mut self.publishers).into_values() {
            publisher.task.abort();
        }
        self.shared.status.own(Vec::new());
    }
}

async fn stop(publisher: Publisher, within: Duration) {
    publisher.stop.cancel();
    let mut task = publisher.task;
    if timeout(within, &mut task).await.is_err() {
        task.abort();
    }
}
