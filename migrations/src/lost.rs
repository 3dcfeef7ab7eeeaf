//! Learns at once that the database dropped its connections, so that a pool hands out none of the dead ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};

/// What operators see in `pg_stat_activity`.
const APPLICATION_NAME: &str = "fechatter_watch";

/// Pause between attempts while the database is away.
const PAUSE: Duration = Duration::from_millis(500);

/// When connections were last lost. A restart or failover of PostgreSQL ends all of them together, but a pool learns it of each by
/// itself, by a statement that fails. One more connection, on which nothing is ever asked, ends with them and says so.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    began: Instant,
    /// Microseconds after `began`, 0 for never.
    at: Arc<AtomicU64>,
}

impl Lost {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            at: Arc::default(),
        }
    }

    /// Whether connections were lost within the last `idle_for`.
    pub(crate) fn within(&self, idle_for: Duration) -> bool {
        let idle_since = micros(self.began.elapsed().saturating_sub(idle_for));
        self.at.load(Ordering::Acquire) > idle_since
    }

    fn note(&self) {
        // Never 0, and never earlier than the moment it stands for.
        self.at.store(micros(self.began.elapsed()) + 1, Ordering::Release);
    }

    /// Watches, until `pool` is closed or dropped, the database that it is for.
    pub(crate) fn watch(&self, pool: &PgPool, options: PgConnectOptions) {
        let (lost, mut closed) = (self.clone(), pool.close_event());
        let own = PgPoolOptions::new()
            .max_connections(1)
            .connect_lazy_with(options.application_name(APPLICATION_NAME));
        tokio::spawn(async move {
            // The error of a closed pool is the end that was asked for.
            let _ = closed
                .do_until(async {
                    loop {
                        match PgListener::connect_with(&own).await {
                            Ok(listener) => {
                                until_lost(listener).await;
                                lost.note();
                            }
                            Err(error) => {
                                tracing::debug!(%error, "cannot watch for lost connections");
                                tokio::time::sleep(PAUSE).await;
                            }
                        }
                    }
                })
                .await;
        });
    }
}

/// Nobody listens for anything: what arrives is the end.
async fn until_lost(mut listener: PgListener) {
    listener.eager_reconnect(false);
    while let Ok(Some(_)) = listener.try_recv().await {}
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
