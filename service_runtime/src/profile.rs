//! On the admin port: `/debug/pprof/profile?seconds=N`, where the CPU's time goes, as a flame graph; `/debug/pprof/heap?seconds=N`, who allocates
//! and who keeps memory, for `pprof`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Query;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use serde::Deserialize;

use crate::heap::Recording;

/// Longest profile, in seconds: somebody waits for it.
const SECONDS_MAX: u64 = 120;
/// Samples a second of CPU time; not a divisor of common timers, so that it does not walk in step with them.
const FREQUENCY: i32 = 99;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default = "default_seconds")]
    seconds: u64,
}

const fn default_seconds() -> u64 {
    10
}

/// The routes.
pub fn router() -> Router {
    Router::new()
        .route("/debug/pprof/profile", get(profile))
        .route("/debug/pprof/heap", get(heap))
}

/// The one profile that may be taken at a time; given back when its request ends, however it ends.
struct Turn;

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Turn {
    fn take() -> Option<Self> {
        (!TAKEN.swap(true, Ordering::AcqRel)).then_some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

type Asked = Result<Query<Wanted>, axum::extract::rejection::QueryRejection>;

/// How long to look, and the turn to do so.
fn begin(wanted: Asked) -> Result<(Duration, Turn), Response> {
    let seconds = match wanted {
        Ok(Query(wanted)) if (1..=SECONDS_MAX).contains(&wanted.seconds) => wanted.seconds,
        _ => {
            return Err(say(
                StatusCode::BAD_REQUEST,
                &format!("?seconds= takes 1 to {SECONDS_MAX}; it is the one parameter"),
            ));
        }
    };
    let busy = || say(StatusCode::CONFLICT, "a profile is being taken; wait for its end");
    let turn = Turn::take().ok_or_else(busy)?;
    Ok((Duration::from_secs(seconds), turn))
}

async fn heap(wanted: Asked) -> Response {
    let (time, _turn) = match begin(wanted) {
        Ok(begun) => begun,
        Err(refusal) => return refusal,
    };
    let failed =
        |error: &dyn std::fmt::Display| say(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot profile: {error}"));
    let recording = match Recording::start() {
        Ok(recording) => recording,
        Err(error) => return failed(&error),
    };
    tokio::time::sleep(time).await;
    match tokio::task::spawn_blocking(|| recording.report()).await {
        Ok(Ok(profile)) => ([(header::CONTENT_TYPE, "application/octet-stream")], profile).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

async fn profile(wanted: Asked) -> Response {
    let (time, _turn) = match begin(wanted) {
        Ok(begun) => begun,
        Err(refusal) => return refusal,
    };
    // libc and the unwinder are left out: a signal that interrupts them must not unwind through them.
    let guard = pprof::ProfilerGuardBuilder::default()
        .frequency(FREQUENCY)
        .blocklist(&["libc", "libgcc", "pthread", "vdso"])
        .build();
    let guard = match guard {
        Ok(guard) => guard,
        Err(error) => return say(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot profile: {error}")),
    };
    tokio::time::sleep(time).await;
    // Symbols are looked up now, which takes a while.
    let drawn = tokio::task::spawn_blocking(move || {
        let mut svg = Vec::new();
        let report = guard.report().build()?;
        report.flamegraph(&mut svg)?;
        Ok::<_, pprof::Error>(svg)
    });
    match drawn.await {
        Ok(Ok(svg)) if !svg.is_empty() => ([(header::CONTENT_TYPE, "image/svg+xml")], svg).into_response(),
        Ok(Ok(_)) => say(
            StatusCode::OK,
            "the process used no CPU time that could be sampled; ask for more seconds, under load",
        ),
        Ok(Err(error)) => say(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("cannot draw the profile: {error}"),
        ),
        Err(error) => say(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("cannot draw the profile: {error}"),
        ),
    }
}

fn say(status: StatusCode, line: &str) -> Response {
    (status, format!("{line}\n")).into_response()
}
