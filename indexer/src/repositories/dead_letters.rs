//! Events that could not be processed, kept whole for an operator.

use sqlx::PgPool;
use uuid::Uuid;

/// An event to be kept.
#[derive(Debug, Clone)]
pub struct DeadLetter<'a> {
    pub consumer: &'a str,
    /// The stream's history; nil when the event did not say, so that it is kept once all the same.
    pub stream_epoch: Uuid,
    pub stream_sequence: i64,
    pub subject: &'a str,
    pub reason: &'a str,
    pub deliveries: i64,
    pub body: &'a [u8],
}

/// Keeps an event; one that is already kept has its reason and deliveries renewed.
///
/// PostgreSQL's text holds no U+0000, which an event may bring into either text; U+FFFD stands for it.
pub async fn keep(pool: &PgPool, letter: &DeadLetter<'_>) -> Result<(), sqlx::Error> {
    let storable = |text: &str| text.replace('\0', "\u{FFFD}");
    sqlx::query!(
        r#"INSERT INTO dead_letters (consumer, stream_epoch, stream_sequence, subject, reason, deliveries, body)
           VALUES ($1, $2, $3, $4, $5, $6, $7)
           ON CONFLICT (consumer, stream_epoch, stream_sequence)
           DO UPDATE SET reason = EXCLUDED.reason, deliveries = EXCLUDED.deliveries, replayed_at = NULL"#,
        letter.consumer,
        letter.stream_epoch,
        letter.stream_sequence,
        storable(letter.subject),
        storable(letter.reason),
        letter.deliveries,
        letter.body
    )
    .execute(pool)
    .await
    .map(drop)
}
