//! What the gateway answers itself, for the API document. The handlers are in `health`; these describe them.

use fechatter_core::health::{Health, Status};
use utoipa::{OpenApi, ToSchema};

/// Whether the platform can do its work: each dependency and upstream with its state, without details.
#[utoipa::path(get, path = "/health", tag = "operation", operation_id = "health",
    responses((status = 200, description = "Works, perhaps degraded", body = Health),
        (status = 503, description = "Cannot do its work", body = Health)))]
#[expect(dead_code, reason = "described here, answered by the proxy")]
const fn health() {}

/// Whether the gateway is alive; asks nobody else.
#[utoipa::path(get, path = "/health/simple", tag = "operation", operation_id = "health_simple",
    responses((status = 200, description = "Alive", body = Alive, example = json!({"status": "ok"}))))]
#[expect(dead_code, reason = "described here, answered by the proxy")]
const fn health_simple() {}

/// This process is alive.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
struct Alive {
    status: Status,
}

#[derive(OpenApi)]
#[openapi(paths(health, health_simple), components(schemas(Health)))]
struct Edge;

/// The OpenAPI document of the gateway's own routes, a part of the public one.
pub fn document() -> utoipa::openapi::OpenApi {
    Edge::openapi()
}
