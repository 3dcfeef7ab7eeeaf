//! The relay: what the outbox holds goes to the JetStream stream, in order per shard and without loss.
//!
//! Any number of processes run one. They share the sixteen shards by session locks in PostgreSQL ([`ownership`]); each
//! owned shard has one task that publishes its events in order ([`shard`], [`publisher`]); one task per process keeps
//! the stream and knows which history of it is valid ([`history`]); another watches the backlog ([`monitor`]).
//! `docs/events.md` holds the proof of order and what is configured.

mod backoff;
mod history;
mod monitor;
mod ownership;
mod publisher;
mod reader;
mod shard;
mod status;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use fechatter_core::config::{Faults, Validate};
use fechatter_core::events::SHARDS;
use serde::Deserialize;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use history::{Anew, begin_anew};
pub use status::Status;
pub(crate) use stream::is_valid;

/// `[outbox]`: the relay and the stream it fills.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Events of a shard that are published in one batch, 1 to 1,000 (the most that JetStream takes).
    pub batch: u32,
    /// How often the outbox is looked at for events of other processes, 10 to 10,000 ms. This process's own are
    /// published at once.
    pub poll_ms: u64,
    /// Days that published events stay in the outbox, 1 to 366; at least the stream's age limit, so that a lost stream
    /// can be rebuilt whole.
    pub keep_days: i32,
    /// Age limit of the stream, 1 to 8,784 hours.
    pub stream_max_age_hours: u64,
    /// Size limit of the stream, 16 MiB to 1 TiB, in bytes; the oldest events leave first.
    pub stream_max_bytes: i64,
    /// How long the stream recognises an event that is published again, 10 to 3,600 s. It takes memory for each event
    /// of that time; correctness does not depend on it.
    pub duplicate_window_seconds: u64,
    /// How often partitions are looked after. Not to be configured: tests do not wait an hour.
    #[serde(skip)]
    pub upkeep_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch: 500,
            poll_ms: 100,
            keep_days: 7,
            stream_max_age_hours: 72,
            stream_max_bytes: 1 << 30,
            duplicate_window_seconds: 120,
            upkeep_every: Duration::from_hours(1),
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        faults.range("outbox.batch", self.batch, 1, 1_000);
        faults.range("outbox.poll_ms", self.poll_ms, 10, 10_000);
        faults.range("outbox.keep_days", self.keep_days, 1, 366);
        faults.range("outbox.stream_max_age_hours", self.stream_max_age_hours, 1, 8_784);
        faults.range("outbox.stream_max_bytes", self.stream_max_bytes, 16 << 20, 1 << 40);
        faults.range(
            "outbox.duplicate_window_seconds",
            self.duplicate_window_seconds,
            10,
            3_600,
        );
        if u64::from(self.keep_days.unsigned_abs()) * 24 < self.stream_max_age_hours {
            faults.add(
                "outbox.keep_days",
                "must cover outbox.stream_max_age_hours, else a lost stream cannot be rebuilt whole",
            );
        }
    }
}

/// Tells the relay that a shard has new events, so that it need not wait for its next poll.
#[derive(Debug)]
pub struct Wake([Notify; SHARDS as usize]);

impl Default for Wake {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Notify::new()))
    }
}

impl Wake {
    /// Call it after the commit. Never blocks, and signals before the relay looks count as one.
    pub fn notify(&self, shard: i16) {
        if let Some(notify) = usize::try_from(shard).ok().and_then(|index| self.0.get(index)) {
            notify.notify_one();
        }
    }

    async fn wait(&self, shard: i16) {
        match usize::try_from(shard).ok().and_then(|index| self.0.get(index)) {
            Some(notify) => notify.notified().await,
            None => std::future::pending().await,
        }
    }
}

/// What all tasks of a relay share.
#[derive(Debug)]
struct Shared {
    pool: PgPool,
    client: async_nats::Client,
    config: Config,
    wake: Arc<Wake>,
    status: Status,
    history: history::Handle,
    reader: reader::Handle,
    /// From so many events on a batch pays.
    batch_min: usize,
}

impl Shared {
    /// Connections made so far: another number means that messages in flight may be lost.
    fn connects(&self) -> u64 {
        self.client
            .statistics()
            .connects
            .load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// How long a stopping process may take to finish what is in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the relay of this process. The task ends some time after `shutdown`, when the batches in flight are done (at
/// most 5 s) and the locks are given back; it panics if one of its parts does.
pub fn spawn(
    pool: PgPool,
    client: async_nats::Client,
    config: Config,
    stream_replicas: usize,
    wake: Arc<Wake>,
    shutdown: CancellationToken,
) -> (JoinHandle<()>, Status) {
    let status = Status::new(client.clone());
    let (handle, requests) = history::channel();
    let (reader, reads) = reader::channel(config.batch);
    let shared = Arc::new(Shared {
        pool,
        client,
        config,
        wake,
        status: status.clone(),
        history: handle,
        reader,
        batch_min: publisher::batch_min(stream_replicas),
    });
    let task = tokio::spawn(async move {
        // The stream is kept and the backlog watched until the shards have finished.
        let is_done = CancellationToken::new();
        let keeper = history::Keeper::new(Arc::clone(&shared), stream_replicas, requests);
        let background = async {
            tokio::join!(
                keeper.run(),
                monitor::run(&shared),
                reader::run(&shared.pool, shared.reader.limit, reads)
            );
        };
        let owner = async {
            ownership::run(&shared, &shutdown).await;
            is_done.cancel();
        };
        tokio::join!(owner, is_done.run_until_cancelled(background));
    });
    (task, status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(config: &Config) -> Vec<String> {
        let mut faults = Faults::default();
        config.validate(&mut faults);
        faults.into_lines()
    }

    #[test]
    fn the_default_is_valid_and_faults_name_key_and_range() {
        assert_eq!(faults(&Config::default()), Vec::<String>::new());
        let wrong = Config {
            batch: 1_001,
            keep_days: 2,
            ..Config::default()
        };
        let lines = faults(&wrong);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].starts_with("outbox.batch: 1001") && lines[0].contains("1 to 1000"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("outbox.keep_days"), "{lines:?}");
        assert!(serde_json::from_str::<Config>(r#"{"bacth": 1}"#).is_err());
        let read: Config = serde_json::from_str("{}").expect("the default");
        assert_eq!(read.upkeep_every, Config::default().upkeep_every);
    }

    #[tokio::test]
    async fn a_signal_before_the_wait_is_not_lost() {
        let wake = Wake::default();
        wake.notify(3);
        wake.notify(3);
        wake.notify(99);
        wake.wait(3).await;
        let again = tokio::time::timeout(Duration::from_millis(20), wake.wait(3)).await;
        assert!(again.is_err(), "two signals count as one");
    }
}
