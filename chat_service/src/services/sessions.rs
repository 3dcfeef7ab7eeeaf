//! A user's own sessions.

use fechatter_core::events::{EventType, SessionRevokedEvent};
use uuid::Uuid;

use super::Actor;
use crate::error::Error;
use crate::repositories::sessions::SessionRow;
use crate::repositories::{Repositories, Store};

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
}
