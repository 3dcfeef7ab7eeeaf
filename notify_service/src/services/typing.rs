//! "Somebody is typing": over core NATS to every process, never stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fechatter_core::events::EPHEMERAL_PREFIX;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::hub::Hub;
use crate::repositories::memberships;

/// A user's typing in a chat is told at most this often.
const PAUSE: Duration = Duration::from_secs(1);
/// Remembered pairs of user and chat; more means that all are forgotten, which only tells some of them again.
const REMEMBERED_MAX: usize = 100_000;

/// Data of a `typing` event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TypingEvent {
    pub chat_id: ChatId,
    pub user_id: UserId,
}

/// Tells the members of chats that somebody is typing.
#[derive(Debug)]
pub struct Typing {
    client: async_nats::Client,
    pool: PgPool,
    hub: Arc<Hub>,
    told: Mutex<HashMap<(UserId, ChatId), Instant>>,
}

impl Typing {
    /// See the type.
    pub fn new(client: async_nats::Client, pool: PgPool, hub: Arc<Hub>) -> Self {
        Self {
            client,
            pool,
            hub,
            told: Mutex::default(),
        }
    }

    /// Tells the other members; `false` when the user is not in the chat.
    pub async fn tell(&self, workspace: WorkspaceId, user: UserId, chat: ChatId) -> Result<bool, sqlx::Error> {
        let is_member = match self.hub.is_member(workspace, user, chat) {
            Some(known) => known,
            None => memberships::among(&self.pool, chat, &[user]).await?.contains(&user),
        };
        if !is_member {
            return Ok(false);
        }
        if self.is_time(user, chat) {
            let event = TypingEvent {
                chat_id: chat,
                user_id: user,
            };
            if let Ok(body) = serde_json::to_vec(&event) {
                let subject = format!("{EPHEMERAL_PREFIX}.{workspace}.chat.{chat}.typing");
                // While NATS is away nobody is told; nobody misses it.
                if let Err(error) = self.client.publish(subject, body.into()).await {
                    tracing::debug!(%error, "typing was not told");
                }
            }
        }
        Ok(true)
    }

    fn is_time(&self, user: UserId, chat: ChatId) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if told.len() >= REMEMBERED_MAX {
            told.retain(|_, at| now.duration_since(*at) < PAUSE);
            if told.len() >= REMEMBERED_MAX {
                told.clear();
            }
        }
        let is_time = told
            .get(&(user, chat))
            .is_none_or(|at| now.duration_since(*at) >= PAUSE);
        if is_time {
            told.insert((user, chat), now);
        }
        is_time
    }
}
