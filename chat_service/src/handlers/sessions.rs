//! `/api/sessions`: the caller's own.

use axum::extract::State;
use http::StatusCode;
use serde::Serialize;
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::{Json, Path};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::services::sessions::SessionService;

/// A live session.
#[derive(Debug, Serialize, ToSchema)]
pub struct Session {
    id: Uuid,
    /// Whether this request came by it.
    current: bool,
    #[schema(required)]
    user_agent: Option<String>,
    #[schema(required)]
    address: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    last_used_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// The caller's live sessions.
#[derive(Debug, Serialize, ToSchema)]
pub struct Sessions {
    items: Vec<Session>,
    /// Always `null`: the list is whole.
    #[schema(required)]
    next: Option<String>,
}

/// The caller's live sessions, the latest used first.
#[utoipa::path(get, path = "/api/sessions", tag = "auth", operation_id = "list_sessions", security(("bearer" = [])),
    responses((status = 200, description = "Sessions", body = Sessions)))]
pub async fn list_sessions(State(sessions): State<SessionService>, caller: Caller) -> ApiResult<Json<Sessions>> {
    let current = caller.session_id();
    let items = sessions
        .list((&caller).into())
        .await?
        .into_iter()
        .map(|row| Session {
            current: row.id == current,
            id: row.id,
            user_agent: row.user_agent,
            address: row.address,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            expires_at: row.expires_at,
        })
        .collect();
    Ok(Json(Sessions { items, next: None }))
}

/// Ends one of the caller's sessions.
#[utoipa::path(delete, path = "/api/sessions/{id}", tag = "auth", operation_id = "end_session", params(("id" = Uuid, Path, description = "The session.")),
    security(("bearer" = [])), responses((status = 204, description = "The session has ended")))]
pub async fn end_session(
    State(sessions): State<SessionService>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> ApiResult<StatusCode> {
    sessions.end((&caller).into(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all the caller's sessions but this one.
#[utoipa::path(delete, path = "/api/sessions", tag = "auth", operation_id = "end_other_sessions", security(("bearer" = [])),
    responses((status = 204, description = "The other sessions have ended")))]
pub async fn end_other_sessions(State(sessions): State<SessionService>, caller: Caller) -> ApiResult<StatusCode> {
    sessions.end_others((&caller).into()).await?;
    Ok(StatusCode::NO_CONTENT)
}
