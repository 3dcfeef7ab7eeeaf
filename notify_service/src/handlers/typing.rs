//! `POST /api/chat/{id}/typing`.

use axum::extract::State;
use fechatter_core::ChatId;
use http::StatusCode;
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::Path;

use crate::state::AppState;

/// Tells the other members with a stream that the caller is typing, by a `typing {chat_id, user_id}` event.
///
/// Send it every few seconds while it goes on; what comes more often is dropped. Nothing is stored.
#[utoipa::path(
    post,
    path = "/api/chat/{id}/typing",
    tag = "events",
    params(("id" = ChatId, Path, description = "The chat.")),
    responses(
        (status = 204, description = "Told, or dropped because it was told a moment ago"),
    ),
    extensions(("x-problem-codes" = json!(["forbidden"]))),
    security(("bearer" = [])),
)]
pub async fn typing(State(state): State<AppState>, caller: Caller, Path(chat): Path<ChatId>) -> ApiResult<StatusCode> {
    state.typing.tell(caller.user_id(), caller.workspace_id(), chat).await?;
    Ok(StatusCode::NO_CONTENT)
}
