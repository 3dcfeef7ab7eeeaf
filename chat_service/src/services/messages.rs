//! Sending, listing, editing and deleting messages; read cursors.

use fechatter_core::events::{EventType, MessageEvent, ReadEvent, shard_of};
use fechatter_core::message::{check_content, is_idempotency_key};
use fechatter_core::wire::{ChatView, MessageView, Page};
use fechatter_core::{ChatId, MessageId};
use observability::propagation;
use sha2::{Digest, Sha256};
use tracing::Span;

use super::group_commit::{GroupCommit, Outcome, Turn};
use super::validation::Validation;
use super::{Actor, access, page};
use crate::error::Error;
use crate::repositories::chats::ChatRow;
use crate::repositories::messages::{EditRow, MessageRow, NewMessage};
use crate::repositories::{Repositories, Store};

/// Message use cases.
#[derive(Debug, Clone)]
pub struct MessageService {
    store: Store,
    group_commit: GroupCommit,
}

/// A message, and whether this request made it.
#[derive(Debug)]
pub struct Sent {
    pub message: MessageView,
    pub is_new: bool,
}

/// One page of messages.
#[derive(Debug)]
pub struct MessagePage {
    pub items: Vec<MessageView>,
    pub has_more: bool,
}

impl MessageService {
    /// On `store`, where messages that come while others are under way are stored together.
    pub fn new(store: Store) -> Self {
        Self {
            group_commit: GroupCommit::new(store.clone()),
            store,
        }
    }

    /// Sends a message. The same key by the same sender in the same chat gives the first message again, for ever.
    pub async fn send(&self, actor: Actor, chat: ChatId, content: &str, key: Option<&str>) -> Result<Sent, Error> {
        Validation::default()
            .check_result(check_content(content), "content", "invalid")
            .check(
                key.is_none_or(is_idempotency_key),
                "idempotency_key",
                "invalid",
                "1 to 255 printable ASCII characters",
            )
            .finish()?;
        let digest: [u8; 32] = Sha256::digest(content.as_bytes()).into();
        let traceparent = propagation::current_traceparent();
        let new = NewMessage {
            workspace_id: actor.workspace,
            chat_id: chat,
            sender_id: actor.user,
            content,
            idempotency: key.map(|key| (key, &digest[..])),
            traceparent: traceparent.as_deref(),
        };
        match self.group_commit.join(&new).await? {
            // In a box: the state of its statements is kilobytes, which each layer around a handler would move for every message.
            Outcome::Turn(turn) => Box::pin(self.send_alone(actor, &new, turn)).await,
            Outcome::Stored { row, statement } => {
                if let Some(context) = statement.as_deref().and_then(propagation::context_from_traceparent) {
                    propagation::add_link(&Span::current(), &context);
                }
                Ok(Sent {
                    message: row.view,
                    is_new: true,
                })
            }
        }
    }

    /// Sends by a statement of its own, which also tells why a message cannot be sent.
    async fn send_alone(&self, actor: Actor, new: &NewMessage<'_>, mut turn: Turn) -> Result<Sent, Error> {
        let chat = new.chat_id;
        let kept = turn.connection();
        let statement = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.store.connection().await?,
            };
            let result = connection.messages().insert(new).await;
            Ok::<_, Error>((connection, result))
        };
        let (mut connection, result) = turn.run(statement).await?;
        match result {
            Ok(Some(row)) => {
                turn.leave(connection);
                self.group_commit.stored_alone(new);
                self.store.wake(shard_of(chat.0));
                Ok(Sent {
                    message: row.view,
                    is_new: true,
                })
            }
            Ok(None) => {
                self.group_commit.refused(new);
                drop(turn);
                access::member(&mut connection, actor, chat).await?;
                Err(Error::Conflict("Your membership changed at this moment; try again."))
            }
            Err(error) if error.violates("messages_idempotency") => {
                let (key, digest) = new.idempotency.unwrap_or_default();
                let (row, first_digest) = connection
                    .messages()
                    .find_by_key(chat, actor.user, key)
                    .await?
                    .ok_or_else(|| Error::Inconsistent("an idempotency key without its message".to_owned()))?;
                if first_digest != digest {
                    return Err(Error::IdempotencyMismatch);
                }
                Ok(Sent {
                    message: row.view,
                    is_new: false,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Lists by cursor: `before` newest first, `after` oldest first, neither: the newest.
    pub async fn list(
        &self,
        actor: Actor,
        chat: ChatId,
        before: Option<i64>,
        after: Option<i64>,
        limit: Option<i64>,
    ) -> Result<MessagePage, Error> {
        let limit = page::limit(limit)?;
        Validation::default()
            .check(
                before.is_none_or(|seq| seq >= 1),
                "before",
                "out_of_range",
                "a seq is at least 1",
            )
            .check(
                after.is_none_or(|seq| seq >= 0),
                "after",
                "out_of_range",
                "a seq is at least 0",
            )
            .check(
                before.is_none() || after.is_none(),
                "after",
                "conflict",
                "either `before` or `after`",
            )
            .finish()?;
        let mut connection = self.store.connection().await?;
        access::member(&mut connection, actor, chat).await?;
        let mut rows = match after {
            Some(after) => connection.messages().list_after(chat, after, limit + 1).await?,
            None => {
                connection
                    .messages()
                    .list_before(chat, before.unwrap_or(i64::MAX), limit + 1)
                    .await?
            }
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        Ok(MessagePage {
            items: rows.into_iter().map(|row| row.view).collect(),
            has_more,
        })
    }

    /// Edits; the sender may.
    pub async fn edit(
        &self,
        actor: Actor,
        chat: ChatId,
        message: MessageId,
        content: &str,
    ) -> Result<MessageView, Error> {
        Validation::default()
            .check_result(check_content(content), "content", "invalid")
            .finish()?;
        let mut unit = self.store.begin().await?;
        let chat_row = access::locked_member(&mut unit, actor, chat).await?;
        let row = unit
            .messages()
            .find(chat, message)
            .await?
            .ok_or(Error::NotFound("message"))?;
        if row.view.sender_id != actor.user {
            return Err(Error::Forbidden("Only its sender edits a message."));
        }
        if row.view.deleted_at.is_some() {
            return Err(Error::Conflict("The message was deleted."));
        }
        if row.view.content.as_deref() == Some(content) {
            return Ok(row.view);
        }
        let row = unit.messages().edit(message, content).await?;
        unit.append(
            EventType::MessageUpdated,
            actor.workspace,
            chat.0,
            &message_event(&chat_row, &row),
        )
        .await?;
        unit.commit().await?;
        Ok(row.view)
    }

    /// Leaves a tombstone; the sender and the chat's owner may. Deleting again changes nothing.
    pub async fn delete(&self, actor: Actor, chat: ChatId, message: MessageId) -> Result<(), Error> {
        let mut unit = self.store.begin().await?;
        let chat_row = access::locked_member(&mut unit, actor, chat).await?;
        let row = unit
            .messages()
            .find(chat, message)
            .await?
            .ok_or(Error::NotFound("message"))?;
        if row.view.sender_id != actor.user && chat_row.shared.owner_id != actor.user {
            return Err(Error::Forbidden(
                "Only its sender and the owner of the chat delete a message.",
            ));
        }
        if row.view.deleted_at.is_some() {
            return Ok(());
        }
        let row = unit.messages().delete(message).await?;
        unit.append(
            EventType::MessageDeleted,
            actor.workspace,
            chat.0,
            &message_event(&chat_row, &row),
        )
        .await?;
        unit.commit().await?;
        Ok(())
    }

    /// Earlier contents and the present one, oldest first. A deleted message has none to show.
    pub async fn history(
        &self,
        actor: Actor,
        chat: ChatId,
        message: MessageId,
        cursor: Option<&str>,
        limit: Option<i64>,
    ) -> Result<Page<EditRow>, Error> {
        let (after, limit) = (page::cursor(cursor, 0)?, page::limit(limit)?);
        let mut connection = self.store.connection().await?;
        access::member(&mut connection, actor, chat).await?;
        let row = connection
            .messages()
            .find(chat, message)
            .await?
            .ok_or(Error::NotFound("message"))?;
        let Some(content) = row.view.content else {
            return Err(Error::NotFound("message"));
        };
        let mut versions = connection.messages().history(message, after, limit + 1).await?;
        if row.version > after {
            versions.push(EditRow {
                version: row.version,
                content,
                written_at: row.view.edited_at.unwrap_or(row.view.created_at),
            });
        }
        Ok(page::page(versions, limit, |version| version.version))
    }

    /// Moves the actor's read cursor forward; a smaller `seq` leaves it where it is.
    pub async fn read(&self, actor: Actor, chat: ChatId, seq: i64) -> Result<ChatView, Error> {
        let mut unit = self.store.begin().await?;
        let mut row = access::member(&mut unit, actor, chat).await?;
        if !(0..=row.shared.last_seq).contains(&seq) {
            return Err(Error::field(
                "seq",
                "out_of_range",
                format!("0 to the chat's last_seq, {}", row.shared.last_seq),
            ));
        }
        if let Some(last_read_seq) = unit.members().advance_read(chat, actor.user, seq).await? {
            row.last_read_seq = Some(last_read_seq);
            let event = ReadEvent {
                chat_id: chat,
                kind: row.shared.kind,
                user_id: actor.user,
                last_read_seq,
            };
            unit.append(EventType::ReadUpdated, actor.workspace, chat.0, &event)
                .await?;
            unit.commit().await?;
        }
        Ok(row.into_view())
    }
}

fn message_event(chat: &ChatRow, message: &MessageRow) -> MessageEvent {
    MessageEvent {
        message: message.view.clone(),
        version: message.version,
        chat: chat.reference(),
    }
}
