//! `GET /.well-known/jwks.json`.

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;

use crate::signing_keys::SigningKeys;

/// The public keys that verify access tokens (RFC 7517).
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "auth", operation_id = "jwks",
    responses((status = 200, description = "A JWKS document", body = serde_json::Value)))]
pub async fn jwks(State(keys): State<SigningKeys>) -> impl IntoResponse {
    ([(header::CACHE_CONTROL, "public, max-age=30")], axum::Json(keys.jwks()))
}
