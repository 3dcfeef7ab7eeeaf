//! Members of chats and their read cursors.

use fechatter_core::wire::{MemberRole, MemberView};
use fechatter_core::{ChatId, UserId, WorkspaceId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::Error;

pub struct Members<'c>(pub(super) &'c mut PgConnection);

struct Row {
    user_id: i64,
    fullname: String,
    is_owner: bool,
    joined_at: OffsetDateTime,
    last_read_seq: i64,
}

impl From<Row> for MemberView {
    fn from(row: Row) -> Self {
        Self {
            user_id: row.user_id.into(),
            fullname: row.fullname,
            role: if row.is_owner {
                MemberRole::Owner
            } else {
                MemberRole::Member
            },
            joined_at: row.joined_at,
            last_read_seq: row.last_read_seq,
        }
    }
}

impl Members<'_> {
    /// Members by user id, after `after`.
    pub async fn list(&mut self, chat: ChatId, after: i64, limit: i64) -> Result<Vec<MemberView>, Error> {
        Ok(sqlx::query_as!(
            Row,
            r#"
            SELECT m.user_id, u.fullname, c.owner_id = m.user_id AS "is_owner!", m.joined_at, m.last_read_seq
            FROM chat_members AS m JOIN users AS u ON u.id = m.user_id JOIN chats AS c ON c.id = m.chat_id
            WHERE m.chat_id = $1 AND m.user_id > $2 ORDER BY m.user_id LIMIT $3
            "#,
            chat.0,
            after,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?
        .into_iter()
        .map(MemberView::from)
        .collect())
    }

    /// Those of `ids` that are members.
    pub async fn among(&mut self, chat: ChatId, ids: &[i64]) -> Result<Vec<MemberView>, Error> {
        Ok(sqlx::query_as!(
            Row,
            r#"
            SELECT m.user_id, u.fullname, c.owner_id = m.user_id AS "is_owner!", m.joined_at, m.last_read_seq
            FROM chat_members AS m JOIN users AS u ON u.id = m.user_id JOIN chats AS c ON c.id = m.chat_id
            WHERE m.chat_id = $1 AND m.user_id = ANY($2) ORDER BY m.user_id
            "#,
            chat.0,
            ids
        )
        .fetch_all(&mut *self.0)
        .await?
        .into_iter()
        .map(MemberView::from)
        .collect())
    }

    /// Holds these memberships until the transaction ends, so that whoever is sending finishes first, and says whose there
    /// are. Call before locking the chat; one that is not there yet is not held, and must not be taken after it.
    pub async fn lock_for_removal(&mut self, chat: ChatId, ids: &[i64]) -> Result<Vec<i64>, Error> {
        Ok(sqlx::query_scalar!(
            "SELECT user_id FROM chat_members WHERE chat_id = $1 AND user_id = ANY($2) ORDER BY user_id FOR UPDATE",
            chat.0,
            ids
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    /// Holds one membership against removal until the transaction ends. Call before locking the chat.
    pub async fn hold(&mut self, chat: ChatId, user: UserId) -> Result<(), Error> {
        sqlx::query!(
            "SELECT user_id FROM chat_members WHERE chat_id = $1 AND user_id = $2 FOR KEY SHARE",
            chat.0,
            user.0
        )
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Adds members who are not yet, with what was said before counted as read; the chat is locked by the caller. Returns who is new.
    pub async fn insert(&mut self, workspace: WorkspaceId, chat: ChatId, ids: &[i64]) -> Result<Vec<i64>, Error> {
        let added = sqlx::query_scalar!(
            "INSERT INTO chat_members (chat_id, user_id, workspace_id, last_read_seq)
             SELECT c.id, u, $2, c.last_seq FROM unnest($3::bigint[]) AS u, chats AS c WHERE c.id = $1 ORDER BY u
             ON CONFLICT DO NOTHING RETURNING user_id",
            chat.0,
            workspace.0,
            ids
        )
        .fetch_all(&mut *self.0)
        .await?;
        self.count_change(chat, added.len(), true).await?;
        Ok(added)
    }

    /// Removes members; the chat is locked by the caller.
    pub async fn delete(&mut self, chat: ChatId, ids: &[i64]) -> Result<(), Error> {
        let removed = sqlx::query!(
            "DELETE FROM chat_members WHERE chat_id = $1 AND user_id = ANY($2)",
            chat.0,
            ids
        )
        .execute(&mut *self.0)
        .await?
        .rows_affected();
        self.count_change(chat, usize::try_from(removed).unwrap_or(usize::MAX), false)
            .await
    }

    async fn count_change(&mut self, chat: ChatId, people: usize, added: bool) -> Result<(), Error> {
        let people = i64::try_from(people).unwrap_or(i64::MAX);
        if people == 0 {
            return Ok(());
        }
        sqlx::query!(
            "UPDATE chats SET member_count = member_count + $2, membership_version = membership_version + 1,
                    updated_at = now() WHERE id = $1",
            chat.0,
            if added { people } else { -people }
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// The member of longest standing but `except`, to inherit the chat, held against removal; who is deactivated comes
    /// last. `None` when everybody else is just leaving: waiting for them could be waiting in a circle.
    pub async fn longest_standing(&mut self, chat: ChatId, except: UserId) -> Result<Option<UserId>, Error> {
        let id = sqlx::query_scalar!(
            "SELECT m.user_id FROM chat_members AS m JOIN users AS u ON u.id = m.user_id
             WHERE m.chat_id = $1 AND m.user_id <> $2
             ORDER BY u.deactivated_at IS NOT NULL, m.joined_at, m.user_id LIMIT 1 FOR KEY SHARE OF m SKIP LOCKED",
            chat.0,
            except.0
        )
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(id.map(UserId))
    }

    /// Moves the read cursor forward, never back; `None` when it stood there already.
    pub async fn advance_read(&mut self, chat: ChatId, user: UserId, seq: i64) -> Result<Option<i64>, Error> {
        Ok(sqlx::query_scalar!(
            "UPDATE chat_members SET last_read_seq = $3 WHERE chat_id = $1 AND user_id = $2 AND last_read_seq < $3
             RETURNING last_read_seq",
            chat.0,
            user.0,
            seq
        )
        .fetch_optional(&mut *self.0)
        .await?)
    }
}
