//! Search: the JetStream consumer that keeps an engine up to date, and the search API.
//!
//! `handlers` → `services` → `repositories`; the consumer calls services too. `engine` is the one trait, with two real
//! implementations. Nothing here writes to PostgreSQL but dead letters, and nothing in the index decides who sees what.

pub mod config;
pub mod consumer;
pub mod engine;
pub mod handlers;
pub mod highlight;
pub mod metrics;
pub mod query;
pub mod repositories;
pub mod services;
pub mod state;
pub mod text;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use state::AppState;

/// Every documented route with its handler.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(handlers::search::search_messages))
}

/// The OpenAPI document of the search routes, to be merged into the public one.
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

/// All public routes; `health` are the two health routes of this process.
pub fn router(state: AppState, health: Router) -> Router {
    let routes = Router::from(documented()).with_state(state);
    service_runtime::layers::apply(routes.merge(health))
}
