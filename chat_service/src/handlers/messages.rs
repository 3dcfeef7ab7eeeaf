//! `/api/chat/{id}/messages…` and `/api/chat/{id}/read`.

use axum::extract::State;
use fechatter_core::problem::Problem;
use fechatter_core::schema;
use fechatter_core::wire::{ChatView, MessageView, Page};
use fechatter_core::{ChatId, MessageId};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::{Json, Path, Query};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::ListQuery;
use crate::services::messages::MessageService;

/// A new message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendMessageRequest {
    /// 1 to 10,000 characters and at most 64 KiB; stored as sent.
    #[schema(schema_with = schema::content)]
    content: String,
    /// Makes a retry safe; the header `Idempotency-Key` does the same.
    #[serde(default)]
    #[schema(schema_with = schema::idempotency_key_or_null)]
    idempotency_key: Option<String>,
}

/// New content.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditMessageRequest {
    #[schema(schema_with = schema::content)]
    content: String,
}

/// How far the caller has read.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadRequest {
    #[schema(minimum = 0, example = 7)]
    seq: i64,
}

/// Which messages.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MessagesQuery {
    /// Messages of smaller `seq`, newest first (the default, from the newest).
    #[param(minimum = 1)]
    before: Option<i64>,
    /// Messages of greater `seq`, oldest first.
    #[param(minimum = 0)]
    after: Option<i64>,
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<i64>,
}

/// One page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct Messages {
    items: Vec<MessageView>,
    /// Whether there are more in this direction.
    has_more: bool,
}

/// One content a message had.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageVersion {
    version: i64,
    content: String,
    #[serde(with = "time::serde::rfc3339")]
    written_at: OffsetDateTime,
}

/// Messages of a chat.
#[utoipa::path(get, path = "/api/chat/{id}/messages", tag = "messages", operation_id = "list_messages", extensions(("x-problem-codes" = json!(["forbidden"]))),
    params(("id" = ChatId, Path, description = "The chat."), MessagesQuery), security(("bearer" = [])),
    responses((status = 200, description = "Messages", body = Messages)))]
pub async fn list_messages(
    State(messages): State<MessageService>,
    caller: Caller,
    Path(id): Path<ChatId>,
    Query(query): Query<MessagesQuery>,
) -> ApiResult<Json<Messages>> {
    let page = messages
        .list((&caller).into(), id, query.before, query.after, query.limit)
        .await?;
    Ok(Json(Messages {
        items: page.items,
        has_more: page.has_more,
    }))
}

/// Sends a message.
#[utoipa::path(post, path = "/api/chat/{id}/messages", tag = "messages", operation_id = "send_message", extensions(("x-problem-codes" = json!(["forbidden", "conflict", "idempotency_mismatch"]))),
    params(("id" = ChatId, Path, description = "The chat."), ("Idempotency-Key" = Option<String>, Header, description = "Makes a retry safe, for ever.", min_length = 1, max_length = 255, pattern = "^[ -~]*$", example = "0190a7c0-4f6e-7b1e-9d52-5b1f0c6e2d11")),
    request_body = SendMessageRequest, security(("bearer" = [])),
    responses((status = 201, description = "Sent", body = MessageView), (status = 200, description = "Sent before under this key", body = MessageView)))]
pub async fn send_message(
    State(messages): State<MessageService>,
    caller: Caller,
    Path(id): Path<ChatId>,
    headers: HeaderMap,
    Json(request): Json<SendMessageRequest>,
) -> ApiResult<(StatusCode, Json<MessageView>)> {
    let key = idempotency_key(&headers, request.idempotency_key)?;
    let sent = messages
        .send((&caller).into(), id, &request.content, key.as_deref())
        .await?;
    let status = if sent.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(sent.message)))
}

fn idempotency_key(headers: &HeaderMap, in_body: Option<String>) -> Result<Option<String>, Problem> {
    let invalid = |detail| Problem::field("idempotency_key", "invalid", detail);
    let mut in_header: Option<String> = None;
    for value in headers.get_all("idempotency-key") {
        let key = value.to_str().map_err(|_| invalid("printable ASCII only"))?;
        if in_header.as_ref().is_some_and(|first| first != key) {
            return Err(invalid("one header, one key"));
        }
        in_header = Some(key.to_owned());
    }
    match (in_header, in_body) {
        (Some(header), Some(body)) if header != body => Err(invalid("header and body name different keys")),
        (header, body) => Ok(header.or(body)),
    }
}

/// Edits a message; its sender may.
#[utoipa::path(patch, path = "/api/chat/{id}/messages/{message_id}", tag = "messages", operation_id = "edit_message", extensions(("x-problem-codes" = json!(["forbidden", "conflict"]))),
    params(("id" = ChatId, Path, description = "The chat."), ("message_id" = MessageId, Path, description = "The message.")), request_body = EditMessageRequest, security(("bearer" = [])),
    responses((status = 200, description = "The message as it is now", body = MessageView)))]
pub async fn edit_message(
    State(messages): State<MessageService>,
    caller: Caller,
    Path((id, message_id)): Path<(ChatId, MessageId)>,
    Json(request): Json<EditMessageRequest>,
) -> ApiResult<Json<MessageView>> {
    Ok(Json(
        messages
            .edit((&caller).into(), id, message_id, &request.content)
            .await?,
    ))
}

/// Deletes a message and leaves a tombstone that keeps its `seq`; its sender and the chat's owner may.
#[utoipa::path(delete, path = "/api/chat/{id}/messages/{message_id}", tag = "messages", operation_id = "delete_message", extensions(("x-problem-codes" = json!(["forbidden"]))),
    params(("id" = ChatId, Path, description = "The chat."), ("message_id" = MessageId, Path, description = "The message.")), security(("bearer" = [])),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_message(
    State(messages): State<MessageService>,
    caller: Caller,
    Path((id, message_id)): Path<(ChatId, MessageId)>,
) -> ApiResult<StatusCode> {
    messages.delete((&caller).into(), id, message_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a message said before it was edited.
#[utoipa::path(get, path = "/api/chat/{id}/messages/{message_id}/history", tag = "messages", operation_id = "message_history", extensions(("x-problem-codes" = json!(["forbidden"]))),
    params(("id" = ChatId, Path, description = "The chat."), ("message_id" = MessageId, Path, description = "The message."), ListQuery),
    security(("bearer" = [])),
    responses((status = 200, description = "All contents, oldest first; the last of the last page is the present one", body = Page<MessageVersion>)))]
pub async fn message_history(
    State(messages): State<MessageService>,
    caller: Caller,
    Path((id, message_id)): Path<(ChatId, MessageId)>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<MessageVersion>>> {
    let page = messages
        .history((&caller).into(), id, message_id, query.cursor.as_deref(), query.limit)
        .await?;
    let items = page
        .items
        .into_iter()
        .map(|edit| MessageVersion {
            version: edit.version,
            content: edit.content,
            written_at: edit.written_at,
        })
        .collect();
    Ok(Json(Page { items, next: page.next }))
}

/// Moves the caller's read cursor forward.
#[utoipa::path(put, path = "/api/chat/{id}/read", tag = "messages", operation_id = "mark_read", extensions(("x-problem-codes" = json!(["forbidden"]))), params(("id" = ChatId, Path, description = "The chat.")),
    request_body = ReadRequest, security(("bearer" = [])),
    responses((status = 200, description = "The chat with its unread count", body = ChatView)))]
pub async fn mark_read(
    State(messages): State<MessageService>,
    caller: Caller,
    Path(id): Path<ChatId>,
    Json(request): Json<ReadRequest>,
) -> ApiResult<Json<ChatView>> {
    Ok(Json(messages.read((&caller).into(), id, request.seq).await?))
}
