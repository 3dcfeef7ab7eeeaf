//! Identity, tenancy, chats, messages and the outbox: the one service that writes.
//!
//! `handlers` → `services` → `repositories`; a service method is one use case and one transaction, its event included.

pub mod config;
pub mod error;
pub mod handlers;
pub mod outbox_relay;
pub mod passwords;
pub mod reconcile;
pub mod repositories;
pub mod services;
pub mod signing_keys;
pub mod state;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use handlers::{auth, chats, keys, members, messages, openapi, sessions, users, workspaces};
pub use state::AppState;

/// Every documented route with its handler.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(auth::sign_up))
        .routes(routes!(auth::sign_in))
        .routes(routes!(auth::refresh))
        .routes(routes!(auth::log_out))
        .routes(routes!(auth::change_password))
        .routes(routes!(sessions::list_sessions, sessions::end_other_sessions))
        .routes(routes!(sessions::end_session))
        .routes(routes!(users::get_me))
        .routes(routes!(users::list_users))
        .routes(routes!(users::update_user, users::deactivate_user))
        .routes(routes!(workspaces::get_workspace, workspaces::update_workspace))
        .routes(routes!(workspaces::list_invitations, workspaces::create_invitation))
        .routes(routes!(workspaces::revoke_invitation))
        .routes(routes!(chats::list_chats, chats::create_chat))
        .routes(routes!(chats::get_chat, chats::update_chat, chats::delete_chat))
        .routes(routes!(chats::list_channels))
        .routes(routes!(
            members::list_members,
            members::add_members,
            members::remove_members
        ))
        .routes(routes!(members::update_member))
        .routes(routes!(members::join_chat))
        .routes(routes!(members::leave_chat))
        .routes(routes!(messages::list_messages, messages::send_message))
        .routes(routes!(messages::edit_message, messages::delete_message))
        .routes(routes!(messages::message_history))
        .routes(routes!(messages::mark_read))
        .routes(routes!(keys::jwks))
        .routes(routes!(openapi::openapi))
        .routes(routes!(openapi::docs))
        .routes(routes!(openapi::docs_file))
}

/// The OpenAPI document of this service's routes, a part of the public one.
pub fn document() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

/// All routes; `health` are the two health routes of this process.
pub fn router(state: AppState, health: Router) -> Router {
    let routes = Router::from(documented()).with_state(state);
    service_runtime::layers::apply(routes.merge(health))
}
