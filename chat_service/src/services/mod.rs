//! Use cases: a method authorises, decides, writes, appends the event and commits, in one transaction.

pub mod access;
pub mod auth;
pub mod chats;
pub mod group_commit;
pub mod inheritance;
pub mod members;
pub mod messages;
pub mod page;
pub mod sessions;
pub mod signin_failures;
pub mod users;
pub mod validation;
pub mod workspaces;

use fechatter_core::{UserId, WorkspaceId};
use service_runtime::auth::Caller;

/// Who acts: taken from the verified token alone.
#[derive(Debug, Clone, Copy)]
pub struct Actor {
    pub user: UserId,
    pub workspace: WorkspaceId,
    pub session: uuid::Uuid,
}

impl From<&Caller> for Actor {
    fn from(caller: &Caller) -> Self {
        Self {
            user: caller.user_id(),
            workspace: caller.workspace_id(),
            session: caller.session_id(),
        }
    }
}
