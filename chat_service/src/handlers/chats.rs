//! `/api/chat`, `/api/chat/{id}` and `/api/channels`.

use axum::extract::State;
use fechatter_core::chat::ChatKind;
use fechatter_core::schema;
use fechatter_core::wire::{ChatView, Page};
use fechatter_core::{ChatId, UserId};
use http::StatusCode;
use serde::{Deserialize, Deserializer};
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::{Json, Path, Query};
use utoipa::ToSchema;

use super::ListQuery;
use crate::services::chats::{ChatService, CreateChat, UpdateChat};

/// A new chat.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateChatRequest {
    kind: ChatKind,
    /// Channels have one, groups may, single chats do not.
    #[serde(default)]
    #[schema(schema_with = schema::chat_name_or_null)]
    name: Option<String>,
    #[serde(default)]
    #[schema(schema_with = schema::description_or_null)]
    description: Option<String>,
    /// The other members: exactly one for a single chat, at least two for a group.
    #[serde(default)]
    #[schema(max_items = 1000)]
    member_ids: Vec<UserId>,
}

/// What changes; an absent field stays, `null` clears.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::option_option, reason = "absent and null are different requests")]
pub struct UpdateChatRequest {
    #[serde(default, deserialize_with = "present")]
    #[schema(schema_with = schema::chat_name_or_null)]
    name: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(schema_with = schema::description_or_null)]
    description: Option<Option<String>>,
}

/// Tells `null` from absent.
#[expect(clippy::option_option, reason = "absent and null are different requests")]
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(deserializer).map(Some)
}

/// The caller's chats.
#[utoipa::path(get, path = "/api/chat", tag = "chats", operation_id = "list_chats", params(ListQuery),
    security(("bearer" = [])), responses((status = 200, description = "The caller's chats", body = Page<ChatView>)))]
pub async fn list_chats(
    State(chats): State<ChatService>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<ChatView>>> {
    Ok(Json(
        chats
            .list((&caller).into(), query.cursor.as_deref(), query.limit)
            .await?,
    ))
}

/// Makes a chat. A single chat with somebody one has one with is returned with 200.
#[utoipa::path(post, path = "/api/chat", tag = "chats", operation_id = "create_chat", extensions(("x-problem-codes" = json!(["forbidden", "conflict"]))), request_body = CreateChatRequest,
    security(("bearer" = [])),
    responses((status = 201, description = "Made", body = ChatView), (status = 200, description = "The single chat that exists", body = ChatView)))]
pub async fn create_chat(
    State(chats): State<ChatService>,
    caller: Caller,
    Json(request): Json<CreateChatRequest>,
) -> ApiResult<(StatusCode, Json<ChatView>)> {
    let request = CreateChat {
        kind: request.kind,
        name: request.name,
        description: request.description,
        member_ids: request.member_ids,
    };
    let created = chats.create((&caller).into(), request).await?;
    let status = if created.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(created.chat)))
}

/// One chat of the caller's.
#[utoipa::path(get, path = "/api/chat/{id}", tag = "chats", operation_id = "get_chat", extensions(("x-problem-codes" = json!(["forbidden"]))), params(("id" = ChatId, Path, description = "The chat.")),
    security(("bearer" = [])), responses((status = 200, description = "The chat", body = ChatView)))]
pub async fn get_chat(
    State(chats): State<ChatService>,
    caller: Caller,
    Path(id): Path<ChatId>,
) -> ApiResult<Json<ChatView>> {
    Ok(Json(chats.get((&caller).into(), id).await?))
}

/// Renames or describes a chat; its owner may.
#[utoipa::path(patch, path = "/api/chat/{id}", tag = "chats", operation_id = "update_chat", extensions(("x-problem-codes" = json!(["forbidden"]))), params(("id" = ChatId, Path, description = "The chat.")),
    request_body = UpdateChatRequest, security(("bearer" = [])),
    responses((status = 200, description = "The chat as it is now", body = ChatView)))]
pub async fn update_chat(
    State(chats): State<ChatService>,
    caller: Caller,
    Path(id): Path<ChatId>,
    Json(request): Json<UpdateChatRequest>,
) -> ApiResult<Json<ChatView>> {
    let request = UpdateChat {
        name: request.name,
        description: request.description,
    };
    Ok(Json(chats.update((&caller).into(), id, request).await?))
}

/// Ends a chat for everybody at once; its owner may.
#[utoipa::path(delete, path = "/api/chat/{id}", tag = "chats", operation_id = "delete_chat", extensions(("x-problem-codes" = json!(["forbidden"]))), params(("id" = ChatId, Path, description = "The chat.")),
    security(("bearer" = [])), responses((status = 204, description = "The chat has ended")))]
pub async fn delete_chat(
    State(chats): State<ChatService>,
    caller: Caller,
    Path(id): Path<ChatId>,
) -> ApiResult<StatusCode> {
    chats.delete((&caller).into(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The workspace's public channels, to discover.
#[utoipa::path(get, path = "/api/channels", tag = "chats", operation_id = "list_channels", params(ListQuery),
    security(("bearer" = [])), responses((status = 200, description = "Public channels", body = Page<ChatView>)))]
pub async fn list_channels(
    State(chats): State<ChatService>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<ChatView>>> {
    Ok(Json(
        chats
            .list_public((&caller).into(), query.cursor.as_deref(), query.limit)
            .await?,
    ))
}
