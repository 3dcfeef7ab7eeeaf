//! SQL and nothing else; each function borrows a connection or the pool. The role may read users, chats, members and
//! messages, and write dead letters.

pub mod access;
pub mod dead_letters;
pub mod messages;

/// Whether PostgreSQL answers.
pub async fn ping(pool: &sqlx::PgPool) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT 1 AS "one!""#)
        .fetch_one(pool)
        .await
        .map(drop)
}
