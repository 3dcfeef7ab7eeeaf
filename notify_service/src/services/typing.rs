//! Who is typing: told to the others in the chat over core NATS, never stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use fechatter_core::problem::Code;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use service_runtime::{ApiError, ApiResult};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::ephemeral::{self, Typing as TypingSignal};
use crate::hub::Hub;
use crate::repositories;

/// A user who goes on typing is told of once in so long.
const PAUSE: Duration = Duration::from_secs(2);
/// Most pairs of chat and user remembered.
const REMEMBERED_MAX: usize = 100_000;

/// See the module.
#[derive(Debug, Clone)]
pub struct Typing {
    client: async_nats::Client,
    pool: PgPool,
    hub: Arc<Hub>,
    told: Arc<Mutex<HashMap<(ChatId, UserId), Instant>>>,
}

impl Typing {
    /// Sends by `client`.
    pub fn new(client: async_nats::Client, pool: PgPool, hub: Arc<Hub>) -> Self {
        Self {
            client,
            pool,
            hub,
            told: Arc::default(),
        }
    }

    /// Tells the others in the chat that the user is typing. Told too often, or while NATS is away, it is dropped.
    pub async fn tell(&self, user: UserId, workspace: WorkspaceId, chat: ChatId) -> ApiResult<()> {
        self.authorise(user, workspace, chat).await?;
        if !self.is_due(chat, user) || self.client.connection_state() != State::Connected {
            return Ok(());
        }
        ephemeral::send(
            &self.client,
            workspace,
            &TypingSignal {
                chat_id: chat,
                user_id: user,
            },
        )
        .await;
        Ok(())
    }

    async fn authorise(&self, user: UserId, workspace: WorkspaceId, chat: ChatId) -> ApiResult<()> {
        // Whoever has a stream is known; nobody else types.
        if self.hub.is_member(user, chat) == Some(true) {
            return Ok(());
        }
        let standing = repositories::membership::standing(&self.pool, user, workspace, chat)
            .await
            .map_err(|error| {
                if migrations::is_away(&error) {
                    tracing::error!(%error, "database away");
                    ApiError::unavailable("Your chats could not be looked up; try again soon.", 2)
                } else {
                    ApiError::internal(&error)
                }
            })?;
        match standing {
            Some(standing) if standing.is_member => Ok(()),
            Some(standing) if standing.is_public => Err(ApiError::new(
                Code::Forbidden,
                "Join the channel first: POST /api/chat/{id}/join.",
            )),
            _ => Err(ApiError::new(Code::NotFound, "There is no such chat.")),
        }
    }

    fn is_due(&self, chat: ChatId, user: UserId) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= REMEMBERED_MAX {
            told.retain(|_, at| at.elapsed() < PAUSE);
        }
        let now = Instant::now();
        match told.get_mut(&(chat, user)) {
            Some(at) if now.duration_since(*at) < PAUSE => false,
            Some(at) => {
                *at = now;
                true
            }
            None => {
                told.insert((chat, user), now);
                true
            }
        }
    }
}
