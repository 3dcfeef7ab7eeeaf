//! Sessions and their rotating refresh tokens.

use fechatter_core::{UserId, WorkspaceId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

pub struct Sessions<'c>(pub(super) &'c mut PgConnection);

/// A session as its user sees it.
#[derive(Debug, Clone)]
pub struct SessionRow {
    pub id: Uuid,
    pub user_agent: Option<String>,
    pub address: Option<String>,
    pub created_at: OffsetDateTime,
    pub last_used_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
}

/// What a new session needs.
#[derive(Debug)]
pub struct NewSession<'a> {
    pub id: Uuid,
    pub workspace_id: WorkspaceId,
    pub user_id: UserId,
    pub user_agent: Option<&'a str>,
    pub address: Option<&'a str>,
    pub expires_at: OffsetDateTime,
}

/// A refresh token with its session, both locked.
#[derive(Debug, Clone)]
pub struct RefreshRow {
    pub session_id: Uuid,
    pub workspace_id: i64,
    pub user_id: i64,
    pub token_expires_at: OffsetDateTime,
    pub used_at: Option<OffsetDateTime>,
    pub session_expires_at: OffsetDateTime,
    pub revoked_at: Option<OffsetDateTime>,
}

impl Sessions<'_> {
    pub async fn insert(&mut self, session: &NewSession<'_>) -> Result<(), Error> {
        sqlx::query!(
            "INSERT INTO sessions (id, workspace_id, user_id, user_agent, address, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
            session.id,
            session.workspace_id.0,
            session.user_id.0,
            session.user_agent,
            session.address,
            session.expires_at
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub async fn insert_refresh_token(
        &mut self,
        hash: &[u8],
        session: Uuid,
        expires_at: OffsetDateTime,
    ) -> Result<(), Error> {
        sqlx::query!(
            "INSERT INTO refresh_tokens (token_hash, session_id, expires_at) VALUES ($1, $2, $3)",
            hash,
            session,
            expires_at
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Finds a refresh token and locks it and its session, the session first.
    pub async fn lock_refresh_token(&mut self, hash: &[u8]) -> Result<Option<RefreshRow>, Error> {
        let Some(session) = sqlx::query_scalar!("SELECT session_id FROM refresh_tokens WHERE token_hash = $1", hash)
            .fetch_optional(&mut *self.0)
            .await?
        else {
            return Ok(None);
        };
        sqlx::query!("SELECT id FROM sessions WHERE id = $1 FOR UPDATE", session)
            .fetch_one(&mut *self.0)
            .await?;
        Ok(sqlx::query_as!(
            RefreshRow,
            "SELECT s.id AS session_id, s.workspace_id, s.user_id, t.expires_at AS token_expires_at, t.used_at,
                    s.expires_at AS session_expires_at, s.revoked_at
             FROM refresh_tokens AS t JOIN sessions AS s ON s.id = t.session_id WHERE t.token_hash = $1",
            hash
        )
        .fetch_optional(&mut *self.0)
        .await?)
    }

    /// Marks a refresh token as used and the session as alive.
    pub async fn use_refresh_token(&mut self, hash: &[u8], session: Uuid) -> Result<(), Error> {
        sqlx::query!("UPDATE refresh_tokens SET used_at = now() WHERE token_hash = $1", hash)
            .execute(&mut *self.0)
            .await?;
        sqlx::query!("UPDATE sessions SET last_used_at = now() WHERE id = $1", session)
            .execute(&mut *self.0)
            .await?;
        // Used tokens betray thieves for as long as they would have been valid, no longer.
        sqlx::query!(
            "DELETE FROM refresh_tokens WHERE session_id = $1 AND expires_at < now()",
            session
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Whether somebody has signed in to this account from this address (of IPv6 a network) before. Sessions are remembered for a
    /// month after their end.
    pub async fn was_here(&mut self, email: &str, address: &str) -> Result<bool, Error> {
        Ok(sqlx::query_scalar!(
            r#"SELECT EXISTS (
                SELECT FROM users AS u JOIN sessions AS s ON s.user_id = u.id
                WHERE lower(u.email) = lower($1) AND s.address::inet <<= $2::text::inet) AS "was_here!""#,
            email,
            address
        )
        .fetch_one(&mut *self.0)
        .await?)
    }

    /// Live sessions of a user, the latest used first; one that can no longer be refreshed is none.
    pub async fn list(&mut self, user: UserId) -> Result<Vec<SessionRow>, Error> {
        Ok(sqlx::query_as!(
            SessionRow,
            "SELECT id, user_agent, address, created_at, last_used_at, expires_at FROM sessions
             WHERE user_id = $1 AND revoked_at IS NULL AND expires_at > now()
               AND EXISTS (SELECT FROM refresh_tokens AS t
                           WHERE t.session_id = sessions.id AND t.used_at IS NULL AND t.expires_at > now())
             ORDER BY last_used_at DESC, id LIMIT 1000",
            user.0
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    /// Ends one session of a user; `false` when there is no such live session.
    pub async fn revoke(&mut self, user: UserId, session: Uuid) -> Result<bool, Error> {
        let done = sqlx::query!(
            "UPDATE sessions SET revoked_at = now() WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL",
            session,
            user.0
        )
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Ends all live sessions of a user but `except`, and returns which.
    pub async fn revoke_all(&mut self, user: UserId, except: Option<Uuid>) -> Result<Vec<Uuid>, Error> {
        Ok(sqlx::query_scalar!(
            "UPDATE sessions SET revoked_at = now()
             WHERE user_id = $1 AND revoked_at IS NULL AND id IS DISTINCT FROM $2 RETURNING id",
            user.0,
            except
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    /// Forgets sessions that ended a month ago and their tokens, at most `limit`, and says how many.
    pub async fn forget_ended(&mut self, limit: i64) -> Result<u64, Error> {
        let done = sqlx::query!(
            "DELETE FROM sessions WHERE id IN (
                SELECT id FROM sessions WHERE expires_at < now() - interval '30 days'
                ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
            limit
        )
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected())
    }
}
