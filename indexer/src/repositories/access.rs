//! Who may search what, as it is now.

use fechatter_core::chat::ChatKind;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use sqlx::PgConnection;

/// A chat that the searcher is a member of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberChat {
    pub id: ChatId,
    pub kind: ChatKind,
    /// A conversation of few, or one the searcher owns: its hits rank a little higher.
    pub is_own: bool,
}

/// Which of the searcher's chats a query is about.
#[derive(Debug, Clone, Default)]
pub struct ChatFilter {
    pub id: Option<ChatId>,
    pub kind: Option<ChatKind>,
    /// Names in lower case; any of them. Empty means any name.
    pub names: Vec<String>,
}

/// Reads a kind of ours; a kind that this build does not know cannot be searched in.
pub(super) fn kind(text: &str) -> Result<ChatKind, sqlx::Error> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Whether the user exists in the workspace and is not deactivated.
pub async fn is_active(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT 1 FROM users WHERE id = $1 AND workspace_id = $2 AND deactivated_at IS NULL
           ) AS "active!""#,
        user.0,
        workspace.0
    )
    .fetch_one(connection)
    .await
}

/// The chats of a user that pass the filter, by id.
pub async fn member_chats(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
    filter: &ChatFilter,
) -> Result<Vec<MemberChat>, sqlx::Error> {
    let names = (!filter.names.is_empty()).then_some(filter.names.as_slice());
    sqlx::query!(
        r#"SELECT c.id, c.kind::text AS "kind!",
                  (c.owner_id = $1 OR c.kind IN ('single', 'group')) AS "is_own!"
           FROM chat_members AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.user_id = $1
             AND c.workspace_id = $2
             AND c.deleted_at IS NULL
             AND ($3::bigint IS NULL OR c.id = $3)
             AND ($4::text IS NULL OR c.kind::text = $4)
             AND ($5::text[] IS NULL OR lower(c.name) = ANY ($5))
           ORDER BY c.id"#,
        user.0,
        workspace.0,
        filter.id.map(|id| id.0),
        filter.kind.map(ChatKind::as_str),
        names as Option<&[String]>,
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| {
        Ok(MemberChat {
            id: row.id.into(),
            kind: kind(&row.kind)?,
            is_own: row.is_own,
        })
    })
    .collect()
}

/// The kind of a chat of the workspace, whoever is in it; `None` when there is none.
pub async fn chat_kind(
    connection: &mut PgConnection,
    chat: ChatId,
    workspace: WorkspaceId,
) -> Result<Option<ChatKind>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT kind::text AS "kind!" FROM chats WHERE id = $1 AND workspace_id = $2 AND deleted_at IS NULL"#,
        chat.0,
        workspace.0
    )
    .fetch_optional(connection)
    .await?
    .map(|text| kind(&text))
    .transpose()
}

/// Most people that one `from:` may mean.
const NAMESAKES_MAX: i64 = 1_000;

/// Users of the workspace whose full name, or one word of it, is one of `names` (in lower case).
pub async fn users_named(
    connection: &mut PgConnection,
    workspace: WorkspaceId,
    names: &[String],
) -> Result<Vec<UserId>, sqlx::Error> {
    let ids = sqlx::query_scalar!(
        r#"SELECT id FROM users
           WHERE workspace_id = $1
             AND (lower(fullname) = ANY ($2) OR string_to_array(lower(fullname), ' ') && $2)
           ORDER BY id LIMIT $3"#,
        workspace.0,
        names,
        NAMESAKES_MAX
    )
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(UserId).collect())
}
