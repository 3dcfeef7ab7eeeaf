#![doc = include_str!("../README.md")]

pub mod config;
pub mod consumer;
pub mod engine;
pub mod handlers;
pub mod highlight;
pub mod metrics;
pub mod names;
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
pub fn document() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

/// All public routes; `health` are the two health routes of this process.
pub fn router(state: AppState, health: Router) -> Router {
    let routes = Router::from(documented()).with_state(state);
    service_runtime::layers::apply(routes.merge(health))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_search_route_is_described() {
        let document = serde_json::to_value(super::document()).unwrap();
        let operation = &document["paths"]["/api/search/messages"]["get"];
        let names: Vec<&str> = operation["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "q",
                "chat_id",
                "sender_id",
                "kind",
                "from",
                "to",
                "sort",
                "limit",
                "offset"
            ]
        );
        let sort = &operation["parameters"][6]["schema"];
        assert!(sort.to_string().contains("newest"), "{sort}");
        let schemas = &document["components"]["schemas"];
        for name in [
            "SearchResponse",
            "SearchHit",
            "SearchFacets",
            "Message",
            "ChatRef",
            "ChatKind",
        ] {
            assert!(schemas[name].is_object(), "{name} is missing");
        }
    }
}
