//! Who is in which chat.

use std::collections::HashMap;

use fechatter_core::chat::ChatKind;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use sqlx::PgPool;

use crate::membership::{Loaded, Verdict};

/// Days that a deleted chat's former members are still told of its end: longer than any cursor lives.
const ENDED_DAYS: i32 = 8;

/// The chats of several users, by user. Users who do not exist or are deactivated are not in it.
pub async fn of_users(pool: &PgPool, users: &[UserId]) -> Result<HashMap<UserId, Loaded>, sqlx::Error> {
    let ids: Vec<i64> = users.iter().map(|user| user.0).collect();
    let mut connection = pool.acquire().await?;
    let seats = sqlx::query!(
        r#"SELECT m.user_id, m.chat_id, c.membership_version, (c.deleted_at IS NOT NULL) AS "is_deleted!"
           FROM chat_members AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.user_id = ANY ($1)
             AND (c.deleted_at IS NULL OR c.deleted_at > now() - make_interval(days => $2))"#,
        &ids,
        ENDED_DAYS
    )
    .fetch_all(&mut *connection)
    .await?;
    // After the seats: a clock that is read later than what it is to vouch for.
    let active = sqlx::query!(
        r#"SELECT id, workspace_id, clock_timestamp() AS "at!" FROM users WHERE id = ANY ($1) AND deactivated_at IS NULL"#,
        &ids
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut loaded: HashMap<UserId, Loaded> = active
        .into_iter()
        .map(|row| {
            let chats = Loaded {
                workspace: row.workspace_id.into(),
                seats: Vec::new(),
                ended: Vec::new(),
                at: row.at,
            };
            (UserId(row.id), chats)
        })
        .collect();
    for row in seats {
        if let Some(user) = loaded.get_mut(&UserId(row.user_id)) {
            if row.is_deleted {
                user.ended.push(row.chat_id.into());
            } else {
                user.seats.push((row.chat_id.into(), row.membership_version));
            }
        }
    }
    Ok(loaded)
}

/// Who of `users` is in the chat now, and as of which version.
pub async fn of_chat(pool: &PgPool, chat: ChatId, users: &[UserId]) -> Result<Verdict, sqlx::Error> {
    let ids: Vec<i64> = users.iter().map(|user| user.0).collect();
    let row = sqlx::query!(
        r#"SELECT c.membership_version,
                  ARRAY(SELECT m.user_id FROM chat_members AS m WHERE m.chat_id = c.id AND m.user_id = ANY ($2))
                      AS "members!"
           FROM chats AS c WHERE c.id = $1 AND c.deleted_at IS NULL"#,
        chat.0,
        &ids
    )
    .fetch_optional(pool)
    .await?;
    let (version, members) = row.map_or_else(Default::default, |row| (row.membership_version, row.members));
    Ok(Verdict {
        asked: users.iter().copied().collect(),
        version,
        members: members.into_iter().map(UserId).collect(),
    })
}

/// What a user may know of a chat of their workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub is_member: bool,
    pub is_public: bool,
}

/// How a user stands to a chat; `None` when there is no such chat in the workspace.
pub async fn standing(
    pool: &PgPool,
    user: UserId,
    workspace: WorkspaceId,
    chat: ChatId,
) -> Result<Option<Standing>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT c.kind::text AS "kind!",
                  EXISTS (SELECT 1 FROM chat_members AS m WHERE m.chat_id = c.id AND m.user_id = $1) AS "is_member!"
           FROM chats AS c WHERE c.id = $2 AND c.workspace_id = $3 AND c.deleted_at IS NULL"#,
        user.0,
        chat.0,
        workspace.0
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| Standing {
        is_member: row.is_member,
        is_public: row.kind == ChatKind::PublicChannel.as_str(),
    }))
}
