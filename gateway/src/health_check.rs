//! Looks after upstreams: resolves their names and asks each how it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::config::millis;
use crate::endpoint::Endpoint;
use crate::metrics::Metrics;
use crate::routes::Group;
use crate::upstreams::Upstreams;

/// How often names are resolved again.
const RESOLVE: Duration = Duration::from_secs(5);
/// Pause between two checks of an unhealthy upstream: it should come back soon after it is back.
const UNHEALTHY_INTERVAL: Duration = Duration::from_millis(250);
/// Pause between two rounds at least.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// Resolves names and checks health until `shutdown`.
pub async fn run(upstreams: Arc<Upstreams>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap_or_default();
    let (mut resolved_at, mut refilled_at) = (Instant::now(), Instant::now());
    loop {
        if resolved_at.elapsed() >= RESOLVE && upstreams.has_names() {
            resolved_at = Instant::now();
            upstreams.resolve().await;
        }
        if refilled_at.elapsed() >= Duration::from_secs(1) {
            refilled_at = Instant::now();
            upstreams.refill_retries();
        }
        let settings = upstreams.settings();
        let timeout = millis(settings.health_timeout_ms);
        let endpoints = upstreams.endpoints();
        join_all(endpoints.iter().map(|endpoint| check(&client, timeout, endpoint))).await;
        for (group, healthy, all) in upstreams.states() {
            metrics.upstreams(group, healthy, all);
        }
        let interval = millis(settings.health_interval_ms);
        let pause = if endpoints.iter().all(|endpoint| endpoint.is_healthy()) {
            interval
        } else {
            UNHEALTHY_INTERVAL.min(interval)
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            () = upstreams.look.notified() => tokio::time::sleep(INTERVAL_MIN).await,
        }
    }
}

async fn check(client: &reqwest::Client, timeout: Duration, endpoint: &Endpoint) {
    // Who serves pages has no health of ours to tell: any answer but a failure will do.
    let is_web = endpoint.group == Group::Web;
    let path = if is_web { "/" } else { "/health/simple" };
    let request = client.get(format!("http://{}{path}", endpoint.address));
    match request.timeout(timeout).send().await {
        Ok(answer) if answer.status().is_success() || (is_web && !answer.status().is_server_error()) => endpoint.heal(),
        Ok(answer) => {
            endpoint.unhealthy(&format!("health check answered {}", answer.status()));
        }
        Err(error) => {
            endpoint.unhealthy(&format!("health check failed: {error}"));
        }
    }
}
