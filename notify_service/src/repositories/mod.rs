//! SQL and nothing else; each function borrows the pool. The role may read users, chats and members, and add dead letters.

pub mod dead_letters;
pub mod membership;

/// Whether PostgreSQL answers.
pub async fn ping(pool: &sqlx::PgPool) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT 1 AS "one!""#)
        .fetch_one(pool)
        .await
        .map(drop)
}
