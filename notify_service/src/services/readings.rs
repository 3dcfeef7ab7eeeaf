//! Reading the chats of users who connect, at a bounded rate.

use std::sync::Arc;

use fechatter_core::{UserId, WorkspaceId};
use service_runtime::{ApiError, ApiResult};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::hub::{Hub, Reading};
use crate::metrics;
use crate::repositories::memberships;

/// Reads at most so many users at a time that the pool is never exhausted by them.
#[derive(Debug, Clone)]
pub struct Readings {
    pool: PgPool,
    turns: Arc<Semaphore>,
}

/// Gives the reading up when its request goes away.
struct Begun<'a> {
    hub: &'a Hub,
    user: UserId,
    mark: Option<u64>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(mark) = self.mark.take() {
            self.hub.abort_reading(self.user, mark);
        }
    }
}

impl Readings {
    /// Reads with at most `at_once` connections of the pool.
    pub fn new(pool: PgPool, at_once: usize) -> Self {
        Self {
            pool,
            turns: Arc::new(Semaphore::new(at_once.max(1))),
        }
    }

    /// Makes a user known to the hub, or leaves it to be tried again; `false` when there is no such active user.
    pub async fn read(&self, hub: &Hub, workspace: WorkspaceId, user: UserId) -> ApiResult<bool> {
        let not_now = || ApiError::unavailable("Too many clients connect at once; try again.", 2);
        let _turn = self.turns.acquire().await.map_err(|_| not_now())?;
        let mut begun = Begun {
            hub,
            user,
            mark: Some(hub.begin_reading(user)),
        };
        let at = OffsetDateTime::now_utc();
        let unavailable = |error: sqlx::Error| {
            tracing::warn!(%error, "cannot read a user's chats");
            ApiError::unavailable("The database does not answer; try again.", 2)
        };
        let active = memberships::is_active(&self.pool, workspace, user)
            .await
            .map_err(unavailable)?;
        if !active {
            return Ok(false);
        }
        let memberships = memberships::of_users(&self.pool, &[user]).await.map_err(unavailable)?;
        if let Some(mark) = begun.mark.take() {
            hub.end_reading(user, workspace, mark, &Reading { memberships, at });
            metrics::membership_read();
        }
        Ok(true)
    }
}
