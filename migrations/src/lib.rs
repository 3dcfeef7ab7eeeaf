//! The database schema: numbered SQL files beside this crate's `src`, embedded as [`MIGRATOR`].
//!
//! Forward only; expand first and contract a release later, so that the previous release runs on the new schema.

mod lost;
#[cfg(feature = "rows")]
pub mod rows;

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
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
            .fetch_all(pool)
            .await?
    } else {
        Vec::new()
    };
    Ok(MIGRATOR
        .iter()
        .map(|migration| migration.version)
        .filter(|version| !applied.contains(version))
        .collect())
}

/// The encoding of the database when it is not the one that the schema needs: names are compared by Unicode's rules, which
/// PostgreSQL knows in UTF-8 alone.
pub async fn wrong_encoding(pool: &sqlx::PgPool) -> Result<Option<String>, sqlx::Error> {
    let encoding: String = sqlx::query_scalar("SELECT current_setting('server_encoding')")
        .fetch_one(pool)
        .await?;
    Ok((encoding != "UTF8").then_some(encoding))
}

/// For `/health`: whether the database answers.
pub async fn check(pool: sqlx::PgPool) -> Result<Option<String>, String> {
    sqlx::query("SELECT 1")
        .execute(&pool)
        .await
        .map(|_| None)
        .map_err(|error| error.to_string())
}

/// Whether the database could not be asked at all, as opposed to having refused: what failed may work in a moment.
pub fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => true,
        // 57P: shutting down or starting; 08: connection; 53: out of resources; 40: try again; 55000: not accepting connections;
        // 55P03: a row was held for too long.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            let classes = ["57P", "08", "53", "40"];
            classes.iter().any(|class| code.starts_with(class)) || ["55000", "55P03"].contains(&code.as_ref())
        }),
        _ => false,
    }
}

/// Why a service cannot use its database; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL does not parse; it is not repeated here because it holds a password.
    #[error("database.url is not a PostgreSQL URL (postgres://user:password@host:port/database)")]
    Url(#[source] sqlx::Error),
    #[error("the database did not answer within {seconds} s")]
    Unreachable {
        seconds: u64,
        #[source]
        source: sqlx::Error,
    },
    #[error("the database lacks migrations {0:?}; run the `migrations` binary first")]
    Pending(Vec<i64>),
}

/// A connection that was used this lately is not asked whether it lives, unless connections were lost meanwhile.
const TRUSTED_FOR: std::time::Duration = std::time::Duration::from_secs(1);

/// How long a service waits for its database at start.
const OPEN_SECONDS: u64 = 30;

/// Opens the pool of a service: waits up to 30 s for the database and refuses one that lacks migrations.
///
/// One connection more than `max_connections` notices when PostgreSQL drops them all.
pub async fn open(url: &str, max_connections: u32) -> Result<sqlx::PgPool, OpenError> {
    let options: sqlx::postgres::PgConnectOptions = url.parse().map_err(OpenError::Url)?;
    let options = sqlx::ConnectOptions::log_slow_statements(
        sqlx::ConnectOptions::log_statements(options, log::LevelFilter::Trace),
        log::LevelFilter::Warn,
        std::time::Duration::from_secs(1),
    );
    let lost = lost::Lost::new();
    let seen = lost.clone();
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(max_connections)
        // A request that cannot get a connection in this time answers 503 instead of queueing for ever.
        .acquire_timeout(std::time::Duration::from_secs(5))
        // A round trip that asks whether a connection lives costs a busy server as much as some queries do. One that worked a
        // moment ago does.
        .test_before_acquire(false)
        .before_acquire(move |connection, past| {
            let doubtful = past.idle_for >= TRUSTED_FOR || seen.within(past.idle_for);
            Box::pin(async move {
                if doubtful {
                    sqlx::Connection::ping(connection).await?;
                }
                Ok(true)
            })
        })
        // Nor does one for a row that somebody else holds, nor hold rows for ever itself. The relay says so where it
        // waits longer. As statements, since poolers refuse most parameters of a connection.
        .after_connect(|connection, _| {
            Box::pin(async move {
                let settings = "SET lock_timeout = '3s'; SET idle_in_transaction_session_timeout = '90s'";
                sqlx::Executor::execute(connection, settings).await.map(|_| ())
            })
        })
        .connect_lazy_with(options.clone());
    lost.watch(&pool, options);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(OPEN_SECONDS);
    loop {
        match pending(&pool).await {
            Ok(missing) if missing.is_empty() => return Ok(pool),
            Ok(missing) => return Err(OpenError::Pending(missing)),
            Err(source) if tokio::time::Instant::now() >= deadline => {
                return Err(OpenError::Unreachable {
                    seconds: OPEN_SECONDS,
                    source,
                });
            }
            Err(error) => {
                tracing::warn!(%error, "database not reachable yet");
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        }
    }
}
