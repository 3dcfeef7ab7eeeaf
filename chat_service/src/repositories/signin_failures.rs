//! Failed sign-ins by account, by account and address, and by address, shared by all replicas.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::Error;

pub struct SigninFailures<'c>(pub(super) &'c mut PgConnection);

/// Whose failures are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// An account, tried from addresses that are not usual for it.
    Account,
    /// An account, tried from one address.
    Guess,
    /// An address, whatever accounts it tries.
    Address,
}

/// How often a subject failed, and when it did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures {
    pub of: Subject,
    pub count: i32,
    pub last: OffsetDateTime,
}

/// A sign-in as it is counted. Without an address all that have none are one.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    pub email: &'a str,
    pub address: Option<&'a str>,
    /// Whether the account has signed in from this address before: others' failures elsewhere do not concern it then.
    pub is_usual: bool,
}

/// How many failures cost nothing, and how slow the slowest are.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub account: i32,
    pub guess: i32,
    pub slowest_seconds: i64,
}

impl SigninFailures<'_> {
    /// The failures that concern an attempt, as far as there are some. The account is named as `users_email_key` names it.
    pub async fn of(&mut self, attempt: &Attempt<'_>) -> Result<Vec<Failures>, Error> {
        let rows = sqlx::query!(
            r#"SELECT split_part(subject, ':', 1) AS "kind!", failures, last_failed_at FROM signin_failures
               WHERE subject IN ('account:' || lower($1), 'guess:' || coalesce($2, '') || ' ' || lower($1), 'address:' || $2)"#,
            attempt.email,
            attempt.address
        )
        .fetch_all(&mut *self.0)
        .await?;
        let failures = rows.into_iter().map(|row| Failures {
            of: match row.kind.as_str() {
                "account" => Subject::Account,
                "guess" => Subject::Guess,
                _ => Subject::Address,
            },
            count: row.failures,
            last: row.last_failed_at,
        });
        Ok(failures.collect())
    }

    /// Counts an attempt on an account as a failure before it is known to be one, so that attempts at the same time see each
    /// other; `false` when it has to wait, and the caller rolls back.
    ///
    /// What `patience` allows costs nothing; then the wait doubles from a second up to the slowest. An hour's quiet forgets.
    pub async fn charge(&mut self, attempt: &Attempt<'_>, patience: &Patience) -> Result<bool, Error> {
        let counted = sqlx::query_scalar!(
            r#"
            INSERT INTO signin_failures AS f (subject, failures, last_failed_at)
            SELECT subject, 1, now()
            FROM (VALUES ('account:' || lower($1)), ('guess:' || coalesce($2, '') || ' ' || lower($1))) AS given (subject)
            WHERE subject LIKE 'guess:%' OR NOT $3 ORDER BY subject
            ON CONFLICT (subject) DO UPDATE SET
                failures = CASE WHEN f.last_failed_at < now() - interval '1 hour' THEN 1
                                ELSE least(f.failures + 1, 1000) END,
                last_failed_at = now()
            WHERE f.failures < CASE WHEN f.subject LIKE 'guess:%' THEN $4::integer ELSE $5::integer END
               OR f.last_failed_at + interval '1 second' * least($6::bigint,
                    2 ^ least(f.failures - CASE WHEN f.subject LIKE 'guess:%' THEN $4 ELSE $5 END, 20)) <= now()
            RETURNING failures
            "#,
            attempt.email,
            attempt.address,
            attempt.is_usual,
            patience.guess,
            patience.account,
            patience.slowest_seconds
        )
        .fetch_all(&mut *self.0)
        .await?;
        Ok(counted.len() == if attempt.is_usual { 1 } else { 2 })
    }

    /// Takes back what [`Self::charge`] counted for an attempt that was not made.
    pub async fn refund(&mut self, attempt: &Attempt<'_>) -> Result<(), Error> {
        sqlx::query!(
            "WITH given AS (
                SELECT subject, failures FROM signin_failures
                WHERE subject IN ('guess:' || coalesce($2, '') || ' ' || lower($1),
                                  CASE WHEN NOT $3 THEN 'account:' || lower($1) END)
                ORDER BY subject FOR UPDATE
            ), forgotten AS (
                DELETE FROM signin_failures AS f USING given WHERE f.subject = given.subject AND given.failures = 1
            )
            UPDATE signin_failures AS f SET failures = f.failures - 1
            FROM given WHERE f.subject = given.subject AND given.failures > 1",
            attempt.email,
            attempt.address,
            attempt.is_usual
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Forgets what an attempt that succeeded was charged with, and half of the failures of its address.
    pub async fn forgive(&mut self, attempt: &Attempt<'_>) -> Result<(), Error> {
        sqlx::query!(
            "DELETE FROM signin_failures WHERE subject IN ('guess:' || coalesce($2, '') || ' ' || lower($1),
                                                           CASE WHEN NOT $3 THEN 'account:' || lower($1) END)",
            attempt.email,
            attempt.address,
            attempt.is_usual
        )
        .execute(&mut *self.0)
        .await?;
        if let Some(address) = attempt.address {
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
