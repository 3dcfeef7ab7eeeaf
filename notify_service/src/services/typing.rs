//! Who is typing: told to the others in the chat over core NATS, never stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use service_runtime::ApiResult;
use tokio::time::Instant;

use super::access::Access;
use crate::ephemeral::{self, Typing as TypingSignal};

/// A user who goes on typing is told of once in so long.
const PAUSE: Duration = Duration::from_secs(2);
/// Most pairs of chat and user remembered.
const REMEMBERED_MAX: usize = 100_000;

/// See the module.
#[derive(Debug, Clone)]
pub struct Typing {
    client: async_nats::Client,
    access: Access,
    told: Arc<Mutex<HashMap<(ChatId, UserId), Instant>>>,
}

impl Typing {
    /// Sends by `client`.
    pub fn new(client: async_nats::Client, access: Access) -> Self {
        Self {
            client,
            access,
            told: Arc::default(),
        }
    }

    /// Tells the others in the chat that the user is typing. Told too often, or while NATS is away, it is dropped.
    pub async fn tell(&self, user: UserId, workspace: WorkspaceId, chat: ChatId) -> ApiResult<()> {
        self.access.member(user, workspace, chat).await?;
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
