//! Reads what is pending for all shards that ask at the same time, by one statement.
//!
//! Messages that are stored together touch many shards, each of which then looks for its events: at 3,000 messages a second that
//! were more statements than all others. What is asked while a read is under way is read together by the next. While many events come, a
//! read waits a moment for shards that are still publishing what the one before found.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::SHARDS;
use crate::repositories::outbox_progress::{OutboxProgress, PendingRow};

/// Most rows for a shard. One with more reads on by itself, so that a backlog keeps nobody waiting.
const ROWS: u32 = 64;

/// A read that found so many rows keeps the next one waiting until [`PACE`] after its own beginning.
const MANY: usize = 8;
const PACE: Duration = Duration::from_millis(4);

/// Asks the reader.
#[derive(Debug)]
pub(super) struct Handle {
    requests: mpsc::Sender<Request>,
    /// Most rows for a shard.
    pub(super) limit: i64,
}

#[derive(Debug)]
pub(super) struct Request {
    shard: i16,
    position: i64,
    reply: oneshot::Sender<Vec<PendingRow>>,
}

/// The two ends, for shards that take at most `batch` rows; each asks once at a time.
pub(super) fn channel(batch: u32) -> (Handle, mpsc::Receiver<Request>) {
    let (sender, requests) = mpsc::channel(SHARDS.unsigned_abs().into());
    let handle = Handle {
        requests: sender,
        limit: batch.min(ROWS).into(),
    };
    (handle, requests)
}

impl Handle {
    /// The next events of a shard after `position`, at most `limit`; `None` when the read failed: read it yourself, and see why.
    pub(super) async fn pending(&self, shard: i16, position: i64) -> Option<Vec<PendingRow>> {
        let (reply, answer) = oneshot::channel();
        let request = Request { shard, position, reply };
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }
}

/// Reads until nobody can ask any more.
pub(super) async fn run(pool: &PgPool, limit: i64, mut requests: mpsc::Receiver<Request>) {
    let mut connection = None;
    // Before then no read is worth its statement.
    let mut next_read = Instant::now();
    loop {
        let mut batch: Vec<Request> = Vec::new();
        if let Ok(request) = requests.try_recv() {
            batch.push(request);
        } else {
            // Nobody asks: others may have the connection.
            connection = None;
            let Some(request) = requests.recv().await else { return };
            batch.push(request);
            // A batch of messages has woken several shards, and whoever is woken by the first of them runs next: let the others ask.
            tokio::task::yield_now().await;
        }
        tokio::time::sleep_until(next_read).await;
        while let Ok(request) = requests.try_recv() {
            // Of two tasks of one shard the earlier was aborted.
            batch.retain(|other| other.shard != request.shard);
            batch.push(request);
        }
        let mut taken = match connection.take() {
            Some(taken) => taken,
            None => match pool.acquire().await {
                Ok(taken) => taken,
                // Who asked hears that there is no answer.
                Err(_) => continue,
            },
        };
        let began = Instant::now();
        let shards: Vec<i16> = batch.iter().map(|request| request.shard).collect();
        let positions: Vec<i64> = batch.iter().map(|request| request.position).collect();
        let read = OutboxProgress::new(&mut taken)
            .pending_of(&shards, &positions, limit)
            .await;
        let Ok(rows) = read else { continue };
        next_read = if rows.len() < MANY { began } else { began + PACE };
        connection = Some(taken);
        let mut of_shard: HashMap<i16, Vec<PendingRow>> = HashMap::new();
        for (shard, row) in rows {
            of_shard.entry(shard).or_default().push(row);
        }
        for request in batch {
            let mut rows = of_shard.remove(&request.shard).unwrap_or_default();
            rows.sort_unstable_by_key(|row| row.position);
            // A shard that has stopped meanwhile needs no answer.
            drop(request.reply.send(rows));
        }
    }
}
