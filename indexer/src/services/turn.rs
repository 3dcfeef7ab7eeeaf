//! Whose turn it is to write to an engine that several processes share.
//!
//! To let the newer of two versions win, a writer looks at what is there and then writes; two at once could each look
//! before the other writes. One process writes at a time, therefore, and all search. An advisory lock in PostgreSQL
//! says which: it ends with the connection that holds it, however its process ends.

use fechatter_core::events::STREAM;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::Mutex;

/// The turn to write, ours or another's.
#[derive(Debug)]
pub struct Turn {
    pool: PgPool,
    is_needed: bool,
    held: Mutex<Option<PgConnection>>,
}

impl Turn {
    /// Nobody's yet. An engine of one process alone needs no turns: `is_needed` is false.
    pub fn new(pool: PgPool, is_needed: bool) -> Self {
        Self {
            pool,
            is_needed,
            held: Mutex::new(None),
        }
    }

    /// Takes the turn unless another process has it; whether it is ours now.
    ///
    /// # Errors
    /// When PostgreSQL is away; it is nobody's we know of, then.
    pub async fn take(&self) -> Result<bool, sqlx::Error> {
        if self.is_ours().await {
            return Ok(true);
        }
        let mut held = self.held.lock().await;
        let mut connection = PgConnection::connect_with(&self.pool.connect_options()).await?;
        let is_ours = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_lock(hashtext('fechatter.indexer'), hashtext($1)) AS "locked!""#,
            STREAM
        )
        .fetch_one(&mut connection)
        .await?;
        if is_ours {
            *held = Some(connection);
        } else {
            connection.close().await?;
        }
        Ok(is_ours)
    }

    /// Whether it is ours still: asks the connection that holds it, and gives it up with one that is broken.
    pub async fn is_ours(&self) -> bool {
        if !self.is_needed {
            return true;
        }
        let mut held = self.held.lock().await;
        let Some(connection) = held.as_mut() else { return false };
        let is_alive = connection.ping().await.is_ok();
        if !is_alive {
            *held = None;
        }
        is_alive
    }
}
