//! Workspaces.

use fechatter_core::{UserId, WorkspaceId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::Error;

pub struct Workspaces<'c>(pub(super) &'c mut PgConnection);

/// A tenant.
#[derive(Debug, Clone)]
pub struct WorkspaceRow {
    pub id: WorkspaceId,
    pub name: String,
    pub owner_id: UserId,
    pub created_at: OffsetDateTime,
}

impl Workspaces<'_> {
    /// Finds a workspace by name; case and compatibility variants of Unicode (NFKC) make no difference.
    pub async fn find_by_name(&mut self, name: &str) -> Result<Option<WorkspaceId>, Error> {
        let id = sqlx::query_scalar!(
            "SELECT id FROM workspaces WHERE lower(normalize(name, NFKC)) = lower(normalize($1, NFKC))",
            name
        )
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(id.map(WorkspaceId))
    }

    pub async fn find(&mut self, id: WorkspaceId) -> Result<Option<WorkspaceRow>, Error> {
        Ok(sqlx::query_as!(
            WorkspaceRow,
            "SELECT id, name, owner_id, created_at FROM workspaces WHERE id = $1",
            id.0
        )
        .fetch_optional(&mut *self.0)
        .await?)
    }

    pub async fn rename(&mut self, id: WorkspaceId, name: &str) -> Result<(), Error> {
        sqlx::query!("UPDATE workspaces SET name = $2 WHERE id = $1", id.0, name)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    pub async fn set_owner(&mut self, id: WorkspaceId, owner: UserId) -> Result<(), Error> {
        sqlx::query!("UPDATE workspaces SET owner_id = $2 WHERE id = $1", id.0, owner.0)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}
