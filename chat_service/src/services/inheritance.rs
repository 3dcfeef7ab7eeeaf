//! What deactivated people owned: their chats go to the active member of longest standing, as if they had left.

use std::time::Duration;

use fechatter_core::UserId;
use fechatter_core::events::EventType;
use service_runtime::error::Chain;
use tokio_util::sync::CancellationToken;

use super::chats::chat_event;
use crate::error::Error;
use crate::repositories::chats::OwnedChat;
use crate::repositories::{Repositories, Store};

/// How often chats without an active owner are looked for: those of deactivations that something interrupted.
const SWEEP: Duration = Duration::from_mins(1);
/// Chats found by one statement.
const BATCH: i64 = 100;

/// Hands over chats whose owner was deactivated.
#[derive(Debug, Clone)]
pub struct Inheritance {
    pub store: Store,
}

impl Inheritance {
    /// Looks for such chats every minute until `shutdown`. Every replica does; a chat changes hands once.
    pub async fn keep_settled(self, shutdown: CancellationToken) {
        loop {
            match self.settle(None).await {
                Ok(0) => {}
                Ok(chats) => tracing::info!(chats, "handed over chats of deactivated owners"),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "cannot hand over chats of deactivated owners; trying again in a minute");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(SWEEP) => {}
            }
        }
    }

    /// Hands over what `owner`, or anybody deactivated, owns, each chat in a transaction of its own, and says how many. A chat
    /// without an active member stays as it is.
    pub async fn settle(&self, owner: Option<UserId>) -> Result<u64, Error> {
        let (mut settled, mut after) = (0, 0);
        loop {
            let mut connection = self.store.connection().await?;
            let chats = connection.chats().of_deactivated_owners(owner, after, BATCH).await?;
            drop(connection);
            let Some(last) = chats.last() else {
                return Ok(settled);
            };
            after = last.chat.0;
            for owned in chats {
                settled += u64::from(self.hand_over(&owned).await?);
            }
        }
    }

    async fn hand_over(&self, owned: &OwnedChat) -> Result<bool, Error> {
        let mut unit = self.store.begin().await?;
        let row = unit.chats().lock(owned.workspace, owned.chat, owned.owner).await?;
        if row.is_none_or(|row| row.shared.owner_id != owned.owner) {
            return Ok(false);
        }
        // Who is just leaving or was just deactivated too is for the next sweep.
        let Some(heir) = unit.members().longest_standing(owned.chat, owned.owner).await? else {
            return Ok(false);
        };
        if unit.users().active_among(owned.workspace, &[heir.0]).await?.is_empty() {
            return Ok(false);
        }
        unit.chats().set_owner(owned.chat, heir).await?;
        let row = unit
            .chats()
            .find(owned.workspace, owned.chat, heir)
            .await?
            .ok_or(Error::NotFound("chat"))?;
        unit.append(
            EventType::ChatUpdated,
            owned.workspace,
            owned.chat.0,
            &chat_event(&row, Vec::new()),
        )
        .await?;
        unit.commit().await?;
        Ok(true)
    }
}
