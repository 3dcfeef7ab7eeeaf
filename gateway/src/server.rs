//! Assembles the gateway from its configuration, runs it and drains it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use fechatter_core::token::Verifier;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use service_runtime::jwks;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::certificate::{self, Certificates, Resolver};
use crate::config::{Config, millis};
use crate::drain::Drain;
use crate::edge::{ATTEMPTS_MAX, Edge};
use crate::health_check;
use crate::idle::Idle;
use crate::listener::{Acceptor, Counts};
use crate::metrics::{Metrics, observe_number};
use crate::policy::{Current, Policy};
use crate::rate_limit;
use crate::redirect::{self, Redirect};
use crate::reload::{self, Reloader};
use crate::revocation::{self, Revoked};
use crate::routes::Routes;
use crate::shared_usage;
use crate::stream;
use crate::tls;
use crate::upgrade::{self, Copies, Listeners, Predecessor};
use crate::upstreams::Upstreams;
use crate::workers::Workers;

static ROUTES: LazyLock<Routes> = LazyLock::new(Routes::new);

/// How this process begins.
#[derive(Debug, Default)]
pub struct Start {
    /// What the configuration was read from.
    pub file: Option<PathBuf>,
    /// Takes over from the process at `upgrade_socket`.
    pub upgrade: bool,
}

/// Runs until `shutdown` is cancelled, or another process has taken over, and the drain is over.
pub async fn run(config: Config, start: Start, shutdown: CancellationToken) -> anyhow::Result<()> {
    // Background work ends after the drain, so that requests in flight still have keys, limits and healthy upstreams.
    let background = CancellationToken::new();
    let _end_background = background.clone().drop_guard();
    let certificates = Certificates::load(&config.tls).map_err(|error| anyhow::anyhow!("tls: {error}"))?;
    let resolver = Arc::new(Resolver::new(certificates));
    let metrics = Arc::new(Metrics::new());
    let tls = tls::acceptor(&config.tls, Arc::clone(&resolver))?;
    let policy: Current = Arc::new(ArcSwap::from_pointee(Policy::new(config.clone(), None)));
    let edge = edge(&config, &policy, &metrics, flag_of(&shutdown), &background).await?;
    let reloader = Arc::new(Reloader {
        file: start.file,
        policy: Arc::clone(&policy),
        upstreams: Arc::clone(&edge.upstreams),
        resolver: Arc::clone(&resolver),
        metrics: Arc::clone(&metrics),
        good: true.into(),
        turn: tokio::sync::Mutex::default(),
    });
    let verifier = Arc::clone(&edge.authenticator.verifier);
    let revoked = Arc::clone(&edge.authenticator.revoked);
    observe(&reloader, &edge);
    let count = config.workers();
    // Each worker keeps its own.
    let kept = config.upstreams.idle_connections.div_ceil(count);
    let of_worker = || Edge {
        idle: Arc::new(Idle::new(kept)),
        streams: stream::connections(kept),
        ..edge.clone()
    };
    let proxy = |edge| proxy(&config, edge, kept);
    let workers = Arc::new(Workers::start(count, of_worker, proxy).context("worker threads")?);
    tokio::spawn(sweep_regularly(
        Arc::clone(&workers),
        Arc::clone(&edge.upstreams),
        background.clone(),
    ));

    let (Listeners { public, plain, admin }, copies, predecessor) = listeners(&config, start.upgrade).await?;
    let opened = CancellationToken::new();
    let admin_routes =
        admin_routes(&shutdown, &opened, verifier).merge(crate::admin::router(&ROUTES, Arc::clone(&reloader)));
    let admin_stop = background.child_token();
    let serve_admin = || service_runtime::admin::serve_on(admin, admin_routes, admin_stop.clone());
    tokio::spawn(certificate::watch(resolver, Arc::clone(&policy), background.clone()));
    tokio::spawn(reload::watch(reloader, background.clone()));

    let interrupted = CancellationToken::new();
    tokio::spawn(watch_for_interrupt(interrupted.clone()));
    let stop_accepting = CancellationToken::new();
    let (last_requests, is_last) = watch::channel(false);
    let (cut, tasks) = (CancellationToken::new(), TaskTracker::new());
    let acceptor = Arc::new(Acceptor {
        tls,
        workers: Arc::clone(&workers),
        policy: Arc::clone(&policy),
        metrics: Arc::clone(&metrics),
        draining: is_last,
        cut: cut.clone(),
        cut_spread: millis(config.drain.stream_spread_ms),
        cut_hasher: std::hash::RandomState::new(),
        tasks: tasks.clone(),
        counts: Arc::new(Counts::default()),
    });
    // Beside a predecessor, its answers at the admin address hold until this process accepts.
    let serve_admin = if predecessor.is_none() {
        serve_admin();
        None
    } else {
        Some(serve_admin)
    };
    tokio::select! {
        () = wait_for_revocations(&revoked, Duration::from_secs(config.revocations_wait_seconds)) => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    opened.cancel();
    tracing::info!(https = %config.listen, http = %config.redirect_listen, admin = %config.admin_listen, "listening");
    let accepting = tokio::spawn(acceptor.run(public, stop_accepting.clone()));
    let redirect = Redirect {
        policy,
        counts: Arc::default(),
    };
    let redirecting = tokio::spawn(redirect::run(redirect, plain, stop_accepting.clone()));
    if let (Some(predecessor), Some(serve_admin)) = (predecessor, serve_admin) {
        if let Err(error) = predecessor.relieve().await {
            tracing::warn!(%error, "the process before this one ended by itself");
        }
        serve_admin();
    }
    let relieved = CancellationToken::new();
    if let (Some(path), Some(copies)) = (&config.upgrade_socket, copies) {
        upgrade::offer(path, copies, relieved.clone(), stop_accepting.clone())?;
    }

    let mut settings = config.drain.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = relieved.cancelled() => {
            // Nobody has to be turned away first: the sockets go on.
            settings.delay_ms = 0;
            admin_stop.cancel();
        }
        ended = accepting => anyhow::bail!("the public listener ended: {ended:?}"),
        ended = redirecting => anyhow::bail!("the redirecting listener ended: {ended:?}"),
    }
    let drain = Drain {
        settings,
        workers,
        stop_accepting,
        last_requests,
        interrupted,
        cut,
        connections: tasks,
        metrics,
    };
    drain.run().await;
    Ok(())
}

/// The sockets to listen on, copies of them to offer, and the process they were taken from, if any.
async fn listeners(config: &Config, upgrade: bool) -> anyhow::Result<(Listeners, Option<Copies>, Option<Predecessor>)> {
    let (listeners, predecessor) = match &config.upgrade_socket {
        Some(path) if upgrade => {
            let (listeners, predecessor) = Listeners::take(path, config).await?;
            (listeners, Some(predecessor))
        }
        None if upgrade => anyhow::bail!("--upgrade needs upgrade_socket, the same as that of the running gateway"),
        _ => (Listeners::bind(config).await?, None),
    };
    let offered = config.upgrade_socket.is_some();
    let copies = offered
        .then(|| listeners.copies())
        .transpose()
        .context("upgrade_socket")?;
    Ok((listeners, copies, predecessor))
}

fn admin_routes(shutdown: &CancellationToken, opened: &CancellationToken, verifier: Arc<Verifier>) -> axum::Router {
    let opened = opened.clone();
    service_runtime::admin::router(shutdown.clone(), move || {
        jwks::ready(&verifier)?;
        opened
            .is_cancelled()
            .then_some(())
            .ok_or("reading which sessions have ended")
    })
}

/// Gives way to the sessions that ended before this process began, so that their tokens don't work for a moment; not for ever, since
/// without NATS the gateway does its work all the same.
async fn wait_for_revocations(revoked: &Revoked, patience: Duration) {
    if tokio::time::timeout(patience, revoked.caught_up()).await.is_err() && !patience.is_zero() {
        tracing::warn!(
            waited_seconds = patience.as_secs(),
            "opening without knowing which sessions have ended; their tokens work until they are read or expire"
        );
    }
}

/// The runtime tells that a signal came, not which; an interrupt is to be quick.
async fn watch_for_interrupt(interrupted: CancellationToken) {
    match signal(SignalKind::interrupt()) {
        Ok(mut interrupts) => {
            interrupts.recv().await;
            interrupted.cancel();
        }
        Err(error) => tracing::warn!(%error, "interrupts will be as slow as terminations"),
    }
}

/// Whether a token is cancelled, for who asks with each request.
fn flag_of(token: &CancellationToken) -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let (token, set) = (token.clone(), Arc::clone(&flag));
    tokio::spawn(async move {
        token.cancelled().await;
        set.store(true, Ordering::Relaxed);
    });
    flag
}

async fn edge(
    config: &Config,
    policy: &Current,
    metrics: &Arc<Metrics>,
    leaving: Arc<AtomicBool>,
    background: &CancellationToken,
) -> anyhow::Result<Edge> {
    let auth = &config.auth;
    let verifier = Arc::new(Verifier::new(&*auth.issuer, &*auth.audience, auth.remembered_tokens));
    let refresher = service_runtime::jwks::spawn(auth.jwks_url.clone(), Arc::clone(&verifier), background.clone());
    let revoked = Arc::new(Revoked::default());
    let nats = service_runtime::nats::connect(&config.nats, "gateway")
        .await
        .context("nats.url")?;
    tokio::spawn(shared_usage::run(Arc::clone(policy), nats.clone(), background.clone()));
    tokio::spawn(revocation::follow(Arc::clone(&revoked), nats, background.clone()));
    tokio::spawn(rate_limit::sweep_regularly(Arc::clone(policy), background.clone()));
    let upstreams = Arc::new(Upstreams::new(&config.upstreams));
    upstreams.resolve().await;
    tokio::spawn(health_check::run(
        Arc::clone(&upstreams),
        Arc::clone(metrics),
        background.clone(),
    ));
    Ok(Edge {
        routes: &ROUTES,
        policy: Arc::clone(policy),
        authenticator: Authenticator {
            verifier,
            refresher,
            revoked,
        },
        upstreams,
        metrics: Arc::clone(metrics),
        // Each worker has its own.
        idle: Arc::new(Idle::new(0)),
        streams: stream::connections(0),
        leaving,
    })
}

/// Lets go of connections to upstreams until `stop`.
async fn sweep_regularly(workers: Arc<Workers>, upstreams: Arc<Upstreams>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => workers.sweep(upstreams.waits().idle),
        }
    }
}

fn proxy(config: &Config, edge: Edge, kept: usize) -> HttpProxy<Edge> {
    let settings = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: kept,
        max_retries: ATTEMPTS_MAX as usize,
        ..ServerConf::default()
    };
    let mut proxy = http_proxy(&Arc::new(settings), edge);
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(Duration::from_secs(config.limits.idle_seconds));
    proxy.server_options = Some(options);
    let mut http2 = default_h2_options();
    http2.max_concurrent_streams(config.limits.http2_streams);
    http2.max_header_list_size(u32::try_from(config.limits.header_bytes).unwrap_or(u32::MAX));
    proxy.h2_options = Some(http2);
    proxy
}

fn observe(reloader: &Arc<Reloader>, edge: &Edge) {
    let of = Arc::clone(reloader);
    observe_number(
        "gateway.config.good",
        "1",
        "0 while the newest configuration has faults and an older one is in force.",
        move || i64::from(of.is_good()),
    );
    let of = Arc::clone(&reloader.resolver);
    observe_number(
        "gateway.certificate.expiry",
        "s",
        "When the first certificate expires, in Unix time.",
        move || of.expires_at(),
    );
    let of = Arc::clone(&edge.authenticator.revoked);
    observe_number(
        "gateway.revocations.connected",
        "1",
        "1 while revoked sessions are followed.",
        move || i64::from(of.is_connected()),
    );
    let of = Arc::clone(&edge.authenticator.revoked);
    observe_number(
        "gateway.revocations.sessions",
        "{session}",
        "Revoked sessions remembered.",
        move || i64::try_from(of.len()).unwrap_or(i64::MAX),
    );
    let of = Arc::clone(&edge.policy);
    observe_number(
        "gateway.rate_limits.keys",
        "{key}",
        "Principals the rate limits remember.",
        move || {
            of.load()
                .limits
                .key_counts()
                .iter()
                .map(|(_, count)| i64::try_from(*count).unwrap_or(i64::MAX))
                .fold(0, i64::saturating_add)
        },
    );
}
