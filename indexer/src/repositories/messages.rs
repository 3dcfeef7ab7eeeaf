//! Messages as they are now.

use std::collections::HashSet;

use fechatter_core::wire::{ChatRef, MessageView};
use fechatter_core::{MessageId, UserId, WorkspaceId};
use sqlx::{PgConnection, PgPool};

use super::access::kind;
use crate::engine::{Change, MessageDocument};

/// The given messages with their chats, without those that are deleted or that the user may not see.
pub async fn visible(
    connection: &mut PgConnection,
    ids: &[i64],
    user: UserId,
    workspace: WorkspaceId,
) -> Result<Vec<(MessageView, ChatRef)>, sqlx::Error> {
    sqlx::query!(
        r#"SELECT m.id, m.chat_id, m.seq, m.sender_id, m.content AS "content!", m.created_at, m.edited_at,
                  c.name, c.kind::text AS "kind!"
           FROM messages AS m
           JOIN chats AS c ON c.id = m.chat_id
           JOIN chat_members AS member ON member.chat_id = m.chat_id AND member.user_id = $2
           WHERE m.id = ANY ($1)
             AND m.workspace_id = $3
             AND m.deleted_at IS NULL
             AND c.deleted_at IS NULL"#,
        ids,
        user.0,
        workspace.0
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| {
        let message = MessageView {
            id: row.id.into(),
            chat_id: row.chat_id.into(),
            seq: row.seq,
            sender_id: row.sender_id.into(),
            content: Some(row.content),
            created_at: row.created_at,
            edited_at: row.edited_at,
            deleted_at: None,
        };
        let chat = ChatRef {
            id: row.chat_id.into(),
            name: row.name,
            kind: kind(&row.kind)?,
        };
        Ok((message, chat))
    })
    .collect()
}

/// Number of messages that a rebuild will look at after `after`.
pub async fn count_after(pool: &PgPool, after: MessageId) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM messages WHERE id > $1"#, after.0)
        .fetch_one(pool)
        .await
}

/// A part of the walk over all messages.
#[derive(Debug, Clone)]
pub struct Chunk {
    pub changes: Vec<Change>,
    /// Messages looked at.
    pub rows: i64,
    /// The last of them.
    pub last: MessageId,
}

/// The next messages by id as changes; nothing when there are no more. Deleted messages come as deletions, those of a
/// deleted chat as its deletion.
pub async fn changes_after(pool: &PgPool, after: MessageId, limit: i64) -> Result<Option<Chunk>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT m.id, m.workspace_id, m.chat_id, m.sender_id, m.content, m.version, m.created_at,
                  (c.deleted_at IS NOT NULL) AS "chat_deleted!"
           FROM messages AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.id > $1
           ORDER BY m.id LIMIT $2"#,
        after.0,
        limit
    )
    .fetch_all(pool)
    .await?;
    let Some(last) = rows.last().map(|row| row.id) else {
        return Ok(None);
    };
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let mut deleted_chats = HashSet::new();
    let changes = rows
        .into_iter()
        .filter_map(|row| match row.content {
            _ if row.chat_deleted => deleted_chats
                .insert(row.chat_id)
                .then(|| Change::DeleteChat(row.chat_id.into())),
            Some(content) => Some(Change::Upsert(MessageDocument {
                id: row.id.into(),
                workspace_id: row.workspace_id.into(),
                chat_id: row.chat_id.into(),
                sender_id: row.sender_id.into(),
                content,
                created_at: row.created_at,
                version: row.version,
            })),
            None => Some(Change::Delete {
                id: row.id.into(),
                version: row.version,
            }),
        })
        .collect();
    Ok(Some(Chunk {
        changes,
        rows: count,
        last: last.into(),
    }))
}

/// What the index should hold of one message now; nothing when there is no such message. One of a deleted chat is a deletion.
pub async fn change_of(pool: &PgPool, id: MessageId) -> Result<Option<Change>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT m.workspace_id, m.chat_id, m.sender_id, m.version, m.created_at,
                  CASE WHEN c.deleted_at IS NULL THEN m.content END AS content
           FROM messages AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.id = $1"#,
        id.0
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| match row.content {
        Some(content) => Change::Upsert(MessageDocument {
            id,
            workspace_id: row.workspace_id.into(),
            chat_id: row.chat_id.into(),
            sender_id: row.sender_id.into(),
            content,
            created_at: row.created_at,
            version: row.version,
        }),
        None => Change::Delete {
            id,
            version: row.version,
        },
    }))
}

/// A message as far as the index is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageState {
    pub id: MessageId,
    pub version: i64,
    /// Neither it nor its chat is deleted.
    pub is_findable: bool,
}

/// The states of the messages after `after` up to `until`, by id.
pub async fn states_between(
    pool: &PgPool,
    after: MessageId,
    until: MessageId,
    limit: i64,
) -> Result<Vec<MessageState>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT m.id, m.version, (m.deleted_at IS NULL AND c.deleted_at IS NULL) AS "is_findable!"
           FROM messages AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.id > $1 AND m.id <= $2
           ORDER BY m.id LIMIT $3"#,
        after.0,
        until.0,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| MessageState {
            id: row.id.into(),
            version: row.version,
            is_findable: row.is_findable,
        })
        .collect())
}
