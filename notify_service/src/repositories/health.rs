//! Whether the database answers.

use sqlx::PgPool;

/// For `/health`.
pub async fn ping(pool: PgPool) -> Result<Option<String>, String> {
    sqlx::query_scalar!("SELECT 1")
        .fetch_one(&pool)
        .await
        .map(|_| None)
        .map_err(|error| error.to_string())
}
