//! `GET /openapi.json` and the page that shows it, `GET /docs`.

use std::sync::Arc;

use axum::extract::Path;
use axum::response::{Html, IntoResponse};
use fechatter_core::problem::Code;
use http::{HeaderName, header};
use service_runtime::{ApiError, ApiResult};
use utoipa::ToSchema;

/// The API document of the whole platform; `cargo dev openapi` writes it from the code of all processes.
pub const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

const PAGE: &str = include_str!("docs.html");
const START: &str = include_str!("docs.js");

/// The page runs its own scripts and asks its own origin, nothing else. Swagger UI sets styles and icons in place.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What may be kept how long: it changes only when the platform is upgraded.
const CACHE: (HeaderName, &str) = (header::CACHE_CONTROL, "public, max-age=300");

/// This document (OpenAPI 3.1).
#[utoipa::path(get, path = "/openapi.json", tag = "operation", operation_id = "openapi",
    responses((status = 200, description = "The document", body = Object, example = json!({"openapi": "3.1.0"}))))]
pub async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json"), CACHE], DOCUMENT)
}

/// This document as a page to read and to try requests on; it loads nothing from elsewhere.
#[utoipa::path(get, path = "/docs", tag = "operation", operation_id = "docs",
    responses((status = 200, description = "The page", content_type = "text/html", body = String)))]
pub async fn docs() -> impl IntoResponse {
    (
        [(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY), CACHE],
        Html(PAGE),
    )
}

/// What the page loads.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "only described")]
enum PageFile {
    #[schema(rename = "swagger-ui.css")]
    Style,
    #[schema(rename = "swagger-ui-bundle.js")]
    Bundle,
    #[schema(rename = "start.js")]
    Start,
}

/// A style sheet or script of the page.
#[utoipa::path(get, path = "/docs/{file}", tag = "operation", operation_id = "docs_file",
    params(("file" = inline(PageFile), Path, description = "A file that the page names.")),
    responses((status = 200, description = "The file", content(
        (String = "text/css"), (String = "text/javascript")))))]
pub async fn docs_file(Path(file): Path<String>) -> ApiResult<impl IntoResponse> {
    let content = match file.as_str() {
        "start.js" => (START.as_bytes().into(), "text/javascript".to_owned()),
        "swagger-ui.css" | "swagger-ui-bundle.js" => {
            let config = Arc::new(utoipa_swagger_ui::Config::default());
            let found = utoipa_swagger_ui::serve(&file, config).ok().flatten();
            let file = found.ok_or_else(not_found)?;
            (file.bytes, file.content_type)
        }
        _ => return Err(not_found()),
    };
    let (bytes, content_type) = content;
    Ok((
        [(header::CONTENT_TYPE, content_type), (CACHE.0, CACHE.1.to_owned())],
        bytes,
    ))
}

fn not_found() -> ApiError {
    ApiError::new(Code::NotFound, "The page at /docs has no such file.")
}
