//! The notify_service process: configuration, pool, consumer, listeners, drain. No logic.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use fechatter_core::health::Status;
use fechatter_core::token::Verifier;
use secrecy::ExposeSecret;
use service_runtime::auth::Authenticator;
use service_runtime::process::{self, Process};
use service_runtime::{admin, health, jwks, nats, serve};

use notify_service::config::{Config, ENV_PREFIX};
use notify_service::consumer::Consumer;
use notify_service::hub::Hub;
use notify_service::services::readings::Readings;
use notify_service::services::replay::Replay;
use notify_service::services::tickets::Tickets;
use notify_service::services::typing::Typing;
use notify_service::{AppState, metrics, repositories, router, services};

/// Live events of Fechatter by Server-Sent Events.
#[derive(Parser)]
#[command(name = "notify_service", version)]
struct Args {
    /// TOML file; environment variables FECHATTER_NOTIFY__… go over it.
    #[arg(long)]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match process::load::<Config>(ENV_PREFIX, args.config.as_deref()) {
        Ok(config) => {
            let log = config.log.clone();
            process::run("notify_service", &log, |process| run(config, process))
        }
        Err(code) => code,
    }
}

async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let shutdown = process.shutdown;
    let pool = migrations::open(config.database.url.expose_secret(), config.database.max_connections).await?;
    let client = nats::connect(&config.nats, "notify").await?;
    let verifier = Arc::new(Verifier::new(
        &config.auth.issuer,
        &config.auth.audience,
        config.auth.remembered_tokens,
    ));
    let refresher = jwks::spawn(config.auth.jwks_url.clone(), Arc::clone(&verifier), shutdown.clone());

    let hub = Hub::new(config.streams.clone(), &config.window);
    metrics::observe(&hub);
    let consumer = Consumer::new(
        client.clone(),
        pool.clone(),
        Arc::clone(&hub),
        config.window.start_seconds,
        shutdown.clone(),
    );
    let consumer_status = consumer.status();
    let consuming = consumer.spawn();
    tokio::spawn(services::ephemeral::run(
        client.clone(),
        Arc::clone(&hub),
        shutdown.clone(),
    ));
    let drain = Duration::from_secs(config.drain_seconds);
    tokio::spawn(services::upkeep::run(Arc::clone(&hub), shutdown.clone(), drain));

    // One connection stays free for the consumer and one for `/health`.
    let at_once = usize::try_from(config.database.max_connections.saturating_sub(2)).unwrap_or(1);
    let state = AppState {
        authenticator: Authenticator {
            verifier: Arc::clone(&verifier),
            refresher: Some(refresher),
        },
        hub: Arc::clone(&hub),
        readings: Readings::new(pool.clone(), at_once),
        replay: Arc::new(Replay::new(client.clone(), config.window.replay_max as u64)),
        tickets: Arc::new(Tickets::new(client.clone(), config.nats.stream_replicas)),
        typing: Arc::new(Typing::new(client.clone(), pool.clone(), Arc::clone(&hub))),
    };
    let health_pool = pool.clone();
    let checks = health::Checks::default()
        // Open streams go on without PostgreSQL, and known users reconnect.
        .with("postgres", Status::Degraded, move || {
            repositories::health::ping(health_pool.clone())
        })
        .with("nats", Status::Degraded, move || {
            let result = nats::check(&client);
            async move { result }
        })
        .with("events", Status::Degraded, move || {
            let result = consumer_status.check();
            async move { result }
        });

    let listener = serve::bind(config.listen, "listen").await?;
    let ready_shutdown = shutdown.clone();
    let ready: admin::Readiness = Arc::new(move || {
        if ready_shutdown.is_cancelled() {
            Err("draining".to_owned())
        } else if !verifier.is_ready() {
            Err("no signing keys yet".to_owned())
        } else if hub.is_ready() {
            Ok(())
        } else {
            Err("not caught up with the event stream yet".to_owned())
        }
    });
    let admin_stop = tokio_util::sync::CancellationToken::new();
    admin::serve(config.admin_listen, admin::router(ready), admin_stop.clone()).await?;
    tracing::info!(listen = %config.listen, admin = %config.admin_listen, "listening");

    let options = serve::Options {
        drain,
        // Streams are many and mostly idle.
        http1_buffer: 16 * 1024,
        write_timeout: Some(Duration::from_secs(config.streams.write_seconds)),
    };
    let app = router(state, checks.routes());
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
