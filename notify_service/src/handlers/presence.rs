//! `GET /api/chat/{id}/presence` and `PUT /api/presence`.

use axum::extract::State;
use fechatter_core::problem::Problem;
use fechatter_core::{ChatId, UserId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::{Json, Path, Query};
use utoipa::{IntoParams, ToSchema};

use crate::presence::Presence;
use crate::state::AppState;

/// Longest list of users that one request names; the gateway takes no much longer target.
const NAMED_CHARS_MAX: usize = 3_200;

/// Whom to look for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PresenceParams {
    /// User ids separated by commas, at most 3,200 characters; without it everybody in the chat who is online or away.
    #[param(
        example = "1,2",
        pattern = "^[1-9][0-9]{0,14}(,[1-9][0-9]{0,14})*$",
        max_length = 3_200
    )]
    user_ids: Option<String>,
}

/// Who is here.
#[derive(Debug, Serialize, ToSchema)]
pub struct Presences {
    items: Vec<Presence>,
}

/// Whether one is at the device.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PresenceRequest {
    status: DeclaredStatus,
}

/// What a client may say of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum DeclaredStatus {
    Online,
    Away,
}

/// Who of a chat is online, away or offline; for its members.
///
/// Those of `user_ids` who are not in the chat are left out. Changes come as `presence` events.
#[utoipa::path(
    get,
    path = "/api/chat/{id}/presence",
    tag = "events",
    params(("id" = ChatId, Path, description = "The chat."), PresenceParams),
    responses((status = 200, description = "Who is here", body = Presences)),
    extensions(("x-problem-codes" = json!(["forbidden"]))),
    security(("bearer" = [])),
)]
pub async fn chat_presence(
    State(state): State<AppState>,
    caller: Caller,
    Path(chat): Path<ChatId>,
    Query(params): Query<PresenceParams>,
) -> ApiResult<Json<Presences>> {
    let users = params.user_ids.as_deref().map(parse).transpose()?;
    let who = (caller.user_id(), caller.workspace_id());
    let items = state.presence.in_chat(who, chat, users).await?;
    Ok(Json(Presences { items }))
}

fn parse(list: &str) -> Result<Vec<UserId>, Problem> {
    let invalid = || {
        let detail = format!("user ids separated by commas, such as 1,2; at most {NAMED_CHARS_MAX} characters");
        Problem::field("user_ids", "invalid", detail)
    };
    let ids = list
        .split(',')
        .map(|id| id.trim().parse::<UserId>().ok().filter(|id| id.0 > 0));
    let ids: Vec<UserId> = ids.collect::<Option<_>>().ok_or_else(invalid)?;
    if list.len() > NAMED_CHARS_MAX {
        return Err(invalid());
    }
    Ok(ids)
}

/// Says whether the caller is at this device. A user is away when all devices with a live stream say so.
///
/// It counts until the session says otherwise or has no stream any more; a session without one cannot be away.
#[utoipa::path(
    put,
    path = "/api/presence",
    tag = "events",
    request_body = PresenceRequest,
    responses((status = 204, description = "Told")),
    security(("bearer" = [])),
)]
pub async fn declare_presence(
    State(state): State<AppState>,
    caller: Caller,
    Json(request): Json<PresenceRequest>,
) -> ApiResult<StatusCode> {
    let is_away = request.status == DeclaredStatus::Away;
    state
        .presence
        .declare(caller.workspace_id(), caller.user_id(), caller.session_id(), is_away)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
