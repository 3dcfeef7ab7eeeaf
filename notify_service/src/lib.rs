//! Live delivery: one ordered JetStream consumer per process, the newest events in memory, Server-Sent Events to every
//! device.
//!
//! `consumer` reads the stream and publishes each event to the `hub`, which keeps the `ring`, the `membership` of the
//! users it knows, and the `connection` of each stream. `handlers` → `services` → `repositories` open streams; `body` is
//! what hyper polls. Nothing here writes to PostgreSQL but dead letters, and nothing decides who sees what but membership
//! as it is now.

pub mod body;
pub mod config;
pub mod connection;
pub mod consumer;
pub mod cursor;
pub mod ephemeral;
pub mod event;
pub mod handlers;
pub mod hub;
pub mod membership;
pub mod metrics;
pub mod positions;
pub mod presence;
pub mod repositories;
pub mod ring;
pub mod services;
pub mod state;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use state::AppState;

/// Every documented route with its handler.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(handlers::stream::events))
        .routes(routes!(handlers::tickets::create_ticket))
        .routes(routes!(handlers::typing::typing))
        .routes(routes!(handlers::presence::chat_presence))
        .routes(routes!(handlers::presence::declare_presence))
}

/// The OpenAPI document of these routes, to be merged into the public one.
pub fn document() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

/// All public routes; `health` are the two health routes of this process.
pub fn router(state: AppState, health: Router) -> Router {
    let routes = Router::from(documented()).with_state(state);
    service_runtime::layers::apply(routes.merge(health))
}
