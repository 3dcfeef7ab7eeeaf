//! Applies pending migrations: the job that runs before the services of a release start.

use anyhow::Context;
use clap::Parser;

/// Applies pending migrations to the database and exits.
#[derive(Parser)]
#[command(name = "migrations", version)]
struct Args {
    /// URL of the database, of a role that owns the schema.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(std::time::Duration::from_secs(30))
        .connect(&args.database_url)
        .await
        .context("cannot connect to the database")?;
    let encoding = migrations::wrong_encoding(&pool)
        .await
        .context("cannot read the encoding of the database")?;
    if let Some(encoding) = encoding {
        anyhow::bail!(
            "the database is encoded in {encoding}, and UTF8 is needed; make one by \
             CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        );
    }
    let pending = migrations::pending(&pool)
        .await
        .context("cannot read the applied migrations")?;
    migrations::MIGRATOR
        .run(&pool)
        .await
        .context("a migration failed; nothing of it was kept")?;
    #[expect(clippy::print_stdout, reason = "the result of a command for operators")]
    {
        println!("applied {} migrations, schema is current", pending.len());
    }
    Ok(())
}
