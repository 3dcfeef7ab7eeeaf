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
use crate::services::turn::Turn;

/// What may be written, if it is our turn.
#[derive(Debug)]
struct Writing<T> {
    service: Arc<T>,
    turn: Arc<Turn>,
}

/// Why something cannot be done here, for an operator.
type Refusal = (StatusCode, String);

impl<T> Clone for Writing<T> {
    fn clone(&self) -> Self {
        Self {
            service: Arc::clone(&self.service),
            turn: Arc::clone(&self.turn),
        }
    }
}

impl<T> Writing<T> {
    /// Refuses what another indexer would have to do.
    async fn require_turn(&self) -> Result<(), Refusal> {
        if self.turn.is_ours().await {
            return Ok(());
        }
        let advice = "another indexer writes to the index at the moment, or none does; ask the one whose log says \
                      \"consuming events\" last";
        Err((StatusCode::SERVICE_UNAVAILABLE, advice.to_owned()))
    }
}

/// The routes.
pub fn router(
    reindex: Arc<Reindex>,
    consistency: Arc<Consistency>,
    indexing: Arc<Indexing>,
    turn: Arc<Turn>,
) -> Router {
    let rebuilding = Router::new()
        .route("/reindex", get(progress).post(rebuild))
        .with_state(Writing {
            service: reindex,
            turn: Arc::clone(&turn),
        });
    let comparing = Router::new()
        .route("/consistency", get(report).post(compare))
        .with_state(consistency);
    let replaying = Router::new()
        .route("/dead-letters/{id}/replay", post(replay))
        .with_state(Writing {
            service: indexing,
            turn,
        });
    rebuilding.merge(comparing).merge(replaying)
}

async fn progress(State(Writing { service, .. }): State<Writing<Reindex>>) -> Json<Progress> {
    Json(service.progress())
}

/// 202 when it started, 409 when one was running already, both with the progress; 503 when another indexer writes.
async fn rebuild(State(writing): State<Writing<Reindex>>) -> Result<(StatusCode, Json<Progress>), Refusal> {
    writing.require_turn().await?;
    let started = writing.service.start("asked for by an operator");
    Ok((started_or_running(started), Json(writing.service.progress())))
}

async fn report(State(consistency): State<Arc<Consistency>>) -> Json<Report> {
    Json(consistency.report())
}

/// 202 when it started, 409 when one was running already; the body is the report so far.
async fn compare(State(consistency): State<Arc<Consistency>>) -> (StatusCode, Json<Report>) {
    let started = consistency.start();
    (started_or_running(started), Json(consistency.report()))
}

/// 200 with the outcome, 503 with the reason when PostgreSQL or the engine is away, or another indexer writes.
async fn replay(State(writing): State<Writing<Indexing>>, Path(id): Path<i64>) -> Result<Json<Replay>, Refusal> {
    writing.require_turn().await?;
    match writing.service.replay(id).await {
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
