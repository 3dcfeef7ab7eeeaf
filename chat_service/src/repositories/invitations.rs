//! Invitations into a workspace.

use fechatter_core::{UserId, WorkspaceId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::Error;

pub struct Invitations<'c>(pub(super) &'c mut PgConnection);

/// An invitation; its token is never stored.
#[derive(Debug, Clone)]
pub struct InvitationRow {
    pub id: i64,
    pub created_by: UserId,
    pub email: Option<String>,
    pub max_uses: i32,
    pub uses: i32,
    pub expires_at: OffsetDateTime,
    pub created_at: OffsetDateTime,
}

/// What a new invitation needs.
#[derive(Debug)]
pub struct NewInvitation<'a> {
    pub workspace_id: WorkspaceId,
    pub token_hash: &'a [u8],
    pub created_by: UserId,
    pub email: Option<&'a str>,
    pub max_uses: i32,
    pub expires_at: OffsetDateTime,
}

impl Invitations<'_> {
    pub async fn insert(&mut self, new: &NewInvitation<'_>) -> Result<InvitationRow, Error> {
        Ok(sqlx::query_as!(
            InvitationRow,
            "INSERT INTO invitations (workspace_id, token_hash, created_by, email, max_uses, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6) RETURNING id, created_by, email, max_uses, uses, expires_at, created_at",
            new.workspace_id.0,
            new.token_hash,
            new.created_by.0,
            new.email,
            new.max_uses,
            new.expires_at
        )
        .fetch_one(&mut *self.0)
        .await?)
    }

    /// Uses an invitation once; `false` when it is unknown, for another address, spent, expired or revoked, or when who made
    /// it may not invite any more.
    pub async fn redeem(&mut self, workspace: WorkspaceId, token_hash: &[u8], email: &str) -> Result<bool, Error> {
        let done = sqlx::query!(
            "UPDATE invitations SET uses = uses + 1
             WHERE workspace_id = $1 AND token_hash = $2 AND uses < max_uses AND expires_at > now()
               AND revoked_at IS NULL AND (email IS NULL OR lower(email) = lower($3))
               AND EXISTS (SELECT 1 FROM users AS u
                           WHERE u.id = created_by AND u.deactivated_at IS NULL AND u.role <> 'member')",
            workspace.0,
            token_hash,
            email
        )
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Invitations that can still be used, newest first, before `before`.
    pub async fn list(&mut self, workspace: WorkspaceId, before: i64, limit: i64) -> Result<Vec<InvitationRow>, Error> {
        Ok(sqlx::query_as!(
            InvitationRow,
            "SELECT id, created_by, email, max_uses, uses, expires_at, created_at FROM invitations
             WHERE workspace_id = $1 AND id < $2 AND revoked_at IS NULL AND expires_at > now() AND uses < max_uses
             ORDER BY id DESC LIMIT $3",
            workspace.0,
            before,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    pub async fn revoke(&mut self, workspace: WorkspaceId, id: i64) -> Result<bool, Error> {
        let done = sqlx::query!(
            "UPDATE invitations SET revoked_at = now() WHERE workspace_id = $1 AND id = $2 AND revoked_at IS NULL",
            workspace.0,
            id
        )
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
