//! What handlers share.

use axum::extract::FromRef;
use service_runtime::auth::Authenticator;

use crate::services::presence::Presence;
use crate::services::streams::Streams;
use crate::services::tickets::Tickets;
use crate::services::typing::Typing;

/// Shared by all requests.
#[derive(Debug, Clone)]
pub struct AppState {
    pub authenticator: Authenticator,
    pub presence: Presence,
    pub streams: Streams,
    pub tickets: Tickets,
    pub typing: Typing,
}

impl FromRef<AppState> for Authenticator {
    fn from_ref(state: &AppState) -> Self {
        state.authenticator.clone()
    }
}
