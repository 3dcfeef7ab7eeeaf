//! Assembles the gateway from its configuration, runs it and drains it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Context;
use fechatter_core::token::Verifier;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use service_runtime::serve::bind;
use service_runtime::{admin, jwks};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::certificate::{self, Certificates, Resolver};
use crate::config::{Config, millis};
use crate::cors::Cors;
use crate::drain::Drain;
use crate::framing::HeadLimits;
use crate::head::Patience;
use crate::identity::Identifier;
use crate::listener::{Acceptor, ConnectionLimits, Counts};
use crate::metrics::{Metrics, observe_number};
use crate::proxy::{ATTEMPTS_MAX, Edge};
use crate::rate_limit::{self, Limits};
use crate::redirect::{self, Redirect};
use crate::revocation::{self, Revoked};
use crate::routes::Routes;
use crate::tls;
use crate::upstreams::{self, Upstreams};

static ROUTES: LazyLock<Routes> = LazyLock::new(Routes::new);

/// Runs until `shutdown` is cancelled and the drain is over.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    // Background work ends after the drain, so that requests in flight still have keys, limits and healthy upstreams.
    let background = CancellationToken::new();
    let _end_background = background.clone().drop_guard();
    let certificates = Certificates::load(&config.tls).map_err(|error| anyhow::anyhow!("tls: {error}"))?;
    let resolver = Arc::new(Resolver::new(certificates));
    let metrics = Arc::new(Metrics::new());
    let identifier = Arc::new(Identifier::new(config.trusted_proxies.clone()));
    let tls = tls::acceptor(&config.tls, Arc::clone(&resolver))?;
    let edge = edge(&config, &metrics, &identifier, &background).await?;
    let verifier = Arc::clone(&edge.authenticator.verifier);
    observe(&resolver, &edge);
    let proxy = Arc::new(proxy(&config, edge));

    let public = bind(config.listen, "listen").await?;
    let plain = bind(config.redirect_listen, "redirect_listen").await?;
    let admin_routes = admin::router(shutdown.clone(), move || jwks::ready(&verifier));
    admin::serve(config.admin_listen, admin_routes, background.clone()).await?;
    tokio::spawn(certificate::watch(resolver, config.tls.clone(), background.clone()));

    let interrupted = CancellationToken::new();
    tokio::spawn(watch_for_interrupt(interrupted.clone()));
    let stop_accepting = CancellationToken::new();
    let (last_requests, is_last) = watch::channel(false);
    let (cut, tasks) = (CancellationToken::new(), TaskTracker::new());
    let acceptor = Arc::new(Acceptor {
        tls,
        proxy: Arc::clone(&proxy),
        identifier,
        metrics: Arc::clone(&metrics),
        limits: connection_limits(&config),
        draining: is_last,
        cut: cut.clone(),
        cut_spread: millis(config.drain.stream_spread_ms),
        cut_hasher: std::hash::RandomState::new(),
        tasks: tasks.clone(),
        counts: Arc::new(Counts::default()),
    });
    tracing::info!(https = %config.listen, http = %config.redirect_listen, admin = %config.admin_listen, "listening");
    let accepting = tokio::spawn(acceptor.run(public, stop_accepting.clone()));
    let redirecting = tokio::spawn(redirect::run(redirect(&config), plain, stop_accepting.clone()));

    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = accepting => anyhow::bail!("the public listener ended: {ended:?}"),
        ended = redirecting => anyhow::bail!("the redirecting listener ended: {ended:?}"),
    }
    let drain = Drain {
        settings: config.drain.clone(),
        proxy,
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

async fn edge(
    config: &Config,
    metrics: &Arc<Metrics>,
    identifier: &Arc<Identifier>,
    background: &CancellationToken,
) -> anyhow::Result<Edge> {
    let auth = &config.auth;
    let verifier = Arc::new(Verifier::new(&*auth.issuer, &*auth.audience, auth.remembered_tokens));
    let refresher = service_runtime::jwks::spawn(auth.jwks_url.clone(), Arc::clone(&verifier), background.clone());
    let revoked = Arc::new(Revoked::default());
    let nats = service_runtime::nats::connect(&config.nats, "gateway")
        .await
        .context("nats.url")?;
    tokio::spawn(revocation::follow(Arc::clone(&revoked), nats, background.clone()));
    let limits = Arc::new(Limits::new(&config.rate_limits));
    tokio::spawn(rate_limit::sweep_regularly(Arc::clone(&limits), background.clone()));
    let upstreams = Arc::new(Upstreams::new(&config.upstreams));
    upstreams.resolve().await;
    tokio::spawn(upstreams::maintain(
        Arc::clone(&upstreams),
        Arc::clone(metrics),
        background.clone(),
    ));
    Ok(Edge {
        routes: &ROUTES,
        identifier: Arc::clone(identifier),
        authenticator: Authenticator {
            verifier,
            refresher,
            revoked,
        },
        limits,
        cors: Cors::new(&config.cors),
        upstreams,
        metrics: Arc::clone(metrics),
        head_limits: head_limits(config),
        body_timeout: millis(config.limits.body_timeout_ms),
        write_timeout: Duration::from_secs(config.limits.write_seconds),
    })
}

fn proxy(config: &Config, edge: Edge) -> HttpProxy<Edge> {
    let settings = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: config.upstreams.idle_connections,
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

fn head_limits(config: &Config) -> HeadLimits {
    HeadLimits {
        uri_bytes: config.limits.uri_bytes,
        header_bytes: config.limits.header_bytes,
        header_fields: config.limits.header_fields,
    }
}

fn connection_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        connections: config.limits.connections,
        connections_per_address: config.limits.connections_per_address,
        handshake: millis(config.tls.handshake_timeout_ms),
        stall: Duration::from_secs(config.limits.write_seconds),
        patience: patience(config),
        head: head_limits(config),
    }
}

fn patience(config: &Config) -> Patience {
    Patience {
        idle: Duration::from_secs(config.limits.idle_seconds),
        head: millis(config.limits.header_timeout_ms),
    }
}

fn redirect(config: &Config) -> Redirect {
    let patience = patience(config);
    Redirect {
        public_port: config.public_port(),
        // Nobody keeps such a connection.
        patience: Patience {
            idle: patience.head,
            ..patience
        },
        limits: head_limits(config),
    }
}

fn observe(resolver: &Arc<Resolver>, edge: &Edge) {
    let of = Arc::clone(resolver);
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
    let of = Arc::clone(&edge.limits);
    observe_number(
        "gateway.rate_limits.keys",
        "{key}",
        "Principals the rate limits remember.",
        move || {
            of.key_counts()
                .iter()
                .map(|(_, count)| i64::try_from(*count).unwrap_or(i64::MAX))
                .fold(0, i64::saturating_add)
        },
    );
}
