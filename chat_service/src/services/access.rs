//! Who may see a chat: written once. A chat one may not know of is 404; one that one may know of is 403.

use fechatter_core::ChatId;

use super::Actor;
use crate::error::Error;
use crate::repositories::Repositories;
use crate::repositories::chats::ChatRow;

/// The chat, if the actor is a member.
pub async fn member(repositories: &mut impl Repositories, actor: Actor, chat: ChatId) -> Result<ChatRow, Error> {
    let row = repositories.chats().find(actor.workspace, chat, actor.user).await?;
    judge(row)
}

/// Like [`member`], and holds membership and chat until the transaction ends. Who may not know of the chat, or is not in it, holds
/// nothing and waits for nobody: the time of the answer tells no more than the answer, and members are not kept waiting.
pub async fn locked_member(repositories: &mut impl Repositories, actor: Actor, chat: ChatId) -> Result<ChatRow, Error> {
    member(repositories, actor, chat).await?;
    let row = repositories.chats().lock(actor.workspace, chat, actor.user).await?;
    judge(row)
}

/// Decides on what was found.
pub fn judge(row: Option<ChatRow>) -> Result<ChatRow, Error> {
    match row {
        Some(row) if row.is_member() => Ok(row),
        Some(row) if row.shared.kind.is_discoverable() => Err(Error::Forbidden(
            "You are not a member of this channel; join it first (POST /api/chat/{id}/join).",
        )),
        _ => Err(Error::NotFound("chat")),
    }
}

/// Refuses everybody but the chat's owner.
pub fn owner(row: &ChatRow, actor: Actor) -> Result<(), Error> {
    if row.shared.owner_id == actor.user {
        Ok(())
    } else {
        Err(Error::Forbidden("Only the owner of the chat may do this."))
    }
}
