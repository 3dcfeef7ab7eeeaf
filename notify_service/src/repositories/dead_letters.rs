//! Events that could not be read, kept whole for an operator.

use sqlx::PgPool;
use uuid::Uuid;

/// Name of this consumer in `dead_letters`.
const CONSUMER: &str = "notify_service";

/// An event to be kept.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The stream's history; nil when the event did not say, so that it is kept once all the same.
    pub epoch: Uuid,
    pub sequence: u64,
    pub subject: String,
    pub reason: String,
    pub body: bytes::Bytes,
}

/// Keeps an event; every replica meets it, the first one keeps it.
pub async fn keep(pool: &PgPool, letter: &DeadLetter) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"INSERT INTO dead_letters (consumer, stream_epoch, stream_sequence, subject, reason, deliveries, body)
           VALUES ($1, $2, $3, $4, $5, 1, $6)
           ON CONFLICT (consumer, stream_epoch, stream_sequence) DO NOTHING"#,
        CONSUMER,
        letter.epoch,
        i64::try_from(letter.sequence).unwrap_or(i64::MAX),
        letter.subject,
        letter.reason,
        &letter.body[..]
    )
    .execute(pool)
    .await
    .map(drop)
}
