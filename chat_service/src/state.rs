//! What handlers can reach: services only, built by plain constructor calls.

use std::sync::Arc;

use axum::extract::FromRef;
use fechatter_core::token::Verifier;
use service_runtime::auth::Authenticator;
use sqlx::PgPool;

use crate::config::Config;
use crate::outbox_relay::Wake;
use crate::passwords::PasswordHasher;
use crate::repositories::Store;
use crate::services::auth::AuthService;
use crate::services::chats::ChatService;
use crate::services::inheritance::Inheritance;
use crate::services::members::MemberService;
use crate::services::messages::MessageService;
use crate::services::sessions::SessionService;
use crate::services::users::UserService;
use crate::services::workspaces::WorkspaceService;
use crate::signing_keys::SigningKeys;

/// The services of one process; cheap to clone.
#[derive(Debug, Clone, FromRef)]
pub struct AppState {
    pub auth: AuthService,
    pub chats: ChatService,
    pub members: MemberService,
    pub messages: MessageService,
    pub sessions: SessionService,
    pub users: UserService,
    pub workspaces: WorkspaceService,
    pub keys: SigningKeys,
    pub authenticator: Authenticator,
}

impl AppState {
    /// Builds the services on a pool.
    pub fn new(config: &Config, pool: PgPool, wake: Arc<Wake>, keys: SigningKeys) -> anyhow::Result<Self> {
        let store = Store::new(pool, wake);
        let verifier = Arc::new(Verifier::new(&config.auth.issuer, &config.auth.audience, 100_000));
        keys.feed(&verifier)?;
        Ok(Self {
            auth: AuthService {
                store: store.clone(),
                passwords: PasswordHasher::new(&config.passwords)?,
                keys: keys.clone(),
                config: config.auth.clone(),
            },
            chats: ChatService { store: store.clone() },
            members: MemberService { store: store.clone() },
            messages: MessageService::new(store.clone()),
            sessions: SessionService { store: store.clone() },
            users: UserService {
                store: store.clone(),
                inheritance: Inheritance { store: store.clone() },
            },
            workspaces: WorkspaceService { store },
            keys,
            authenticator: Authenticator {
                verifier,
                refresher: None,
            },
        })
    }
}
