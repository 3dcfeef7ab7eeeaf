//! The admin listener's own routes: `POST` starts a rebuild (`/reindex`) or a comparison (`/consistency`), `GET` says
//! how it goes; `POST /dead-letters/{id}/replay` replays one dead letter and answers how it ended.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use dead_letters::Replay;
use http::StatusCode;

use crate::services::consistency::{Consistency, Report};
use crate::services::indexing::Indexing;
use crate::services::reindex::{Progress, Reindex};

/// The routes.
pub fn router(reindex: Arc<Reindex>, consistency: Arc<Consistency>, indexing: Arc<Indexing>) -> Router {
    let rebuilding = Router::new()
        .route("/reindex", get(progress).post(rebuild))
        .with_state(reindex);
    let comparing = Router::new()
        .route("/consistency", get(report).post(compare))
        .with_state(consistency);
    let replaying = Router::new()
        .route("/dead-letters/{id}/replay", post(replay))
        .with_state(indexing);
    rebuilding.merge(comparing).merge(replaying)
}

async fn progress(State(reindex): State<Arc<Reindex>>) -> Json<Progress> {
    Json(reindex.progress())
}

/// 202 when it started, 409 when one was running already; the body is the progress.
async fn rebuild(State(reindex): State<Arc<Reindex>>) -> (StatusCode, Json<Progress>) {
    let started = reindex.start("asked for by an operator");
    (started_or_running(started), Json(reindex.progress()))
}

async fn report(State(consistency): State<Arc<Consistency>>) -> Json<Report> {
    Json(consistency.report())
}

/// 202 when it started, 409 when one was running already; the body is the report so far.
async fn compare(State(consistency): State<Arc<Consistency>>) -> (StatusCode, Json<Report>) {
    let started = consistency.start();
    (started_or_running(started), Json(consistency.report()))
}

/// 200 with the outcome, 503 with the reason when PostgreSQL or the engine is away.
async fn replay(
    State(indexing): State<Arc<Indexing>>,
    Path(id): Path<i64>,
) -> Result<Json<Replay>, (StatusCode, String)> {
    match indexing.replay(id).await {
        Ok(outcome) => Ok(Json(outcome)),
        Err(fault) => Err((StatusCode::SERVICE_UNAVAILABLE, fault.to_string())),
    }
}

const fn started_or_running(started: bool) -> StatusCode {
    if started {
        StatusCode::ACCEPTED
    } else {
        StatusCode::CONFLICT
    }
}
