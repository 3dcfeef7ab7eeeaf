//! `POST /api/chat/{id}/typing`.

use axum::extract::State;
use fechatter_core::ChatId;
use fechatter_core::problem::{Code, Problem};
use http::StatusCode;
use service_runtime::auth::Caller;
use service_runtime::extract::Path;
use service_runtime::{ApiError, ApiResult};

use crate::AppState;

/// Tells the other members of a chat that the caller is typing, by a `typing` event; repeat it every few seconds.
#[utoipa::path(
    post,
    path = "/api/chat/{id}/typing",
    tag = "events",
    operation_id = "tell_typing",
    params(("id" = i64, Path, description = "The chat's id")),
    responses(
        (status = 204, description = "Told, as far as anybody listens"),
        (status = 401, description = "Not authenticated", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such chat, or the caller is not in it", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ),
    security(("bearer" = []))
)]
pub async fn tell(State(state): State<AppState>, caller: Caller, Path(chat): Path<ChatId>) -> ApiResult<StatusCode> {
    let told = state
        .typing
        .tell(caller.workspace_id(), caller.user_id(), chat)
        .await
        .map_err(|error| {
            tracing::warn!(%error, "cannot check a membership");
            ApiError::unavailable("The database does not answer; try again.", 2)
        })?;
    if told {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::new(
            Code::NotFound,
            "There is no such chat, or you are not in it.",
        ))
    }
}
