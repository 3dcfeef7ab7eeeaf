//! The chat_service process: configuration, pool, relay, listeners, drain. No logic.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use fechatter_core::health::Status;
use secrecy::ExposeSecret;
use service_runtime::process::{self, Process};
use service_runtime::{admin, health, nats, openapi, serve};

use chat_service::config::{Config, ENV_PREFIX};
use chat_service::outbox_relay::{self, Wake};
use chat_service::signing_keys::{self, SigningKeys};
use chat_service::{AppState, reconcile, router};

#[global_allocator]
static ALLOCATOR: service_runtime::heap::Allocator = service_runtime::heap::allocator();

/// Identity, chats, messages and the outbox relay of Fechatter.
#[derive(Parser)]
#[command(name = "chat_service", version)]
struct Args {
    /// TOML file; environment variables FECHATTER_CHAT__… go over it.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Works on the signing keys.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Compares outbox, stream and index, and mends them with --repair.
    ///
    /// Works with this service's rights, beside running services. Exit codes: 0 all agree, 1 something differs (still), 2 could not
    /// look.
    Reconcile(reconcile::Args),
    /// Prints the OpenAPI document of this service's routes.
    Openapi,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Makes a new key; replicas publish it at once and sign with it two minutes later (`auth.key_activation_seconds`).
    New {
        /// Folder of the keys (`auth.keys_dir`).
        #[arg(long)]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut reconciling = None;
    match args.command {
        Some(Command::Keys {
            command: KeysCommand::New { dir },
        }) => return new_key(&dir),
        Some(Command::Openapi) => return openapi::print(&chat_service::document()),
        Some(Command::Reconcile(options)) => reconciling = Some(options),
        None => {}
    }
    match process::load::<Config>(ENV_PREFIX, args.config.as_deref()) {
        Ok(config) => {
            if let Some(options) = reconciling {
                return process::command(|| reconcile::run(config, options));
            }
            let log = config.log.clone();
            process::run("chat_service", &log, |process| serve(config, process))
        }
        Err(code) => code,
    }
}

fn new_key(dir: &Path) -> ExitCode {
    match signing_keys::generate(dir) {
        Ok(path) => {
            process::complain(&format!("new signing key {}", path.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            process::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, process: Process) -> anyhow::Result<()> {
    process.delay_shutdown(config.drain_delay_ms);
    let (draining, shutdown) = (process.draining, process.shutdown);
    let keys = SigningKeys::open(&config.auth.keys_dir, config.auth.key_activation_seconds)?;
    let pool = migrations::open(config.database.url.expose_secret(), config.database.max_connections).await?;
    let observed = (pool.clone(), pool.clone());
    observability::pool::observe(observability::pool::Pool {
        max: config.database.max_connections,
        open: move || observed.0.size(),
        idle: move || observed.1.num_idle(),
    });
    let client = nats::connect(&config.nats, "chat").await?;

    let wake = Arc::new(Wake::default());
    let (relay, relay_status) = outbox_relay::spawn(
        pool.clone(),
        client.clone(),
        config.outbox.clone(),
        config.nats.stream_replicas,
        Arc::clone(&wake),
        shutdown.clone(),
    );
    let state = AppState::new(&config, pool.clone(), wake, keys.clone())?;
    tokio::spawn(keys.watch(Arc::clone(&state.authenticator.verifier), shutdown.clone()));

    tokio::spawn(state.sessions.clone().keep_tidy(shutdown.clone()));
    tokio::spawn(state.users.inheritance.clone().keep_settled(shutdown.clone()));

    let watched_pool = pool.clone();
    let database = health::Watch::spawn(move || migrations::check(watched_pool.clone()), shutdown.clone());
    let health_pool = pool.clone();
    let checks = health::Checks::default()
        .with("postgres", Status::Down, move || migrations::check(health_pool.clone()))
        // Sending goes on without NATS; delivery catches up.
        .with("nats", Status::Degraded, move || nats::check(&client))
        .with("outbox", Status::Degraded, move || {
            let result = relay_status.check();
            async move { result }
        });
    let listener = serve::bind(config.listen, "listen").await?;
    let admin_stop = tokio_util::sync::CancellationToken::new();
    let admin_routes = admin::router(draining.clone(), move || database.check("PostgreSQL does not answer"));
    admin::serve(config.admin_listen, admin_routes, admin_stop.clone()).await?;
    tracing::info!(listen = %config.listen, admin = %config.admin_listen, "listening");

    let options = serve::Options {
        drain: Duration::from_secs(config.drain_seconds),
        ..serve::Options::default()
    };
    let app = router(state, checks.routes(draining));
    let relay_guard = process::critical("outbox relay", &shutdown, relay);
    tokio::pin!(relay_guard);
    tokio::select! {
        () = serve::serve(listener, app, shutdown.clone(), options) => relay_guard.await?,
        result = &mut relay_guard => result?,
    }
    admin_stop.cancel();
    pool.close().await;
    Ok(())
}
