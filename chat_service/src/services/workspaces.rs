//! The workspace and its invitations.

use fechatter_core::user::{WORKSPACE_NAME_CHARS_MAX, is_email, is_name};
use fechatter_core::wire::Page;
use time::{Duration, OffsetDateTime};

use super::auth::new_secret;
use super::validation::Validation;
use super::{Actor, page};
use crate::error::Error;
use crate::repositories::invitations::{InvitationRow, NewInvitation};
use crate::repositories::workspaces::WorkspaceRow;
use crate::repositories::{Repositories, Store, UnitOfWork};

/// Most uses of one invitation.
pub const INVITATION_USES_MAX: i64 = 10_000;
/// Longest life of an invitation, in seconds.
pub const INVITATION_SECONDS_MAX: i64 = 30 * 86_400;
/// Life of an invitation when the maker does not say, in seconds.
pub const INVITATION_SECONDS_DEFAULT: i64 = 7 * 86_400;

/// Workspace use cases.
#[derive(Debug, Clone)]
pub struct WorkspaceService {
    pub store: Store,
}

/// What `POST /api/workspace/invitations` asks for.
#[derive(Debug, Default)]
pub struct Invite {
    pub max_uses: Option<i64>,
    pub expires_in: Option<i64>,
    pub email: Option<String>,
}

impl WorkspaceService {
    pub async fn get(&self, actor: Actor) -> Result<WorkspaceRow, Error> {
        self.store
            .connection()
            .await?
            .workspaces()
            .find(actor.workspace)
            .await?
            .ok_or(Error::NotFound("workspace"))
    }

    /// Renames the workspace; its owner and admins may.
    pub async fn rename(&self, actor: Actor, name: &str) -> Result<WorkspaceRow, Error> {
        Validation::default()
            .check(
                is_name(name, WORKSPACE_NAME_CHARS_MAX),
                "name",
                "invalid",
                "1 to 64 visible characters, no spaces around",
            )
            .finish()?;
        let mut unit = self.store.begin().await?;
        require_manager(&mut unit, actor).await?;
        match unit.workspaces().rename(actor.workspace, name).await {
            Err(error) if error.violates("workspaces_name_key") => {
                return Err(Error::Conflict("There is another workspace with this name."));
            }
            other => other?,
        }
        let row = unit
            .workspaces()
            .find(actor.workspace)
            .await?
            .ok_or(Error::NotFound("workspace"))?;
        unit.commit().await?;
        Ok(row)
    }

    /// Makes an invitation; its token is in this answer and nowhere else.
    pub async fn invite(&self, actor: Actor, request: Invite) -> Result<(InvitationRow, String), Error> {
        let max_uses = request.max_uses.unwrap_or(1);
        let expires_in = request.expires_in.unwrap_or(INVITATION_SECONDS_DEFAULT);
        Validation::default()
            .check(
                (1..=INVITATION_USES_MAX).contains(&max_uses),
                "max_uses",
                "out_of_range",
                "1 to 10000",
            )
            .check(
                (60..=INVITATION_SECONDS_MAX).contains(&expires_in),
                "expires_in",
                "out_of_range",
                "60 to 2592000 seconds (30 days)",
            )
            .check(
                request.email.as_deref().is_none_or(is_email),
                "email",
                "invalid",
                "an address such as ada@example.org",
            )
            .finish()?;
        let (token, token_hash) = new_secret();
        let mut unit = self.store.begin().await?;
        require_manager(&mut unit, actor).await?;
        let row = unit
            .invitations()
            .insert(&NewInvitation {
                workspace_id: actor.workspace,
                token_hash: &token_hash,
                created_by: actor.user,
                email: request.email.as_deref(),
                max_uses: i32::try_from(max_uses).unwrap_or(i32::MAX),
                expires_at: OffsetDateTime::now_utc() + Duration::seconds(expires_in),
            })
            .await?;
        unit.commit().await?;
        Ok((row, token))
    }

    /// Invitations that can still be used, newest first.
    pub async fn list_invitations(
        &self,
        actor: Actor,
        cursor: Option<&str>,
        limit: Option<i64>,
    ) -> Result<Page<InvitationRow>, Error> {
        let (before, limit) = (page::cursor(cursor, i64::MAX)?, page::limit(limit)?);
        let mut unit = self.store.begin().await?;
        require_manager(&mut unit, actor).await?;
        let rows = unit.invitations().list(actor.workspace, before, limit + 1).await?;
        Ok(page::page(rows, limit, |row| row.id))
    }

    pub async fn revoke_invitation(&self, actor: Actor, id: i64) -> Result<(), Error> {
        let mut unit = self.store.begin().await?;
        require_manager(&mut unit, actor).await?;
        if !unit.invitations().revoke(actor.workspace, id).await? {
            return Err(Error::NotFound("invitation"));
        }
        unit.commit().await
    }
}

/// The role is read from the database: a token may be older than a demotion.
async fn require_manager(unit: &mut UnitOfWork, actor: Actor) -> Result<(), Error> {
    let user = unit.users().find(actor.workspace, actor.user).await?;
    match user {
        Some(user) if user.view.role.manages_workspace() && !user.is_deactivated => Ok(()),
        _ => Err(Error::Forbidden("Only an owner or admin of the workspace may do this.")),
    }
}
