//! Users.

use fechatter_core::user::Role;
use fechatter_core::wire::UserView;
use fechatter_core::{UserId, WorkspaceId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::known;
use crate::error::Error;

pub struct Users<'c>(pub(super) &'c mut PgConnection);

/// A user with what only chat_service may know.
#[derive(Debug, Clone)]
pub struct UserRow {
    pub view: UserView,
    pub password_hash: String,
    pub is_deactivated: bool,
}

/// What a new user needs.
#[derive(Debug)]
pub struct NewUser<'a> {
    pub fullname: &'a str,
    pub email: &'a str,
    pub password_hash: &'a str,
}

struct Row {
    id: i64,
    workspace_id: i64,
    fullname: String,
    email: String,
    password_hash: String,
    role: String,
    is_deactivated: bool,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for UserRow {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        Ok(Self {
            view: UserView {
                id: row.id.into(),
                workspace_id: row.workspace_id.into(),
                fullname: row.fullname,
                email: row.email,
                role: known(&row.role)?,
                created_at: row.created_at,
            },
            password_hash: row.password_hash,
            is_deactivated: row.is_deactivated,
        })
    }
}

impl Users<'_> {
    /// Makes a workspace and its owner in one statement; each refers to the other.
    pub async fn insert_with_workspace(&mut self, workspace: &str, user: &NewUser<'_>) -> Result<UserRow, Error> {
        sqlx::query_as!(
            Row,
            r#"
            WITH ids AS MATERIALIZED (
                SELECT nextval('users_id_seq') AS user_id, nextval('workspaces_id_seq') AS workspace_id
            ), workspace AS (
                INSERT INTO workspaces (id, name, owner_id) OVERRIDING SYSTEM VALUE
                SELECT workspace_id, $1, user_id FROM ids
            )
            INSERT INTO users (id, workspace_id, fullname, email, password_hash, role) OVERRIDING SYSTEM VALUE
            SELECT user_id, workspace_id, $2, $3, $4, 'owner' FROM ids
            RETURNING id, workspace_id, fullname, email, password_hash, role::text AS "role!",
                      deactivated_at IS NOT NULL AS "is_deactivated!", created_at
            "#,
            workspace,
            user.fullname,
            user.email,
            user.password_hash
        )
        .fetch_one(&mut *self.0)
        .await?
        .try_into()
    }

    /// Adds a member to an existing workspace.
    pub async fn insert(&mut self, workspace: WorkspaceId, user: &NewUser<'_>) -> Result<UserRow, Error> {
        sqlx::query_as!(
            Row,
            r#"
            INSERT INTO users (workspace_id, fullname, email, password_hash) VALUES ($1, $2, $3, $4)
            RETURNING id, workspace_id, fullname, email, password_hash, role::text AS "role!",
                      deactivated_at IS NOT NULL AS "is_deactivated!", created_at
            "#,
            workspace.0,
            user.fullname,
            user.email,
            user.password_hash
        )
        .fetch_one(&mut *self.0)
        .await?
        .try_into()
    }

    pub async fn find_by_email(&mut self, email: &str) -> Result<Option<UserRow>, Error> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT id, workspace_id, fullname, email, password_hash, role::text AS "role!",
                   deactivated_at IS NOT NULL AS "is_deactivated!", created_at
            FROM users WHERE lower(email) = lower($1)
            "#,
            email
        )
        .fetch_optional(&mut *self.0)
        .await?
        .map(TryInto::try_into)
        .transpose()
    }

    /// Finds a user of this workspace.
    pub async fn find(&mut self, workspace: WorkspaceId, id: UserId) -> Result<Option<UserRow>, Error> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT id, workspace_id, fullname, email, password_hash, role::text AS "role!",
                   deactivated_at IS NOT NULL AS "is_deactivated!", created_at
            FROM users WHERE workspace_id = $1 AND id = $2
            "#,
            workspace.0,
            id.0
        )
        .fetch_optional(&mut *self.0)
        .await?
        .map(TryInto::try_into)
        .transpose()
    }

    /// Like [`Self::find`], and holds the row until the transaction ends.
    pub async fn lock(&mut self, workspace: WorkspaceId, id: UserId) -> Result<Option<UserRow>, Error> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT id, workspace_id, fullname, email, password_hash, role::text AS "role!",
                   deactivated_at IS NOT NULL AS "is_deactivated!", created_at
            FROM users WHERE workspace_id = $1 AND id = $2 FOR NO KEY UPDATE
            "#,
            workspace.0,
            id.0
        )
        .fetch_optional(&mut *self.0)
        .await?
        .map(TryInto::try_into)
        .transpose()
    }

    /// Active users of a workspace by id, after `after`.
    pub async fn list(&mut self, workspace: WorkspaceId, after: i64, limit: i64) -> Result<Vec<UserView>, Error> {
        sqlx::query_as!(
            Row,
            r#"
            SELECT id, workspace_id, fullname, email, '' AS "password_hash!", role::text AS "role!",
                   false AS "is_deactivated!", created_at
            FROM users WHERE workspace_id = $1 AND id > $2 AND deactivated_at IS NULL ORDER BY id LIMIT $3
            "#,
            workspace.0,
            after,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?
        .into_iter()
        .map(|row| UserRow::try_from(row).map(|user| user.view))
        .collect()
    }

    /// Which of `ids` are active users of the workspace.
    pub async fn active_among(&mut self, workspace: WorkspaceId, ids: &[i64]) -> Result<Vec<i64>, Error> {
        Ok(sqlx::query_scalar!(
            "SELECT id FROM users WHERE workspace_id = $1 AND id = ANY($2) AND deactivated_at IS NULL ORDER BY id",
            workspace.0,
            ids
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    pub async fn set_role(&mut self, id: UserId, role: Role) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE users SET role = ($2::text)::user_role, updated_at = now() WHERE id = $1",
            id.0,
            role.as_str()
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub async fn set_fullname(&mut self, id: UserId, fullname: &str) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE users SET fullname = $2, updated_at = now() WHERE id = $1",
            id.0,
            fullname
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub async fn deactivate(&mut self, id: UserId) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE users SET deactivated_at = now(), updated_at = now() WHERE id = $1 AND deactivated_at IS NULL",
            id.0
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub async fn set_password_hash(&mut self, id: UserId, hash: &str) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE users SET password_hash = $2, updated_at = now() WHERE id = $1",
            id.0,
            hash
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}
