//! Chats. Row locks are always taken in the order member, chat, message, outbox shard.

use fechatter_core::chat::ChatKind;
use fechatter_core::wire::{ChatRef, ChatView, SharedChat};
use fechatter_core::{ChatId, UserId, WorkspaceId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::known;
use super::members::Members;
use crate::error::Error;

pub struct Chats<'c>(pub(super) &'c mut PgConnection);

/// A chat, and the asking user's membership of it.
#[derive(Debug, Clone)]
pub struct ChatRow {
    pub shared: SharedChat,
    pub membership_version: i64,
    /// The asking user's read cursor; absent when not a member.
    pub last_read_seq: Option<i64>,
}

impl ChatRow {
    pub fn is_member(&self) -> bool {
        self.last_read_seq.is_some()
    }

    /// What events say of the chat.
    pub fn reference(&self) -> ChatRef {
        ChatRef {
            id: self.shared.id,
            name: self.shared.name.clone(),
            kind: self.shared.kind,
        }
    }

    /// The chat as the asking user sees it.
    pub fn into_view(self) -> ChatView {
        let last_read_seq = self.last_read_seq.unwrap_or(0);
        ChatView {
            last_read_seq,
            unread_count: (self.shared.last_seq - last_read_seq).max(0),
            shared: self.shared,
        }
    }
}

/// What a new chat needs.
#[derive(Debug)]
pub struct NewChat<'a> {
    pub workspace_id: WorkspaceId,
    pub kind: ChatKind,
    pub name: Option<&'a str>,
    pub description: Option<&'a str>,
    pub owner_id: UserId,
    /// Everybody, the owner included, distinct.
    pub member_ids: &'a [i64],
    /// The two people of a single chat, the smaller id first.
    pub pair: Option<(i64, i64)>,
}

/// A chat and who owns it.
#[derive(Debug, Clone, Copy)]
pub struct OwnedChat {
    pub workspace: WorkspaceId,
    pub chat: ChatId,
    pub owner: UserId,
}

struct Row {
    id: i64,
    workspace_id: i64,
    kind: String,
    name: Option<String>,
    description: Option<String>,
    owner_id: i64,
    member_count: i64,
    membership_version: i64,
    last_seq: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    last_read_seq: Option<i64>,
}

impl TryFrom<Row> for ChatRow {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        Ok(Self {
            shared: SharedChat {
                id: row.id.into(),
                workspace_id: row.workspace_id.into(),
                kind: known(&row.kind)?,
                name: row.name,
                description: row.description,
                owner_id: row.owner_id.into(),
                member_count: row.member_count,
                last_seq: row.last_seq,
                created_at: row.created_at,
                updated_at: row.updated_at,
            },
            membership_version: row.membership_version,
            last_read_seq: row.last_read_seq,
        })
    }
}

impl Chats<'_> {
    /// Makes a chat and its members; `None` when the pair already has a single chat.
    pub async fn insert(&mut self, new: &NewChat<'_>) -> Result<Option<ChatRow>, Error> {
        let (pair_low, pair_high) = new.pair.unzip();
        let Some(row) = sqlx::query_as!(
            Row,
            r#"
            INSERT INTO chats (workspace_id, kind, name, description, owner_id, pair_low, pair_high,
                               member_count, membership_version)
            VALUES ($1, ($2::text)::chat_kind, $3, $4, $5, $6, $7, $8, 1)
            ON CONFLICT (pair_low, pair_high) WHERE deleted_at IS NULL DO NOTHING
            RETURNING id, workspace_id, kind::text AS "kind!", name, description, owner_id, member_count,
                      membership_version, last_seq, created_at, updated_at, 0::bigint AS last_read_seq
            "#,
            new.workspace_id.0,
            new.kind.as_str(),
            new.name,
            new.description,
            new.owner_id.0,
            pair_low,
            pair_high,
            i64::try_from(new.member_ids.len()).unwrap_or(i64::MAX)
        )
        .fetch_optional(&mut *self.0)
        .await?
        else {
            return Ok(None);
        };
        sqlx::query!(
            "INSERT INTO chat_members (chat_id, user_id, workspace_id) SELECT $1, u, $2 FROM unnest($3::bigint[]) AS u",
            row.id,
            new.workspace_id.0,
            new.member_ids
        )
        .execute(&mut *self.0)
        .await?;
        row.try_into().map(Some)
    }

    /// Finds a living chat of this workspace, whoever may see it.
    pub async fn find(&mut self, workspace: WorkspaceId, chat: ChatId, user: UserId) -> Result<Option<ChatRow>, Error> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT c.id, c.workspace_id, c.kind::text AS "kind!", c.name, c.description, c.owner_id, c.member_count,
                   c.membership_version, c.last_seq, c.created_at, c.updated_at, m.last_read_seq AS "last_read_seq?"
            FROM chats AS c LEFT JOIN chat_members AS m ON m.chat_id = c.id AND m.user_id = $3
            WHERE c.workspace_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
            "#,
            workspace.0,
            chat.0,
            user.0
        )
        .fetch_optional(&mut *self.0)
        .await?
        .map(TryInto::try_into)
        .transpose()
    }

    /// Like [`Self::find`], and holds the user's membership, then the chat, until the transaction ends: the member list,
    /// `last_seq` and the chat's end stand still meanwhile.
    pub async fn lock(&mut self, workspace: WorkspaceId, chat: ChatId, user: UserId) -> Result<Option<ChatRow>, Error> {
        Members(&mut *self.0).hold(chat, user).await?;
        sqlx::query!(
            "SELECT id FROM chats WHERE workspace_id = $1 AND id = $2 FOR NO KEY UPDATE",
            workspace.0,
            chat.0
        )
        .fetch_optional(&mut *self.0)
        .await?;
        self.find(workspace, chat, user).await
    }

    pub async fn find_single(&mut self, low: i64, high: i64, user: UserId) -> Result<Option<ChatRow>, Error> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT c.id, c.workspace_id, c.kind::text AS "kind!", c.name, c.description, c.owner_id, c.member_count,
                   c.membership_version, c.last_seq, c.created_at, c.updated_at, m.last_read_seq AS "last_read_seq?"
            FROM chats AS c LEFT JOIN chat_members AS m ON m.chat_id = c.id AND m.user_id = $3
            WHERE c.pair_low = $1 AND c.pair_high = $2 AND c.deleted_at IS NULL
            "#,
            low,
            high,
            user.0
        )
        .fetch_optional(&mut *self.0)
        .await?
        .map(TryInto::try_into)
        .transpose()
    }

    /// The user's chats by id, after `after`.
    pub async fn list(&mut self, user: UserId, after: i64, limit: i64) -> Result<Vec<ChatRow>, Error> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT c.id, c.workspace_id, c.kind::text AS "kind!", c.name, c.description, c.owner_id, c.member_count,
                   c.membership_version, c.last_seq, c.created_at, c.updated_at, m.last_read_seq AS "last_read_seq?"
            FROM chat_members AS m JOIN chats AS c ON c.id = m.chat_id
            WHERE m.user_id = $1 AND m.chat_id > $2 AND c.deleted_at IS NULL ORDER BY m.chat_id LIMIT $3
            "#,
            user.0,
            after,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?
        .into_iter()
        .map(TryInto::try_into)
        .collect()
    }

    /// Public channels of the workspace by id, after `after`.
    pub async fn list_public(
        &mut self,
        workspace: WorkspaceId,
        user: UserId,
        after: i64,
        limit: i64,
    ) -> Result<Vec<ChatRow>, Error> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT c.id, c.workspace_id, c.kind::text AS "kind!", c.name, c.description, c.owner_id, c.member_count,
                   c.membership_version, c.last_seq, c.created_at, c.updated_at, m.last_read_seq AS "last_read_seq?"
            FROM chats AS c LEFT JOIN chat_members AS m ON m.chat_id = c.id AND m.user_id = $2
            WHERE c.workspace_id = $1 AND c.kind = 'public_channel' AND c.deleted_at IS NULL AND c.id > $3
            ORDER BY c.id LIMIT $4
            "#,
            workspace.0,
            user.0,
            after,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?
        .into_iter()
        .map(TryInto::try_into)
        .collect()
    }

    /// Sets name and description; the chat is locked by the caller.
    pub async fn update(&mut self, chat: ChatId, name: Option<&str>, description: Option<&str>) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE chats SET name = $2, description = $3, updated_at = now() WHERE id = $1",
            chat.0,
            name,
            description
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub async fn set_owner(&mut self, chat: ChatId, owner: UserId) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE chats SET owner_id = $2, updated_at = now() WHERE id = $1",
            chat.0,
            owner.0
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Living chats by id, after `after`, whose owner (this one, or anybody) is deactivated and which have an active member.
    pub async fn of_deactivated_owners(
        &mut self,
        owner: Option<UserId>,
        after: i64,
        limit: i64,
    ) -> Result<Vec<OwnedChat>, Error> {
        let rows = sqlx::query!(
            "SELECT c.id, c.workspace_id, c.owner_id
             FROM users AS u JOIN chats AS c ON c.owner_id = u.id
             WHERE u.deactivated_at IS NOT NULL AND ($1::bigint IS NULL OR u.id = $1) AND c.deleted_at IS NULL AND c.id > $2
               AND EXISTS (SELECT FROM chat_members AS m JOIN users AS heir ON heir.id = m.user_id
                           WHERE m.chat_id = c.id AND heir.deactivated_at IS NULL)
             ORDER BY c.id LIMIT $3",
            owner.map(|owner| owner.0),
            after,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?;
        let chats = rows.into_iter().map(|row| OwnedChat {
            workspace: row.workspace_id.into(),
            chat: row.id.into(),
            owner: row.owner_id.into(),
        });
        Ok(chats.collect())
    }

    /// Ends a chat; its rows stay for audit.
    pub async fn delete(&mut self, chat: ChatId) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE chats SET deleted_at = now(), updated_at = now() WHERE id = $1",
            chat.0
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}
