//! A new program takes over without refusing a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::support::gateway::exit_code;
use crate::support::{Gateway, Issuer, Reply, Upstream, eventually};

async fn upstream() -> Upstream {
    Upstream::with(|request| match request.target() {
        "/events" => Reply::Events(vec![(Duration::ZERO, "data: first\n\n".to_owned())]),
        _ => Reply::json(200, &serde_json::json!({"id": 7})),
    })
    .await
}

fn settings(gateway_folder: &std::path::Path) -> String {
    gateway_folder.join("upgrade.sock").display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_takes_over_under_load_and_no_request_fails() {
    let (issuer, upstream) = (Issuer::start().await, upstream().await);
    let folder = tempfile::tempdir().unwrap();
    let socket = settings(folder.path());
    let mut gateway = Gateway::start(&issuer, &[&upstream], &[("UPGRADE_SOCKET", &socket)]).await;
    let (url, token) = (gateway.url("/api/me"), issuer.token(7));
    let stop = CancellationToken::new();
    let answered = Arc::new(AtomicU32::new(0));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (url, token, stop, answered) = (url.clone(), token.clone(), stop.clone(), Arc::clone(&answered));
            // Every request by a new connection, or it could not be refused.
            let client = gateway.client(|builder| builder.pool_max_idle_per_host(0));
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let answer = client.get(&url).bearer_auth(&token).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut stream = gateway
        .http2()
        .get(gateway.url("/events"))
        .bearer_auth(&token)
        .send()
        .await
        .unwrap();
    assert!(stream.chunk().await.unwrap().is_some());

    for round in 1..=2 {
        let before = answered.load(Ordering::Relaxed);
        let progress = async |beyond: u32| {
            eventually("answers", async || {
                (answered.load(Ordering::Relaxed) > beyond).then_some(())
            })
            .await;
        };
        progress(before + 20).await;
        let successor = gateway.successor(&[]);
        let mut old = gateway.become_process(successor);
        assert_eq!(exit_code(&mut old).await, 0, "round {round}");
        progress(answered.load(Ordering::Relaxed) + 20).await;
    }
    stop.cancel();
    for task in load {
        task.await.unwrap();
    }
    // The stream was closed politely: its client comes back by its cursor.
    while stream.chunk().await.ok().flatten().is_some() {}
    assert!(
        gateway.metrics().await.contains("gateway_connections"),
        "the admin listener went over too"
    );
}

#[tokio::test]
async fn a_successor_that_cannot_start_changes_nothing() {
    let (issuer, upstream) = (Issuer::start().await, upstream().await);
    let folder = tempfile::tempdir().unwrap();
    let socket = settings(folder.path());
    let gateway = Gateway::start(&issuer, &[&upstream], &[("UPGRADE_SOCKET", &socket)]).await;
    let mut taken = gateway.successor(&[("LISTEN", &upstream.address.to_string())]);
    assert_ne!(exit_code(&mut taken).await, 0, "its new address is taken");
    let mut nobody = gateway.successor(&[("UPGRADE_SOCKET", "/nowhere/upgrade.sock")]);
    assert_ne!(exit_code(&mut nobody).await, 0, "nobody offers anything there");
    eventually("the log", async || {
        let log = gateway.log();
        (log.contains("nobody took over, going on") && log.contains("no gateway offers its sockets")).then_some(())
    })
    .await;
    let answer = gateway
        .http1()
        .get(gateway.url("/api/me"))
        .bearer_auth(issuer.token(7))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "nobody else takes our sockets");
}
