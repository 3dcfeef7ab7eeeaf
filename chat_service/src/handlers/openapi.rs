//! `GET /openapi.json`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;

/// The finished document, encoded once.
#[derive(Debug, Clone)]
pub struct Document(pub Arc<str>);

/// Serves the OpenAPI 3.1 document.
pub async fn openapi(State(document): State<Document>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document.0.to_string())
}
