//! Live delivery: reads the event stream once per process and brings each event to the devices that may see it.
//!
//! `consumer` feeds the `hub`; `handlers` attach clients to it. Membership is read from PostgreSQL when a user connects and
//! follows the events from there. Nothing here writes to PostgreSQL but dead letters.

pub mod config;
pub mod consumer;
pub mod frame;
pub mod handlers;
pub mod hub;
pub mod metrics;
pub mod repositories;
pub mod services;
pub mod state;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use state::AppState;

/// Every documented route with its handler.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(handlers::events::stream))
        .routes(routes!(handlers::tickets::issue))
        .routes(routes!(handlers::typing::tell))
}

/// The OpenAPI document of the event routes, to be merged into the public one.
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

/// All public routes; `health` are the two health routes of this process.
pub fn router(state: AppState, health: Router) -> Router {
    let routes = Router::from(documented()).with_state(state);
    service_runtime::layers::apply(routes.merge(health))
}
