//! What handlers share.

use std::sync::Arc;

use axum::extract::FromRef;
use service_runtime::auth::Authenticator;

use crate::hub::Hub;
use crate::services::readings::Readings;
use crate::services::replay::Replay;
use crate::services::tickets::Tickets;
use crate::services::typing::Typing;

/// State of the routes.
#[derive(Debug, Clone, FromRef)]
pub struct AppState {
    pub authenticator: Authenticator,
    pub hub: Arc<Hub>,
    pub readings: Readings,
    pub replay: Arc<Replay>,
    pub tickets: Arc<Tickets>,
    pub typing: Arc<Typing>,
}
