//! The admin listener of every process: `/live`, `/ready`, `/metrics`, `/log`, `/debug/pprof/profile`. Never public.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::{StatusCode, header};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

type Readiness = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

/// The admin routes; a process may add its own. `/ready` says no once `shutdown` is cancelled, and before that while
/// `ready` answers what the process waits for.
pub fn router<F>(shutdown: CancellationToken, ready: F) -> Router
where
    F: Fn() -> Result<(), &'static str> + Send + Sync + 'static,
{
    let ready: Readiness = Arc::new(move || {
        if shutdown.is_cancelled() {
            return Err("draining");
        }
        ready()
    });
    Router::new()
        .route("/live", get(|| async { "ok\n" }))
        .route("/ready", get(answer_ready))
        .route(
            "/metrics",
            get(|| async {
                (
                    [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                    observability::metrics::render(),
                )
            }),
        )
        .with_state(ready)
        .route("/log", get(answer_log).put(set_log))
        .merge(crate::profile::router())
}

async fn answer_ready(State(ready): State<Readiness>) -> (StatusCode, String) {
    match ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

/// The filter of the log, as one sets it.
async fn answer_log() -> String {
    format!("{}\n", observability::log_filter::current().unwrap_or_default())
}

/// Takes the body as the filter of the log until the process ends or its configuration says another.
async fn set_log(filter: String) -> (StatusCode, String) {
    let filter = filter.trim();
    match observability::log_filter::set(filter) {
        Ok(()) => {
            // Said at a level that most filters let through; the access to this port is what keeps it from strangers.
            tracing::warn!(filter, "the log has another filter");
            (StatusCode::OK, format!("{filter}\n"))
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// Serves `router` on `addr` until the process ends; it still answers while the process drains.
pub async fn serve(addr: SocketAddr, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
    serve_on(crate::serve::bind(addr, "admin_listen").await?, router, shutdown);
    Ok(())
}

/// Like [`serve`], on a socket that is there already.
pub fn serve_on(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    tokio::spawn(async move {
        let result = axum::serve(listener, router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await;
        if let Err(error) = result.context("admin listener") {
            tracing::error!(%error, "admin listener ended");
        }
    });
}
