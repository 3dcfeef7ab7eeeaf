//! Gateway, upstream, token issuer and raw client for the tests.

pub mod gateway;
pub mod http2;
pub mod issuer;
pub mod raw;
pub mod upstream;

use std::future::Future;
use std::time::{Duration, Instant};

pub use gateway::Gateway;
pub use issuer::Issuer;
pub use upstream::{Reply, Upstream};

/// Polls until `ready` gives a value; panics with `what` after 20 s.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ready: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "waited 20 s in vain for {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A gateway in front of one upstream for all groups, and who signs its tokens.
pub struct Setup {
    pub gateway: Gateway,
    pub upstream: Upstream,
    pub issuer: Issuer,
}

/// The usual setup; `settings` are configuration variables without their prefix.
pub async fn setup(settings: &[(&str, &str)]) -> Setup {
    let issuer = Issuer::start().await;
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&issuer, &[&upstream], settings).await;
    Setup {
        gateway,
        upstream,
        issuer,
    }
}

/// The JSON body of an answer that must be a problem with this status and code.
pub async fn problem(answer: reqwest::Response, status: u16, code: &str) -> serde_json::Value {
    assert_eq!(answer.status().as_u16(), status, "{answer:?}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert!(answer.headers().contains_key("traceresponse"));
    let body: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["status"], status, "{body}");
    assert_eq!(body["request_id"], id.as_str(), "{body}");
    body
}

/// A NATS server whose users may do what they may on the running platform.
pub async fn start_nats(folder: std::path::PathBuf) -> dev::nats::Server {
    let options = dev::nats::Options {
        data: folder.join("data"),
        port: dev::ports::free().unwrap(),
        log: folder.join("nats.log"),
        users: vec![
            ("chat".to_owned(), "c".to_owned()),
            ("gateway".to_owned(), "g".to_owned()),
        ],
        sync_always: false,
    };
    tokio::task::spawn_blocking(|| dev::nats::Server::start(options))
        .await
        .unwrap()
        .unwrap()
}
