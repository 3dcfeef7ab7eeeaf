//! Failed sign-ins by account and by address, shared by all replicas.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::Error;

pub struct SigninFailures<'c>(pub(super) &'c mut PgConnection);

/// How often a subject failed, and when it did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures {
    /// Of an account, else of an address.
    pub is_account: bool,
    pub count: i32,
    pub last: OffsetDateTime,
}

impl SigninFailures<'_> {
    /// The failures of an account and of an address, as far as there are some.
    pub async fn of(&mut self, email: &str, address: Option<&str>) -> Result<Vec<Failures>, Error> {
        Ok(sqlx::query_as!(
            Failures,
            r#"SELECT subject LIKE 'account:%' AS "is_account!", failures AS count, last_failed_at AS last FROM signin_failures
               WHERE subject IN ('account:' || lower($1), 'address:' || $2)"#,
            email,
            address
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    /// Counts an attempt on an account as a failure before it is known to be one, so that attempts at the same time see each
    /// other; `false`, and nothing counted, when the account has to wait. The account is named as `users_email_key` names it.
    ///
    /// `free` failures cost nothing; then the wait doubles from a second up to `slowest` seconds. An hour's quiet forgets.
    pub async fn charge_account(&mut self, email: &str, free: i32, slowest: i64) -> Result<bool, Error> {
        let counted = sqlx::query_scalar!(
            r#"
            INSERT INTO signin_failures AS f (subject, failures, last_failed_at)
            VALUES ('account:' || lower($1), 1, now())
            ON CONFLICT (subject) DO UPDATE SET
                failures = CASE WHEN f.last_failed_at < now() - interval '1 hour' THEN 1
                                ELSE least(f.failures + 1, 1000) END,
                last_failed_at = now()
            WHERE f.failures < $2
               OR f.last_failed_at + least(2 ^ least(f.failures - $2, 20), $3::bigint) * interval '1 second' <= now()
            RETURNING failures
            "#,
            email,
            free,
            slowest
        )
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(counted.is_some())
    }

    /// Takes back what [`Self::charge_account`] counted for an attempt that was not made.
    pub async fn refund_account(&mut self, email: &str) -> Result<(), Error> {
        let deleted = sqlx::query!(
            "DELETE FROM signin_failures WHERE subject = 'account:' || lower($1) AND failures = 1",
            email
        )
        .execute(&mut *self.0)
        .await?;
        if deleted.rows_affected() == 0 {
            sqlx::query!(
                "UPDATE signin_failures SET failures = failures - 1
                 WHERE subject = 'account:' || lower($1) AND failures > 1",
                email
            )
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }

    /// Forgets an account's failures, and half of those of the address that it succeeded from.
    pub async fn forgive(&mut self, email: &str, address: Option<&str>) -> Result<(), Error> {
        sqlx::query!(
            "DELETE FROM signin_failures WHERE subject = 'account:' || lower($1)",
            email
        )
        .execute(&mut *self.0)
        .await?;
        if let Some(address) = address {
            sqlx::query!(
                "UPDATE signin_failures SET failures = failures / 2 WHERE subject = 'address:' || $1 AND failures > 1",
                address
            )
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }

    /// Counts a failure of an address, and forgets a few subjects that were quiet for an hour, so that the table does not grow
    /// with the attackers' imagination.
    pub async fn count_address(&mut self, address: Option<&str>) -> Result<(), Error> {
        sqlx::query!(
            r#"
            INSERT INTO signin_failures AS f (subject, failures, last_failed_at)
            SELECT 'address:' || address, 1, now() FROM (VALUES ($1::text)) AS given (address) WHERE address IS NOT NULL
            ON CONFLICT (subject) DO UPDATE SET
                failures = CASE WHEN f.last_failed_at < now() - interval '1 hour' THEN 1
                                ELSE least(f.failures + 1, 1000) END,
                last_failed_at = now()
            "#,
            address
        )
        .execute(&mut *self.0)
        .await?;
        sqlx::query!(
            r#"
            DELETE FROM signin_failures WHERE subject IN (
                SELECT subject FROM signin_failures WHERE last_failed_at < now() - interval '1 hour'
                ORDER BY last_failed_at LIMIT 16 FOR UPDATE SKIP LOCKED)
            "#
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}
