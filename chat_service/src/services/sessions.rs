//! A user's own sessions.

use std::time::Duration;

use fechatter_core::events::{EventType, SessionRevokedEvent};
use service_runtime::error::Chain;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Actor;
use crate::error::Error;
use crate::repositories::sessions::SessionRow;
use crate::repositories::{Repositories, Store};

/// How often ended sessions are looked for.
const TIDY: Duration = Duration::from_hours(1);
/// Sessions forgotten by one statement.
const TIDY_BATCH: i64 = 1_000;

/// Session use cases.
#[derive(Debug, Clone)]
pub struct SessionService {
    pub store: Store,
}

impl SessionService {
    pub async fn list(&self, actor: Actor) -> Result<Vec<SessionRow>, Error> {
        self.store.connection().await?.sessions().list(actor.user).await
    }

    /// Ends one of the actor's sessions.
    pub async fn end(&self, actor: Actor, session: Uuid) -> Result<(), Error> {
        let mut unit = self.store.begin().await?;
        if !unit.sessions().revoke(actor.user, session).await? {
            return Err(Error::NotFound("session"));
        }
        let event = SessionRevokedEvent {
            session_id: session,
            user_id: actor.user,
        };
        unit.append(EventType::SessionRevoked, actor.workspace, actor.user.0, &event)
            .await?;
        unit.commit().await
    }

    /// Ends all of the actor's sessions but the one that asks.
    pub async fn end_others(&self, actor: Actor) -> Result<(), Error> {
        let mut unit = self.store.begin().await?;
        let ended = unit.sessions().revoke_all(actor.user, Some(actor.session)).await?;
        let events: Vec<_> = ended
            .into_iter()
            .map(|session_id| SessionRevokedEvent {
                session_id,
                user_id: actor.user,
            })
            .collect();
        unit.append_all(EventType::SessionRevoked, actor.workspace, actor.user.0, &events)
            .await?;
        unit.commit().await
    }

    /// Forgets sessions that ended long ago, hourly, until `shutdown`. Every replica does; they pass over each other's rows.
    pub async fn keep_tidy(self, shutdown: CancellationToken) {
        loop {
            match self.forget_ended().await {
                Ok(forgotten @ 1..) => tracing::info!(forgotten, "forgot sessions that ended long ago"),
                Ok(0) => {}
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "cannot forget old sessions; trying again in an hour");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(TIDY) => {}
            }
        }
    }

    /// Forgets sessions that ended a month ago, and says how many.
    pub async fn forget_ended(&self) -> Result<u64, Error> {
        let mut forgotten = 0;
        loop {
            let now = self
                .store
                .connection()
                .await?
                .sessions()
                .forget_ended(TIDY_BATCH)
                .await?;
            forgotten += now;
            if now < TIDY_BATCH.unsigned_abs() {
                return Ok(forgotten);
            }
        }
    }
}
