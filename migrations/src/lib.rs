//! The database schema: numbered SQL files beside this crate's `src`, embedded as [`MIGRATOR`].
//!
//! Forward only; expand first and contract a release later, so that the previous release runs on the new schema.

/// All migrations, in order.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// Migrations this build knows that the database has not applied; a service refuses to start while there are any.
///
/// Unknown, newer migrations are fine: an old replica lives through a rollout.
pub async fn pending(pool: &sqlx::PgPool) -> Result<Vec<i64>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('public._sqlx_migrations') IS NOT NULL")
        .fetch_one(pool)
        .await?;
    let applied: Vec<i64> = if exists {
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(pool).await?
    } else {
        Vec::new()
    };
    Ok(MIGRATOR.iter().map(|migration| migration.version).filter(|version| !applied.contains(version)).collect())
}
