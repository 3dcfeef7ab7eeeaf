//! `/health` and `/health/simple`.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fechatter_core::health::{Check, Health, Status};
use futures::future::join_all;
use http::{StatusCode, header};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Longest a check may take before it counts as failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

type CheckFuture = Pin<Box<dyn Future<Output = Result<Option<String>, String>> + Send>>;

struct NamedCheck {
    name: &'static str,
    on_failure: Status,
    run: Box<dyn Fn() -> CheckFuture + Send + Sync>,
}

/// The dependency checks of a process.
#[derive(Clone, Default)]
pub struct Checks(Arc<Vec<NamedCheck>>);

impl std::fmt::Debug for Checks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|check| check.name)).finish()
    }
}

impl Checks {
    /// Adds a check. `on_failure` says what its failure means for the process; `Ok(Some(detail))` is good with a note.
    #[must_use]
    pub fn with<F, Fut>(self, name: &'static str, on_failure: Status, run: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<String>, String>> + Send + 'static,
    {
        let mut checks = Arc::into_inner(self.0).unwrap_or_default();
        checks.push(NamedCheck {
            name,
            on_failure,
            run: Box::new(move || Box::pin(run())),
        });
        Self(Arc::new(checks))
    }

    /// Runs all checks at once.
    pub async fn run(&self) -> Health {
        let checks = join_all(self.0.iter().map(|check| async move {
            let started = Instant::now();
            let result = tokio::time::timeout(CHECK_TIMEOUT, (check.run)()).await;
            let (status, detail) = match result {
                Ok(Ok(detail)) => (Status::Ok, detail),
                Ok(Err(detail)) => (check.on_failure, Some(detail)),
                Err(_) => (
                    check.on_failure,
                    Some(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
                ),
            };
            let latency_ms = (started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
            (
                check.name.to_owned(),
                Check {
                    status,
                    latency_ms: Some(latency_ms),
                    detail,
                },
            )
        }))
        .await;
        Health::from_checks(crate::VERSION, checks.into_iter().collect::<BTreeMap<_, _>>())
    }

    /// The two routes. `/health/simple` is 503 once `draining` is cancelled: the gateway then asks other replicas.
    pub fn routes<S: Clone + Send + Sync + 'static>(self, draining: CancellationToken) -> Router<S> {
        Router::new()
            .route("/health", get(move || async move { respond(&self.run().await) }))
            .route(
                "/health/simple",
                get(move || async move {
                    if draining.is_cancelled() {
                        (
                            StatusCode::SERVICE_UNAVAILABLE,
                            axum::Json(json!({"status": "draining"})),
                        )
                    } else {
                        (StatusCode::OK, axum::Json(json!({"status": "ok"})))
                    }
                }),
            )
    }
}

/// Watches what a process cannot serve without, for `/ready`. It is missed after [`MISSED_AFTER`] failures in a row, a second
/// apart, and found again by one success: a blink takes no replica out.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<AtomicU32>);

/// Failures in a row after which something is missed.
pub const MISSED_AFTER: u32 = 3;

impl Watch {
    /// Asks `run` again and again until `shutdown`; it worked when the watch began.
    pub fn spawn<F, Fut>(run: F, shutdown: CancellationToken) -> Self
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<String>, String>> + Send + 'static,
    {
        let watch = Self::default();
        let failures = Arc::clone(&watch.0);
        tokio::spawn(async move {
            let pause = Duration::from_secs(1);
            while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                let works = matches!(tokio::time::timeout(CHECK_TIMEOUT, run()).await, Ok(Ok(_)));
                let before = failures.load(Ordering::Relaxed);
                failures.store(if works { 0 } else { before.saturating_add(1) }, Ordering::Relaxed);
            }
        });
        watch
    }

    /// `Err` with `reason` while it is missed.
    pub fn check(&self, reason: &'static str) -> Result<(), &'static str> {
        if self.0.load(Ordering::Relaxed) < MISSED_AFTER {
            Ok(())
        } else {
            Err(reason)
        }
    }
}

/// What a part of the process works or waits for, told to `/health` by the part itself; clones are the same condition.
#[derive(Debug, Clone, Default)]
pub struct Condition(Arc<Mutex<Option<String>>>);

impl Condition {
    /// The condition of a part that does not work yet, and why.
    pub fn failing(reason: &str) -> Self {
        Self(Arc::new(Mutex::new(Some(reason.to_owned()))))
    }

    /// It works (`None`), or does not and why.
    pub fn set(&self, reason: Option<String>) {
        *self.lock() = reason;
    }

    /// For [`Checks::with`]: `Err` with the reason while it does not work.
    pub fn check(&self) -> Result<Option<String>, String> {
        self.lock().clone().map_or(Ok(None), Err)
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn respond(health: &Health) -> Response {
    let status = StatusCode::from_u16(health.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    (
        status,
        [(header::CACHE_CONTROL, "no-store")],
        axum::Json(health.clone()),
    )
        .into_response()
}
