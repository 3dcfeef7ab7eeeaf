//! The admin listener's own routes: `POST /reindex` starts a rebuild, `GET /reindex` says how it goes.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;

use crate::services::reindex::{Progress, Reindex};

/// The routes.
pub fn router(reindex: Arc<Reindex>) -> Router {
    Router::new()
        .route("/reindex", get(progress).post(start))
        .with_state(reindex)
}

async fn progress(State(reindex): State<Arc<Reindex>>) -> Json<Progress> {
    Json(reindex.progress())
}

/// 202 when it started, 409 when one was running already; the body is the progress.
async fn start(State(reindex): State<Arc<Reindex>>) -> (StatusCode, Json<Progress>) {
    let status = if reindex.start("asked for by an operator") {
        StatusCode::ACCEPTED
    } else {
        StatusCode::CONFLICT
    };
    (status, Json(reindex.progress()))
}
