//! Making, finding, changing and ending chats.

use std::collections::BTreeSet;

use fechatter_core::chat::{ChatKind, DESCRIPTION_CHARS_MAX, MEMBER_BATCH_MAX, NAME_CHARS_MAX};
use fechatter_core::events::{ChatEvent, EventType};
use fechatter_core::message::has_control_characters;
use fechatter_core::user::is_name;
use fechatter_core::wire::{ChatView, Page};
use fechatter_core::{ChatId, UserId};

use super::validation::Validation;
use super::{Actor, access, page};
use crate::error::Error;
use crate::repositories::chats::{ChatRow, NewChat};
use crate::repositories::{Repositories, Store};

/// Chat use cases.
#[derive(Debug, Clone)]
pub struct ChatService {
    pub store: Store,
}

/// What `POST /api/chat` asks for.
#[derive(Debug)]
pub struct CreateChat {
    pub kind: ChatKind,
    pub name: Option<String>,
    pub description: Option<String>,
    pub member_ids: Vec<UserId>,
}

/// What `PATCH /api/chat/{id}` asks for; an inner `None` clears the field.
#[derive(Debug, Default)]
pub struct UpdateChat {
    pub name: Option<Option<String>>,
    pub description: Option<Option<String>>,
}

/// A chat, and whether this request made it.
#[derive(Debug)]
pub struct Created {
    pub chat: ChatView,
    pub is_new: bool,
}

impl ChatService {
    /// Makes a chat; a single one that exists is returned as it is.
    pub async fn create(&self, actor: Actor, request: CreateChat) -> Result<Created, Error> {
        let others = founding_members(actor, &request)?;
        let mut unit = self.store.begin().await?;
        let mut member_ids = others.clone();
        member_ids.push(actor.user.0);
        let active = unit.users().active_among(actor.workspace, &member_ids).await?;
        if active.binary_search(&actor.user.0).is_err() {
            return Err(Error::Forbidden("This account is deactivated."));
        }
        let pair =
            (request.kind == ChatKind::Single).then(|| (actor.user.0.min(others[0]), actor.user.0.max(others[0])));
        // It is there to be read even when the other one has left the workspace.
        if let Some((low, high)) = pair
            && let Some(row) = unit.chats().find_single(low, high, actor.user).await?
        {
            return Ok(Created {
                chat: row.into_view(),
                is_new: false,
            });
        }
        if let Some(missing) = first_missing(&others, &active) {
            return Err(unknown_member(missing));
        }
        let inserted = unit
            .chats()
            .insert(&NewChat {
                workspace_id: actor.workspace,
                kind: request.kind,
                name: request.name.as_deref(),
                description: request.description.as_deref(),
                owner_id: actor.user,
                member_ids: &member_ids,
                pair,
            })
            .await?;
        let Some(row) = inserted else {
            let (low, high) = pair.unwrap_or_default();
            let row = unit.chats().find_single(low, high, actor.user).await?;
            return Ok(Created {
                chat: row
                    .ok_or(Error::Conflict("The chat was deleted at this moment; try again."))?
                    .into_view(),
                is_new: false,
            });
        };
        let event = chat_event(&row, member_ids.into_iter().map(UserId).collect());
        unit.append(EventType::ChatCreated, actor.workspace, row.shared.id.0, &event)
            .await?;
        unit.commit().await?;
        Ok(Created {
            chat: row.into_view(),
            is_new: true,
        })
    }

    /// The actor's chats, in the order of their making.
    pub async fn list(&self, actor: Actor, cursor: Option<&str>, limit: Option<i64>) -> Result<Page<ChatView>, Error> {
        let (after, limit) = (page::cursor(cursor, 0)?, page::limit(limit)?);
        let rows = self
            .store
            .connection()
            .await?
            .chats()
            .list(actor.user, after, limit + 1)
            .await?;
        Ok(page::page(
            rows.into_iter().map(ChatRow::into_view).collect(),
            limit,
            |chat| chat.shared.id.0,
        ))
    }

    /// The workspace's public channels, joined or not.
    pub async fn list_public(
        &self,
        actor: Actor,
        cursor: Option<&str>,
        limit: Option<i64>,
    ) -> Result<Page<ChatView>, Error> {
        let (after, limit) = (page::cursor(cursor, 0)?, page::limit(limit)?);
        let rows = self
            .store
            .connection()
            .await?
            .chats()
            .list_public(actor.workspace, actor.user, after, limit + 1)
            .await?;
        // What was said there is for members: a visitor sees the channel, not how much it holds.
        let views = rows.into_iter().map(|mut row| {
            if !row.is_member() {
                row.shared.last_seq = 0;
            }
            row.into_view()
        });
        Ok(page::page(views.collect(), limit, |chat| chat.shared.id.0))
    }

    pub async fn get(&self, actor: Actor, chat: ChatId) -> Result<ChatView, Error> {
        let mut connection = self.store.connection().await?;
        Ok(access::member(&mut connection, actor, chat).await?.into_view())
    }

    /// Renames or describes; the owner may.
    pub async fn update(&self, actor: Actor, chat: ChatId, request: UpdateChat) -> Result<ChatView, Error> {
        let mut unit = self.store.begin().await?;
        let row = access::locked_member(&mut unit, actor, chat).await?;
        access::owner(&row, actor)?;
        let name = request.name.unwrap_or_else(|| row.shared.name.clone());
        let description = request.description.unwrap_or_else(|| row.shared.description.clone());
        check_texts(row.shared.kind, name.as_deref(), description.as_deref()).finish()?;
        if name == row.shared.name && description == row.shared.description {
            return Ok(row.into_view());
        }
        unit.chats()
            .update(chat, name.as_deref(), description.as_deref())
            .await?;
        let row = access::member(&mut unit, actor, chat).await?;
        unit.append(
            EventType::ChatUpdated,
            actor.workspace,
            chat.0,
            &chat_event(&row, Vec::new()),
        )
        .await?;
        unit.commit().await?;
        Ok(row.into_view())
    }

    /// Ends the chat for everybody; the owner may.
    pub async fn delete(&self, actor: Actor, chat: ChatId) -> Result<(), Error> {
        let mut unit = self.store.begin().await?;
        let row = access::locked_member(&mut unit, actor, chat).await?;
        access::owner(&row, actor)?;
        unit.chats().delete(chat).await?;
        unit.append(
            EventType::ChatDeleted,
            actor.workspace,
            chat.0,
            &chat_event(&row, Vec::new()),
        )
        .await?;
        unit.commit().await
    }
}

/// The payload of `chat.*` events.
pub fn chat_event(row: &ChatRow, member_ids: Vec<UserId>) -> ChatEvent {
    ChatEvent {
        chat: row.shared.clone(),
        membership_version: row.membership_version,
        member_ids,
    }
}

/// The first of `wanted` (sorted) that is not in `found` (sorted).
pub fn first_missing(wanted: &[i64], found: &[i64]) -> Option<i64> {
    wanted.iter().copied().find(|id| found.binary_search(id).is_err())
}

/// Somebody who is not in this workspace; other tenants' ids look the same as ids of nobody.
pub fn unknown_member(id: i64) -> Error {
    Error::field(
        "member_ids",
        "unknown_user",
        format!("there is no active user {id} in your workspace"),
    )
}

/// Checks a new chat and returns the other members, sorted and distinct.
fn founding_members(actor: Actor, request: &CreateChat) -> Result<Vec<i64>, Error> {
    let distinct: BTreeSet<i64> = request.member_ids.iter().map(|id| id.0).collect();
    let others: Vec<i64> = distinct.iter().copied().filter(|id| *id != actor.user.0).collect();
    check_texts(request.kind, request.name.as_deref(), request.description.as_deref())
        .check(
            distinct.len() == request.member_ids.len(),
            "member_ids",
            "duplicate",
            "each member once",
        )
        .check(
            request.member_ids.len() <= MEMBER_BATCH_MAX,
            "member_ids",
            "too_many",
            format_args!("at most {MEMBER_BATCH_MAX} in one request; add the rest afterwards"),
        )
        .check_result(
            request.kind.check_founding_members(others.len()),
            "member_ids",
            "membership_rule",
        )
        .finish()?;
    Ok(others)
}

fn check_texts(kind: ChatKind, name: Option<&str>, description: Option<&str>) -> Validation {
    Validation::default()
        .check(
            name.is_none_or(|name| is_name(name, NAME_CHARS_MAX)),
            "name",
            "invalid",
            format_args!("1 to {NAME_CHARS_MAX} visible characters, no spaces around"),
        )
        .check(
            name.is_some() || !kind.needs_name(),
            "name",
            "required",
            "a channel has a name",
        )
        .check(
            name.is_none() || kind != ChatKind::Single,
            "name",
            "not_allowed",
            "a single chat has no name",
        )
        .check(
            description.is_none_or(|text| {
                text.chars().count() <= DESCRIPTION_CHARS_MAX && !has_control_characters(text, &['\n', '\t'])
            }),
            "description",
            "invalid",
            format_args!("at most {DESCRIPTION_CHARS_MAX} characters, no control characters"),
        )
}
