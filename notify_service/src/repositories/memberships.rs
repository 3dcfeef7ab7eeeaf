//! Who is in which chat.

use fechatter_core::{ChatId, UserId, WorkspaceId};
use sqlx::PgPool;

/// A chat that a user is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    pub user: UserId,
    pub chat: ChatId,
    /// Counts the membership changes of the chat.
    pub version: i64,
    /// The chat was deleted not long ago: its deletion may still have to be told.
    pub deleted: bool,
}

/// Whether the account exists in the workspace and is active.
pub async fn is_active(pool: &PgPool, workspace: WorkspaceId, user: UserId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM users WHERE id = $1 AND workspace_id = $2 AND deactivated_at IS NULL
           ) AS "active!""#,
        user.0,
        workspace.0
    )
    .fetch_one(pool)
    .await
}

/// The chats of each of these users; deleted ones for as long as the stream may hold their deletion.
pub async fn of_users(pool: &PgPool, users: &[UserId]) -> Result<Vec<Membership>, sqlx::Error> {
    let ids: Vec<i64> = users.iter().map(|user| user.0).collect();
    sqlx::query!(
        r#"SELECT m.user_id, c.id AS chat_id, c.membership_version, c.deleted_at IS NOT NULL AS "deleted!"
           FROM chat_members m JOIN chats c ON c.id = m.chat_id
           WHERE m.user_id = ANY($1) AND (c.deleted_at IS NULL OR c.deleted_at > now() - interval '7 days')"#,
        &ids
    )
    .map(|row| Membership {
        user: UserId(row.user_id),
        chat: ChatId(row.chat_id),
        version: row.membership_version,
        deleted: row.deleted,
    })
    .fetch_all(pool)
    .await
}

/// Which of these users are in the chat now.
pub async fn among(pool: &PgPool, chat: ChatId, users: &[UserId]) -> Result<Vec<UserId>, sqlx::Error> {
    let ids: Vec<i64> = users.iter().map(|user| user.0).collect();
    sqlx::query_scalar!(
        "SELECT m.user_id FROM chat_members m JOIN chats c ON c.id = m.chat_id
         WHERE m.chat_id = $1 AND m.user_id = ANY($2) AND c.deleted_at IS NULL",
        chat.0,
        &ids
    )
    .fetch_all(pool)
    .await
    .map(|ids| ids.into_iter().map(UserId).collect())
}
