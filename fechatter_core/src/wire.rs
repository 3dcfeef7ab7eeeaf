//! JSON shapes that more than one process reads or writes. Times are RFC 3339 UTC, ids integers below 2^53.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::chat::ChatKind;
use crate::ids::{ChatId, MessageId, UserId, WorkspaceId};
use crate::user::Role;

/// A user as the members of their workspace see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = User)]
pub struct UserView {
    pub id: UserId,
    pub workspace_id: WorkspaceId,
    #[schema(example = "Ada Lovelace")]
    pub fullname: String,
    #[schema(example = "ada@example.org")]
    pub email: String,
    pub role: Role,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A message. A deleted one keeps its `seq` and has `content: null` and `deleted_at`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Message)]
pub struct MessageView {
    pub id: MessageId,
    pub chat_id: ChatId,
    /// Gapless position within the chat: 1, 2, 3 … in commit order.
    #[schema(minimum = 1, example = 7)]
    pub seq: i64,
    pub sender_id: UserId,
    #[schema(required, example = "Shall we ship on Friday?")]
    pub content: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required)]
    pub edited_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required)]
    pub deleted_at: Option<OffsetDateTime>,
}

/// What a message event or a search hit says of its chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ChatRef {
    pub id: ChatId,
    /// `null` for single chats.
    #[schema(required)]
    pub name: Option<String>,
    pub kind: ChatKind,
}

/// A chat without what differs from member to member; what chat events carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SharedChat {
    pub id: ChatId,
    pub workspace_id: WorkspaceId,
    pub kind: ChatKind,
    #[schema(required)]
    pub name: Option<String>,
    #[schema(required)]
    pub description: Option<String>,
    pub owner_id: UserId,
    #[schema(minimum = 0, example = 3)]
    pub member_count: i64,
    /// `seq` of the newest message; 0 before the first, and for a public channel the caller is not in.
    #[schema(minimum = 0, example = 7)]
    pub last_seq: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// A chat as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Chat)]
pub struct ChatView {
    #[serde(flatten)]
    pub shared: SharedChat,
    /// The caller's read cursor. It begins at the chat's `last_seq` when one joins, moves to each message one sends and where
    /// `PUT …/read` puts it; 0 for a public channel the caller is not in.
    #[schema(minimum = 0, example = 5)]
    pub last_read_seq: i64,
    /// `last_seq − last_read_seq`, never counted apart.
    #[schema(minimum = 0, example = 2)]
    pub unread_count: i64,
}

/// A member's role in one chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    Owner,
    Member,
}

/// A member of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Member)]
pub struct MemberView {
    pub user_id: UserId,
    pub fullname: String,
    pub role: MemberRole,
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
    #[schema(minimum = 0, example = 5)]
    pub last_read_seq: i64,
}

/// One page of a list; `next` is an opaque cursor for the following page, `null` on the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[schema(required)]
    pub next: Option<String>,
}
