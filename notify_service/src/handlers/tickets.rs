//! `POST /events/ticket`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fechatter_core::problem::{Code, Problem};
use http::{StatusCode, header};
use serde::Serialize;
use service_runtime::auth::Caller;
use service_runtime::extract::Json;
use service_runtime::{ApiError, ApiResult};
use utoipa::ToSchema;

use crate::AppState;
use crate::services::tickets::{Identity, TICKET_SECONDS, TicketFault};

/// A ticket for `GET /events?ticket=`.
#[derive(Debug, Serialize, ToSchema)]
pub struct TicketResponse {
    /// Opens one stream. That stream's client may come back with it and a cursor until the access token expires.
    pub ticket: String,
    /// Seconds within which it must be used.
    #[schema(example = 30)]
    pub expires_in: i64,
}

/// Makes a ticket for a browser's `EventSource`, which cannot send a token.
#[utoipa::path(
    post,
    path = "/events/ticket",
    tag = "events",
    operation_id = "create_event_ticket",
    responses(
        (status = 201, description = "The ticket", body = TicketResponse),
        (status = 401, description = "Not authenticated", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ),
    security(("bearer" = []))
)]
pub async fn issue(State(state): State<AppState>, caller: Caller) -> ApiResult<Response> {
    let identity = Identity::from(&*caller.claims);
    let ticket = state.tickets.issue(identity).await.map_err(refuse)?;
    let body = TicketResponse {
        ticket,
        expires_in: TICKET_SECONDS,
    };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

/// The problem for a ticket that cannot be made or redeemed.
pub fn refuse(fault: TicketFault) -> ApiError {
    match fault {
        TicketFault::Invalid => ApiError::new(
            Code::InvalidToken,
            "The ticket is not valid; get a new one by POST /events/ticket.",
        ),
        TicketFault::Unavailable(error) => {
            tracing::warn!(%error, "tickets cannot be kept or read");
            ApiError::unavailable("Tickets are not available right now; try again.", 2)
        }
    }
}
