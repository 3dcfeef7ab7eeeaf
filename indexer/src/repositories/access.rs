//! Who may search what, as it is now.

use fechatter_core::chat::ChatKind;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use sqlx::PgConnection;

/// A chat that the searcher is a member of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberChat {
    pub id: ChatId,
    pub kind: ChatKind,
    /// Only when names were asked for, and the chat has one.
    pub name: Option<String>,
    /// A conversation of few, or one the searcher owns: its hits rank a little higher.
    pub is_own: bool,
}

/// Which of the searcher's chats a query is about.
#[derive(Debug, Clone, Default)]
pub struct ChatFilter {
    pub id: Option<ChatId>,
    pub kind: Option<ChatKind>,
    /// Whether to read the names too: a search seldom needs those of thousands of chats.
    pub with_names: bool,
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
    let mut chats = Vec::new();
    // Thousands of ids in a few arrays cost a fraction of thousands of rows. Names differ, and so cannot be gathered.
    let groups = sqlx::query!(
        r#"SELECT c.kind::text AS "kind!",
                  (c.owner_id = $1 OR c.kind IN ('single', 'group')) AS "is_own!",
                  CASE WHEN $5 THEN c.name END AS "name?",
                  array_agg(c.id) AS "ids!"
           FROM chat_members AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.user_id = $1
             AND c.workspace_id = $2
             AND c.deleted_at IS NULL
             AND ($3::bigint IS NULL OR c.id = $3)
             AND ($4::text IS NULL OR c.kind::text = $4)
           GROUP BY 1, 2, 3"#,
        user.0,
        workspace.0,
        filter.id.map(|id| id.0),
        filter.kind.map(ChatKind::as_str),
        filter.with_names,
    )
    .fetch_all(connection)
    .await?;
    for group in groups {
        let kind = kind(&group.kind)?;
        chats.extend(group.ids.into_iter().map(|id| MemberChat {
            id: id.into(),
            kind,
            name: group.name.clone(),
            is_own: group.is_own,
        }));
    }
    chats.sort_unstable_by_key(|chat| chat.id);
    Ok(chats)
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

/// Everybody of the workspace with their full names, by id. Names are compared by our own folding, which SQL lacks.
pub async fn fullnames(
    connection: &mut PgConnection,
    workspace: WorkspaceId,
) -> Result<Vec<(UserId, String)>, sqlx::Error> {
    let people = sqlx::query!(
        "SELECT id, fullname FROM users WHERE workspace_id = $1 ORDER BY id",
        workspace.0
    )
    .fetch_all(connection)
    .await?;
    Ok(people
        .into_iter()
        .map(|person| (UserId(person.id), person.fullname))
        .collect())
}
