//! What the admin listener tells beyond `/live`, `/ready` and `/metrics`: routes, upstreams, configuration; and a reload.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Value, json};

use crate::reload::Reloader;
use crate::routes::Routes;

/// The routes.
pub fn router(routes: &'static Routes, reloader: Arc<Reloader>) -> Router {
    let list = move |State(reloader): State<Arc<Reloader>>| async move {
        Json(routes.describe(reloader.policy.load().has_web()))
    };
    Router::new()
        .route("/routes", get(list))
        .route("/upstreams", get(upstreams))
        .route("/config", get(config))
        .route("/reload", post(reload))
        .with_state(reloader)
}

async fn upstreams(State(reloader): State<Arc<Reloader>>) -> Json<Value> {
    Json(reloader.upstreams.describe())
}

/// The configuration in force, as text; secrets print themselves masked.
async fn config(State(reloader): State<Arc<Reloader>>) -> String {
    let mut config = reloader.policy.load().config.clone();
    config.nats.url = masked(&config.nats.url);
    config.auth.jwks_url = masked(&config.auth.jwks_url);
    format!("{config:#?}\n")
}

/// URLs without what stands before their `@`.
fn masked(urls: &str) -> String {
    let mask = |url: &str| match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}://[masked]{}", &url[..scheme], &url[at..]),
        _ => url.to_owned(),
    };
    urls.split(',').map(mask).collect::<Vec<_>>().join(",")
}

async fn reload(State(reloader): State<Arc<Reloader>>) -> (StatusCode, Json<Value>) {
    match reloader.reload().await {
        Ok(restart) => (StatusCode::OK, Json(json!({"reloaded": true, "need_restart": restart}))),
        Err(faults) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            Json(json!({"reloaded": false, "faults": faults})),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_masked() {
        assert_eq!(masked("nats://u:p@h:1,nats://i:2"), "nats://[masked]@h:1,nats://i:2");
        assert_eq!(masked("http://h/path"), "http://h/path");
    }
}
