//! `GET /.well-known/jwks.json`.

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;
use utoipa::ToSchema;

use crate::signing_keys::SigningKeys;

/// A JWK Set (RFC 7517).
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "only described; the document is made with the keys")]
pub struct JsonWebKeySet {
    keys: Vec<JsonWebKey>,
}

/// An Ed25519 public key (RFC 8037).
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "only described")]
struct JsonWebKey {
    #[schema(example = "OKP")]
    kty: String,
    #[schema(example = "Ed25519")]
    crv: String,
    #[schema(example = "EdDSA")]
    alg: String,
    #[schema(example = "sig")]
    r#use: String,
    #[schema(example = "1795428000-1f0c6e2d9a3b")]
    kid: String,
    #[schema(example = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")]
    x: String,
}

/// The public keys that verify access tokens (RFC 7517).
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "auth", operation_id = "jwks",
    responses((status = 200, description = "A JWKS document", body = JsonWebKeySet)))]
pub async fn jwks(State(keys): State<SigningKeys>) -> impl IntoResponse {
    ([(header::CACHE_CONTROL, "public, max-age=30")], axum::Json(keys.jwks()))
}
