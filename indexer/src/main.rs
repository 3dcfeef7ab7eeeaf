//! The indexer process: configuration, pool, engine, consumer, listeners, drain. No logic.

mod command;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use fechatter_core::health::Status;
use fechatter_core::token::Verifier;
use secrecy::ExposeSecret;
use service_runtime::auth::Authenticator;
use service_runtime::process::{self, Process};
use service_runtime::{admin, health, jwks, nats, openapi, serve};

use indexer::config::{Config, ENV_PREFIX, EngineKind};
use indexer::consumer::Consumer;
use indexer::engine::SearchEngine;
use indexer::engine::embedded::{self, EmbeddedEngine};
use indexer::engine::meilisearch::{self, MeilisearchEngine};
use indexer::metrics::Metrics;
use indexer::services::consistency::Consistency;
use indexer::services::indexing::Indexing;
use indexer::services::reindex::Reindex;
use indexer::services::search::SearchService;
use indexer::services::turn::Turn;
use indexer::{AppState, handlers, router};

#[global_allocator]
static ALLOCATOR: service_runtime::heap::Allocator = service_runtime::heap::allocator();

/// Search for Fechatter: indexes messages and answers searches.
#[derive(Parser)]
#[command(name = "indexer", version)]
struct Args {
    /// TOML file; environment variables FECHATTER_INDEXER__… go over it.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Rebuilds the index from PostgreSQL while the running indexer serves, and shows how it goes.
    ///
    /// Asks the indexer that runs with this configuration, by its admin listener; when none runs, rebuilds by itself.
    Reindex,
    /// Compares the index with PostgreSQL, message by message, and fails when they differ.
    ///
    /// Asks the indexer that runs with this configuration, by its admin listener; when none runs, compares by itself.
    Consistency,
    /// Lists, shows, replays and drops events that could not be indexed.
    ///
    /// A replay is done by the indexer that runs with this configuration, or here when none runs.
    DeadLetters {
        #[command(subcommand)]
        command: dead_letters::command::Command,
    },
    /// Prints the OpenAPI document of this service's routes.
    Openapi,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if matches!(args.command, Some(Command::Openapi)) {
        return openapi::print(&indexer::document());
    }
    match process::load::<Config>(ENV_PREFIX, args.config.as_deref()) {
        Ok(config) => {
            let args_command = match args.command {
                Some(Command::DeadLetters { command }) => {
                    return process::command(|| command::dead_letters(config, command));
                }
                other => other,
            };
            let log = config.log.clone();
            process::run("indexer", &log, |process| async move {
                match args_command {
                    Some(Command::Reindex) => command::reindex(config, process).await,
                    Some(Command::Consistency) => command::consistency(config, process).await,
                    _ => run(config, process).await,
                }
            })
        }
        Err(code) => code,
    }
}

/// Opens the configured engine.
fn open_engine(config: &Config) -> anyhow::Result<Arc<dyn SearchEngine>> {
    let engine = &config.engine;
    Ok(match engine.kind {
        EngineKind::Embedded => Arc::new(EmbeddedEngine::open(embedded::Options {
            folder: engine.path.clone(),
            writer_memory: engine.writer_memory_mb * 1_000_000,
            concurrent_searches: engine.concurrent_searches,
            min_free: engine.min_free_mb * 1_000_000,
        })?),
        EngineKind::Meilisearch => Arc::new(MeilisearchEngine::new(&meilisearch::Options {
            url: engine.meili_url.clone(),
            key: engine.meili_key.clone(),
            index: engine.meili_index.clone(),
        })?),
    })
}

async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    process.delay_shutdown(config.drain_delay_ms);
    let (draining, shutdown) = (process.draining, process.shutdown);
    let pool = migrations::open(config.database.url.expose_secret(), config.database.max_connections).await?;
    let observed = (pool.clone(), pool.clone());
    observability::pool::observe(observability::pool::Pool {
        max: config.database.max_connections,
        open: move || observed.0.size(),
        idle: move || observed.1.num_idle(),
    });
    let engine = open_engine(&config)?;
    let client = nats::connect(&config.nats, "indexer").await?;

    let verifier = Arc::new(Verifier::new(
        &config.auth.issuer,
        &config.auth.audience,
        config.auth.remembered_tokens,
    ));
    let refresher = jwks::spawn(config.auth.jwks_url.clone(), Arc::clone(&verifier), shutdown.clone());

    let metrics = Metrics::default();
    let indexing = Arc::new(Indexing::new(
        pool.clone(),
        Arc::clone(&engine),
        metrics.clone(),
        config.batch.max_deliveries,
        shutdown.clone(),
    ));
    let reindex = Reindex::new(
        pool.clone(),
        Arc::clone(&engine),
        config.reindex.clone(),
        shutdown.clone(),
    );
    let consistency = Consistency::new(
        pool.clone(),
        Arc::clone(&engine),
        config.reindex.clone(),
        shutdown.clone(),
    );
    let turn = Arc::new(Turn::new(pool.clone(), engine.is_shared()));
    let consumer = Consumer::new(
        client.clone(),
        Arc::clone(&indexing),
        Arc::clone(&reindex),
        Arc::clone(&turn),
        metrics.clone(),
        config.batch.clone(),
        shutdown.clone(),
    );
    let indexing_condition = indexing.condition();
    let consumer_condition = consumer.condition();
    let consuming = consumer.spawn();

    let state = AppState {
        search: SearchService::new(
            pool.clone(),
            Arc::clone(&engine),
            metrics,
            Duration::from_millis(config.engine.search_timeout_ms),
        ),
        authenticator: Authenticator {
            verifier: Arc::clone(&verifier),
            refresher: Some(refresher),
        },
    };
    let watched_pool = pool.clone();
    let database = health::Watch::spawn(move || migrations::check(watched_pool.clone()), shutdown.clone());
    let (health_pool, health_reindex) = (pool.clone(), Arc::clone(&reindex));
    let checks = health::Checks::default()
        .with("postgres", Status::Down, move || migrations::check(health_pool.clone()))
        // Searching goes on without NATS; new messages become findable when it is back.
        .with("nats", Status::Degraded, move || nats::check(&client))
        .with("search", Status::Down, move || {
            let engine = Arc::clone(&engine);
            async move { engine.check().await.map(Some).map_err(|error| error.to_string()) }
        })
        .with("indexing", Status::Degraded, move || {
            let result = indexing_condition
                .check()
                .and_then(|_| consumer_condition.check())
                .and_then(|_| health_reindex.check());
            async move { result }
        });

    let listener = serve::bind(config.listen, "listen").await?;
    let admin_stop = tokio_util::sync::CancellationToken::new();
    let ready = move || {
        jwks::ready(&verifier)?;
        // Each hit is checked there before it is shown.
        database.check("PostgreSQL does not answer")
    };
    let admin_routes =
        admin::router(draining.clone(), ready).merge(handlers::admin::router(reindex, consistency, indexing, turn));
    admin::serve(config.admin_listen, admin_routes, admin_stop.clone()).await?;
    tracing::info!(listen = %config.listen, admin = %config.admin_listen, "listening");

    let options = serve::Options {
        drain: Duration::from_secs(config.drain_seconds),
        ..serve::Options::default()
    };
    let app = router(state, checks.routes(draining));
    let consumer_guard = process::critical("event consumer", &shutdown, consuming);
    tokio::pin!(consumer_guard);
    tokio::select! {
        () = serve::serve(listener, app, shutdown.clone(), options) => consumer_guard.await?,
        result = &mut consumer_guard => result?,
    }
    admin_stop.cancel();
    pool.close().await;
    Ok(())
}
