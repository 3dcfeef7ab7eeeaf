//! Who may search what, as it is now.

use fechatter_core::chat::ChatKind;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use sqlx::PgConnection;

/// A chat that the searcher is a member of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberChat {
    pub id: ChatId,
    pub kind: ChatKind,
    /// Absent when the chat has none, or all chats are asked for without names.
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
///
/// One statement for each way to ask: PostgreSQL plans a prepared one once for all values, and one that answers each
/// way is three times slower for thousands of chats and two hundred times for one.
pub async fn member_chats(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
    filter: &ChatFilter,
) -> Result<Vec<MemberChat>, sqlx::Error> {
    let mut chats = match filter.id {
        Some(chat) => member_chat(connection, user, workspace, chat).await?,
        None if filter.with_names => named_chats(connection, user, workspace).await?,
        None => unnamed_chats(connection, user, workspace).await?,
    };
    chats.retain(|chat| filter.kind.is_none_or(|kind| kind == chat.kind));
    chats.sort_unstable_by_key(|chat| chat.id);
    Ok(chats)
}

/// All of them without their names: thousands of ids in a few arrays cost a fraction of thousands of rows.
async fn unnamed_chats(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
) -> Result<Vec<MemberChat>, sqlx::Error> {
    let groups = sqlx::query!(
        r#"SELECT c.kind::text AS "kind!",
                  (c.owner_id = $1 OR c.kind IN ('single', 'group')) AS "is_own!",
                  array_agg(c.id) AS "ids!"
           FROM chat_members AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.user_id = $1
             AND c.workspace_id = $2
             AND c.deleted_at IS NULL
           GROUP BY c.kind, 2"#,
        user.0,
        workspace.0,
    )
    .fetch_all(connection)
    .await?;
    let mut chats = Vec::new();
    for group in groups {
        let kind = kind(&group.kind)?;
        chats.extend(group.ids.into_iter().map(|id| MemberChat {
            id: id.into(),
            kind,
            name: None,
            is_own: group.is_own,
        }));
    }
    Ok(chats)
}

/// A chat as PostgreSQL gives it.
struct MemberRow {
    id: i64,
    name: Option<String>,
    kind: String,
    is_own: bool,
}

impl TryFrom<MemberRow> for MemberChat {
    type Error = sqlx::Error;

    fn try_from(row: MemberRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.id.into(),
            kind: kind(&row.kind)?,
            name: row.name,
            is_own: row.is_own,
        })
    }
}

async fn named_chats(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
) -> Result<Vec<MemberChat>, sqlx::Error> {
    sqlx::query_as!(
        MemberRow,
        r#"SELECT c.id, c.name, c.kind::text AS "kind!",
                  (c.owner_id = $1 OR c.kind IN ('single', 'group')) AS "is_own!"
           FROM chat_members AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.user_id = $1
             AND c.workspace_id = $2
             AND c.deleted_at IS NULL"#,
        user.0,
        workspace.0,
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(MemberChat::try_from)
    .collect()
}

async fn member_chat(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
    chat: ChatId,
) -> Result<Vec<MemberChat>, sqlx::Error> {
    sqlx::query_as!(
        MemberRow,
        r#"SELECT c.id, c.name, c.kind::text AS "kind!",
                  (c.owner_id = $1 OR c.kind IN ('single', 'group')) AS "is_own!"
           FROM chat_members AS m JOIN chats AS c ON c.id = m.chat_id
           WHERE m.user_id = $1
             AND m.chat_id = $3
             AND c.workspace_id = $2
             AND c.deleted_at IS NULL"#,
        user.0,
        workspace.0,
        chat.0,
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(MemberChat::try_from)
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
