//! The notify_service process: configuration, pool, consumer, listeners, drain. No logic.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dead_letters::DeadLetters;
use fechatter_core::health::Status;
use fechatter_core::token::Verifier;
use rand::seq::SliceRandom;
use secrecy::ExposeSecret;
use service_runtime::auth::Authenticator;
use service_runtime::process::{self, Process};
use service_runtime::{admin, health, jwks, nats, openapi, serve};
use tokio_util::sync::CancellationToken;

use notify_service::config::{Config, ENV_PREFIX};
use notify_service::connection::End;
use notify_service::consumer::{self, Consumer};
use notify_service::hub::Hub;
use notify_service::metrics::Metrics;
use notify_service::services::access::Access;
use notify_service::services::loader::Loader;
use notify_service::services::presence::Presence;
use notify_service::services::replay::Replay;
use notify_service::services::streams::Streams;
use notify_service::services::tickets::Tickets;
use notify_service::services::typing::Typing;
use notify_service::{AppState, ephemeral, router};

#[global_allocator]
static ALLOCATOR: service_runtime::heap::Allocator = service_runtime::heap::allocator();

/// How often users without a stream are looked through.
const SWEEP: Duration = Duration::from_secs(5);
/// Time for the answers in flight after the last stream has been closed.
const AFTER_DRAIN: Duration = Duration::from_secs(5);

/// Time to say that nobody is seen here any more.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Live delivery for Fechatter.
#[derive(Parser)]
#[command(name = "notify_service", version)]
struct Args {
    /// TOML file; environment variables FECHATTER_NOTIFY__… go over it.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Lists, shows, replays and drops events that could not be read.
    ///
    /// Clients were told to reload when they came; a replay sees whether this version can read them, and settles them.
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
        return openapi::print(&notify_service::document());
    }
    match process::load::<Config>(ENV_PREFIX, args.config.as_deref()) {
        Ok(config) => {
            if let Some(Command::DeadLetters { command }) = args.command {
                return process::command(|| dead_letters(config, command));
            }
            let log = config.log.clone();
            process::run("notify_service", &log, |process| run(config, process))
        }
        Err(code) => code,
    }
}

async fn dead_letters(config: Config, command: dead_letters::command::Command) -> anyhow::Result<u8> {
    let pool = migrations::open(config.database.url.expose_secret(), 2).await?;
    let letters = DeadLetters::new(pool, consumer::CONSUMER);
    dead_letters::command::run(command, &letters, async |id| Ok(consumer::replay(&letters, id).await?)).await
}

async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    process.delay_shutdown(config.drain_delay_ms);
    let (draining, shutdown) = (process.draining, process.shutdown);
    // Streams go on while they are drained, and events with them.
    let stop = CancellationToken::new();
    let pool = migrations::open(config.database.url.expose_secret(), config.database.max_connections).await?;
    let observed = (pool.clone(), pool.clone());
    observability::pool::observe(observability::pool::Pool {
        max: config.database.max_connections,
        open: move || observed.0.size(),
        idle: move || observed.1.num_idle(),
    });
    let client = nats::connect(&config.nats, "notify").await?;
    let context = async_nats::jetstream::new(client.clone());

    let verifier = Arc::new(Verifier::new(
        &config.auth.issuer,
        &config.auth.audience,
        config.auth.remembered_tokens,
    ));
    let refresher = jwks::spawn(config.auth.jwks_url.clone(), Arc::clone(&verifier), stop.clone());

    let hub = Arc::new(Hub::new(&config, Metrics::default()));
    let consumer = Consumer::new(
        client.clone(),
        Arc::clone(&hub),
        pool.clone(),
        config.ring.max_events,
        stop.clone(),
    );
    let consumer_condition = consumer.condition();
    let consuming = consumer.spawn();
    let access = Access {
        pool: pool.clone(),
        hub: Arc::clone(&hub),
    };
    let presence = Presence::new(client.clone(), access.clone(), config.presence.clone());
    let receiving = ephemeral::receive(client.clone(), Arc::clone(&hub), presence.clone(), stop.clone());
    tokio::spawn(receiving);
    let presence_said = tokio::spawn(presence.clone().run(stop.clone()));
    tokio::spawn(sweep(Arc::clone(&hub), stop.clone()));

    let state = AppState {
        authenticator: Authenticator {
            verifier: Arc::clone(&verifier),
            refresher: Some(refresher),
        },
        streams: Streams {
            hub: Arc::clone(&hub),
            loader: Loader::spawn(Arc::clone(&hub), pool.clone(), stop.clone()),
            replay: Arc::new(Replay::new(context.clone(), Arc::clone(&hub), &config.replay)),
        },
        tickets: Tickets::new(context, Arc::clone(&hub), config.nats.stream_replicas),
        presence,
        typing: Typing::new(client.clone(), access),
    };
    let health_pool = pool.clone();
    let checks = health::Checks::default()
        // Live streams of users who are known go on without PostgreSQL; new users wait.
        .with("postgres", Status::Degraded, move || {
            migrations::check(health_pool.clone())
        })
        // What happens meanwhile is delivered when it is back.
        .with("nats", Status::Degraded, move || nats::check(&client))
        .with("events", Status::Degraded, move || {
            let result = consumer_condition.check();
            async move { result }
        });

    let listener = serve::bind(config.listen, "listen").await?;
    let ready_hub = Arc::clone(&hub);
    let admin_routes = admin::router(draining.clone(), move || {
        jwks::ready(&verifier)?;
        ready_hub
            .is_caught_up()
            .then_some(())
            .ok_or("the event stream has not been read yet")
    });
    let admin_stop = CancellationToken::new();
    admin::serve(config.admin_listen, admin_routes, admin_stop.clone()).await?;
    tracing::info!(listen = %config.listen, admin = %config.admin_listen, "listening");

    let drain = Duration::from_secs(config.drain_seconds);
    tokio::spawn(drain_streams(Arc::clone(&hub), shutdown.clone(), drain));
    let options = serve::Options {
        drain: drain + AFTER_DRAIN,
        // Streams are many and mostly idle.
        http1_buffer: 8 * 1024,
        write_timeout: Some(Duration::from_secs(config.stream.write_seconds)),
    };
    let app = router(state, checks.routes(draining));
    let consumer_guard = process::critical("event consumer", &stop, consuming);
    tokio::pin!(consumer_guard);
    tokio::select! {
        () = serve::serve(listener, app, shutdown, options) => {
            stop.cancel();
            consumer_guard.await?;
            // Its last words; a process that is killed is forgotten a little later.
            let _ = tokio::time::timeout(LAST_WORDS, presence_said).await;
        }
        result = &mut consumer_guard => result?,
    }
    admin_stop.cancel();
    pool.close().await;
    Ok(())
}

async fn sweep(hub: Arc<Hub>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(SWEEP)).await.is_some() {
        hub.sweep();
    }
}

/// Closes streams one after the other over the drain time, in no order: their clients return to other replicas by and
/// by.
async fn drain_streams(hub: Arc<Hub>, shutdown: CancellationToken, drain: Duration) {
    shutdown.cancelled().await;
    let mut streams = hub.drain();
    streams.shuffle(&mut rand::rng());
    let started = tokio::time::Instant::now();
    let step = drain / u32::try_from(streams.len().max(1)).unwrap_or(u32::MAX);
    for (number, stream) in (0..).zip(streams) {
        tokio::time::sleep_until(started + step * number).await;
        stream.end(End::Draining);
    }
}
