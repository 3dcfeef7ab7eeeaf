//! What the handlers share.

use axum::extract::FromRef;
use service_runtime::auth::Authenticator;

use crate::services::search::SearchService;

/// State of the search API.
#[derive(Debug, Clone, FromRef)]
pub struct AppState {
    pub search: SearchService,
    pub authenticator: Authenticator,
}
