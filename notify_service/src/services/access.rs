//! Whether the caller is in a chat, for what is not an event.

use std::sync::Arc;

use fechatter_core::problem::Code;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use service_runtime::{ApiError, ApiResult};
use sqlx::PgPool;

use crate::hub::Hub;
use crate::repositories;

/// See the module.
#[derive(Debug, Clone)]
pub struct Access {
    pub pool: PgPool,
    pub hub: Arc<Hub>,
}

impl Access {
    /// Lets members through: 403 for a public channel that the user has not joined, 404 for anything else.
    pub async fn member(&self, user: UserId, workspace: WorkspaceId, chat: ChatId) -> ApiResult<()> {
        // Whoever has a stream is known.
        if self.hub.is_member(user, chat) == Some(true) {
            return Ok(());
        }
        let standing = repositories::membership::standing(&self.pool, user, workspace, chat)
            .await
            .map_err(|error| database_fault(&error))?;
        match standing {
            Some(standing) if standing.is_member => Ok(()),
            Some(standing) if standing.is_public => Err(ApiError::new(
                Code::Forbidden,
                "Join the channel first: POST /api/chat/{id}/join.",
            )),
            _ => Err(ApiError::new(Code::NotFound, "There is no such chat.")),
        }
    }
}

/// What a failed query answers.
pub fn database_fault(error: &sqlx::Error) -> ApiError {
    if migrations::is_away(error) {
        tracing::error!(%error, "database away");
        ApiError::unavailable("Your chats could not be looked up; try again soon.", 2)
    } else {
        ApiError::internal(error)
    }
}
