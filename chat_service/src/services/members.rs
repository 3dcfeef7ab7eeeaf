//! Joining, adding, leaving, removing, and handing over.

use std::collections::BTreeSet;

use fechatter_core::chat::{ChatKind, MEMBER_BATCH_MAX, MembershipRule};
use fechatter_core::events::{EventType, MemberEvent};
use fechatter_core::wire::{ChatView, MemberView, Page};
use fechatter_core::{ChatId, UserId};

use super::chats::{chat_event, first_missing, unknown_member};
use super::validation::Validation;
use super::{Actor, access, page};
use crate::error::Error;
use crate::repositories::{Repositories, Store, UnitOfWork};

/// Membership use cases.
#[derive(Debug, Clone)]
pub struct MemberService {
    pub store: Store,
}

impl MemberService {
    pub async fn list(
        &self,
        actor: Actor,
        chat: ChatId,
        cursor: Option<&str>,
        limit: Option<i64>,
    ) -> Result<Page<MemberView>, Error> {
        let (after, limit) = (page::cursor(cursor, 0)?, page::limit(limit)?);
        let mut connection = self.store.connection().await?;
        access::member(&mut connection, actor, chat).await?;
        let members = connection.members().list(chat, after, limit + 1).await?;
        Ok(page::page(members, limit, |member| member.user_id.0))
    }

    /// Adds users of the workspace; the owner may. Those who are members already stay so.
    pub async fn add(&self, actor: Actor, chat: ChatId, ids: &[UserId]) -> Result<Vec<MemberView>, Error> {
        let ids = distinct(ids)?;
        let mut unit = self.store.begin().await?;
        let row = access::locked_member(&mut unit, actor, chat).await?;
        access::owner(&row, actor)?;
        if !row.shared.kind.has_changing_members() {
            return Err(MembershipRule::SingleIsFixed.into());
        }
        if let Some(missing) = first_missing(&ids, &unit.users().active_among(actor.workspace, &ids).await?) {
            return Err(unknown_member(missing));
        }
        self.insert(&mut unit, actor, chat, &ids).await?;
        let members = unit.members().among(chat, &ids).await?;
        unit.commit().await?;
        Ok(members)
    }

    /// Joins a public channel; joining again changes nothing.
    pub async fn join(&self, actor: Actor, chat: ChatId) -> Result<ChatView, Error> {
        let mut unit = self.store.begin().await?;
        let found = unit.chats().find(actor.workspace, chat, actor.user).await?;
        // Nobody waits for a chat that they may not know of.
        if found.is_none_or(|row| !row.is_member() && row.shared.kind != ChatKind::PublicChannel) {
            return Err(Error::NotFound("chat"));
        }
        let Some(row) = unit.chats().lock(actor.workspace, chat, actor.user).await? else {
            return Err(Error::NotFound("chat"));
        };
        if !row.is_member() {
            if row.shared.kind != ChatKind::PublicChannel {
                return Err(Error::NotFound("chat"));
            }
            if unit
                .users()
                .active_among(actor.workspace, &[actor.user.0])
                .await?
                .is_empty()
            {
                return Err(Error::Forbidden("This account is deactivated."));
            }
            self.insert(&mut unit, actor, chat, &[actor.user.0]).await?;
        }
        let view = access::member(&mut unit, actor, chat).await?.into_view();
        unit.commit().await?;
        Ok(view)
    }

    /// Leaves a chat. When the owner leaves, the member of longest standing inherits; the last one out ends the chat.
    pub async fn leave(&self, actor: Actor, chat: ChatId) -> Result<(), Error> {
        let mut unit = self.store.begin().await?;
        let locked = unit.members().lock_for_removal(chat, &[actor.user.0]).await?;
        if locked.is_empty() {
            access::member(&mut unit, actor, chat).await?;
            return Err(Error::Conflict("You joined at this moment; try again."));
        }
        let row = access::locked_member(&mut unit, actor, chat).await?;
        if !row.shared.kind.has_changing_members() {
            return Err(MembershipRule::SingleIsFixed.into());
        }
        if row.shared.member_count == 1 {
            unit.chats().delete(chat).await?;
            unit.append(
                EventType::ChatDeleted,
                actor.workspace,
                chat.0,
                &chat_event(&row, Vec::new()),
            )
            .await?;
            return unit.commit().await;
        }
        if row.shared.owner_id == actor.user {
            let heir = unit.members().longest_standing(chat, actor.user).await?;
            let heir = heir.ok_or(Error::Conflict("Everybody else is leaving at this moment; try again."))?;
            unit.chats().set_owner(chat, heir).await?;
        }
        self.delete(&mut unit, actor, chat, &[actor.user.0]).await?;
        unit.commit().await
    }

    /// Removes members; the owner may, and leaves by `leave` himself.
    pub async fn remove(&self, actor: Actor, chat: ChatId, ids: &[UserId]) -> Result<(), Error> {
        let ids = distinct(ids)?;
        let mut unit = self.store.begin().await?;
        // Nobody else's locks for who may not do this; the locks may have waited, so that it is asked twice.
        access::owner(&access::member(&mut unit, actor, chat).await?, actor)?;
        if ids.contains(&actor.user.0) {
            return Err(Error::field(
                "member_ids",
                "owner",
                "the owner leaves by POST /api/chat/{id}/leave, or hands over first",
            ));
        }
        let locked = unit.members().lock_for_removal(chat, &ids).await?;
        if let Some(missing) = first_missing(&ids, &locked) {
            return Err(Error::field(
                "member_ids",
                "not_a_member",
                format!("user {missing} is not a member of this chat"),
            ));
        }
        let row = access::locked_member(&mut unit, actor, chat).await?;
        access::owner(&row, actor)?;
        if !row.shared.kind.has_changing_members() {
            return Err(MembershipRule::SingleIsFixed.into());
        }
        let present = unit.members().among(chat, &ids).await?;
        let present_ids: Vec<i64> = present.iter().map(|member| member.user_id.0).collect();
        if let Some(missing) = first_missing(&ids, &present_ids) {
            return Err(Error::field(
                "member_ids",
                "not_a_member",
                format!("user {missing} is not a member of this chat"),
            ));
        }
        let remaining = usize::try_from(row.shared.member_count)
            .unwrap_or(0)
            .saturating_sub(ids.len());
        row.shared.kind.check_remaining_members(remaining)?;
        self.delete(&mut unit, actor, chat, &ids).await?;
        unit.commit().await
    }

    /// Makes another member the owner; the owner may.
    pub async fn transfer(&self, actor: Actor, chat: ChatId, heir: UserId) -> Result<MemberView, Error> {
        let mut unit = self.store.begin().await?;
        access::owner(&access::member(&mut unit, actor, chat).await?, actor)?;
        // Both memberships in the order of their ids, before the chat.
        unit.members().hold(chat, heir.min(actor.user)).await?;
        unit.members().hold(chat, heir.max(actor.user)).await?;
        let row = access::locked_member(&mut unit, actor, chat).await?;
        access::owner(&row, actor)?;
        if unit.members().among(chat, &[heir.0]).await?.is_empty() {
            return Err(Error::NotFound("member"));
        }
        if unit.users().active_among(actor.workspace, &[heir.0]).await?.is_empty() {
            return Err(Error::Conflict("A deactivated user cannot own a chat."));
        }
        if heir != actor.user {
            unit.chats().set_owner(chat, heir).await?;
            let row = access::member(&mut unit, actor, chat).await?;
            unit.append(
                EventType::ChatUpdated,
                actor.workspace,
                chat.0,
                &chat_event(&row, Vec::new()),
            )
            .await?;
        }
        let member = unit.members().among(chat, &[heir.0]).await?.pop();
        unit.commit().await?;
        member.ok_or(Error::NotFound("member"))
    }

    async fn insert(&self, unit: &mut UnitOfWork, actor: Actor, chat: ChatId, ids: &[i64]) -> Result<(), Error> {
        let added = unit.members().insert(actor.workspace, chat, ids).await?;
        let members = unit.members().among(chat, &added).await?;
        announce(unit, actor, chat, EventType::MemberAdded, members).await
    }

    async fn delete(&self, unit: &mut UnitOfWork, actor: Actor, chat: ChatId, ids: &[i64]) -> Result<(), Error> {
        let members = unit.members().among(chat, ids).await?;
        unit.members().delete(chat, ids).await?;
        announce(unit, actor, chat, EventType::MemberRemoved, members).await
    }
}

/// Appends an event for each of `members`, with the chat as it is after the change.
async fn announce(
    unit: &mut UnitOfWork,
    actor: Actor,
    chat: ChatId,
    event_type: EventType,
    members: Vec<MemberView>,
) -> Result<(), Error> {
    let row = unit
        .chats()
        .find(actor.workspace, chat, actor.user)
        .await?
        .ok_or(Error::NotFound("chat"))?;
    let events: Vec<MemberEvent> = members
        .into_iter()
        .map(|member| MemberEvent {
            chat: row.shared.clone(),
            member,
            membership_version: row.membership_version,
        })
        .collect();
    unit.append_all(event_type, actor.workspace, chat.0, &events).await
}

/// Checks a list of members and returns it sorted and distinct.
fn distinct(ids: &[UserId]) -> Result<Vec<i64>, Error> {
    let set: BTreeSet<i64> = ids.iter().map(|id| id.0).collect();
    Validation::default()
        .check(!ids.is_empty(), "member_ids", "required", "name at least one user")
        .check(
            ids.len() <= MEMBER_BATCH_MAX,
            "member_ids",
            "too_many",
            format_args!("at most {MEMBER_BATCH_MAX} in one request"),
        )
        .check(set.len() == ids.len(), "member_ids", "duplicate", "each member once")
        .finish()?;
    Ok(set.into_iter().collect())
}
