//! `POST /events/ticket`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::Json;
use utoipa::ToSchema;

use crate::services::tickets::FIRST_USE_SECONDS;
use crate::state::AppState;

/// A ticket for `GET /events?ticket=…`.
#[derive(Debug, Serialize, ToSchema)]
pub struct TicketResponse {
    /// Opaque; a secret until it has been used.
    pub ticket: String,
    /// Seconds within which it must be used for the first time.
    #[schema(example = 30)]
    pub expires_in: i64,
}

/// Makes a ticket for browsers' `EventSource`, which cannot send a header.
///
/// The first use within 30 seconds binds it to that stream; its automatic reconnects, which carry a cursor, are let in
/// until the token that it came from expires or the session ends.
#[utoipa::path(
    post,
    path = "/events/ticket",
    tag = "events",
    responses(
        (status = 201, description = "The ticket", body = TicketResponse),
    ),
    security(("bearer" = [])),
)]
pub async fn create_ticket(State(state): State<AppState>, caller: Caller) -> ApiResult<Response> {
    let ticket = state.tickets.issue(&caller.claims).await?;
    let body = Json(TicketResponse {
        ticket,
        expires_in: FIRST_USE_SECONDS,
    });
    let mut response = (StatusCode::CREATED, body).into_response();
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
