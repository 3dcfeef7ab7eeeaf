//! Events that could not be read, kept whole for an operator.

use sqlx::PgPool;

use crate::frame::Cursor;

/// Keeps an event once, however many processes come upon it.
pub async fn keep(pool: &PgPool, at: Cursor, subject: &str, reason: &str, body: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO dead_letters (consumer, stream_epoch, stream_sequence, subject, reason, deliveries, body)
         VALUES ('notify_service', $1, $2, $3, $4, 1, $5)
         ON CONFLICT (consumer, stream_epoch, stream_sequence) DO NOTHING",
        at.epoch,
        i64::try_from(at.sequence).unwrap_or(i64::MAX),
        subject,
        reason,
        body
    )
    .execute(pool)
    .await
    .map(drop)
}
