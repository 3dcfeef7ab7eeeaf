//! Event streams share connections to their upstream, and none waits for another.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures::stream;
use http::Version;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::{Gateway, Issuer, eventually};

/// Bytes of a piece of a stream that never pauses.
const PIECE: usize = 8 * 1_024;

/// Serves streams by HTTP/1.1 and HTTP/2, as notify_service does, and remembers how they came.
#[derive(Clone)]
struct Streams {
    address: SocketAddr,
    came: Arc<Mutex<Vec<(SocketAddr, Version)>>>,
    open: Arc<AtomicUsize>,
    /// How many things every stream has been told to say.
    told: Arc<watch::Sender<u64>>,
    /// Pieces that streams which never pause have said.
    poured: Arc<AtomicUsize>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Streams {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let streams = Self {
            address: listener.local_addr().unwrap(),
            came: Arc::default(),
            open: Arc::default(),
            told: Arc::new(watch::Sender::new(0)),
            poured: Arc::default(),
        };
        let app = Router::new()
            .route("/events", get(events))
            .fallback(|| async { "{}" })
            .with_state(streams.clone())
            .into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
        streams
    }

    /// A gateway of one thread in front of it.
    async fn gateway(&self, issuer: &Issuer, per_connection: &str, more: &[(&str, &str)]) -> Gateway {
        let address = format!("[\"{}\"]", self.address);
        let mut settings = vec![
            ("UPSTREAMS__CHAT", &*address),
            ("UPSTREAMS__NOTIFY", &*address),
            ("UPSTREAMS__INDEXER", &*address),
            ("UPSTREAMS__STREAMS_PER_CONNECTION", per_connection),
            ("THREADS", "1"),
        ];
        settings.extend_from_slice(more);
        Gateway::start(issuer, &[], &settings).await
    }

    /// Lets every stream say one thing more.
    fn tell(&self) {
        self.told.send_modify(|told| *told += 1);
    }

    fn connections(&self) -> usize {
        let came = self.came.lock().unwrap();
        came.iter().map(|(peer, _)| *peer).collect::<HashSet<_>>().len()
    }
}

async fn events(
    State(streams): State<Streams>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    streams.came.lock().unwrap().push((peer, request.version()));
    let query = request.uri().query().unwrap_or_default().to_owned();
    drop(request);
    if query.contains("hang") {
        std::future::pending::<()>().await;
    }
    streams.open.fetch_add(1, Ordering::SeqCst);
    let open = Open(Arc::clone(&streams.open));
    let never_pauses = query.contains("pour");
    let mut told = streams.told.subscribe();
    let already = *told.borrow_and_update();
    let body = stream::unfold(
        (streams, open, told, already),
        move |(streams, open, mut told, mut said)| async move {
            let words = if never_pauses {
                streams.poured.fetch_add(1, Ordering::SeqCst);
                Bytes::from(vec![b'x'; PIECE])
            } else {
                told.wait_for(|told| *told > said).await.unwrap();
                said += 1;
                Bytes::from_static(b"data: x\n\n")
            };
            Some((Ok::<_, Infallible>(words), (streams, open, told, said)))
        },
    );
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(Body::from_stream(body))
        .unwrap()
}

#[tokio::test]
async fn streams_share_connections_and_leave_alone() {
    let issuer = Issuer::start().await;
    let upstream = Streams::start().await;
    let gateway = upstream.gateway(&issuer, "3", &[]).await;
    let mut clients = Vec::new();
    for user in 1..=6 {
        let client = gateway.http1();
        let request = client.get(gateway.url("/events")).bearer_auth(issuer.token(user));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        clients.push(answer);
    }
    assert_eq!(upstream.connections(), 2, "{:?}", upstream.came);
    assert!(
        upstream
            .came
            .lock()
            .unwrap()
            .iter()
            .all(|(_, version)| *version == Version::HTTP_2)
    );
    // Every client gets its own.
    upstream.tell();
    for answer in &mut clients {
        assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: x\n\n");
    }
    // One that leaves takes no other along, and its place is given again.
    clients.swap_remove(1);
    eventually("the stream to end", async || {
        (upstream.open.load(Ordering::SeqCst) == 5).then_some(())
    })
    .await;
    upstream.tell();
    for answer in &mut clients {
        assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: x\n\n");
    }
    drop(clients);
    eventually("all streams to end", async || {
        (upstream.open.load(Ordering::SeqCst) == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_no_other() {
    let issuer = Issuer::start().await;
    let upstream = Streams::start().await;
    let gateway = upstream.gateway(&issuer, "4", &[]).await;
    let mut stuck = Vec::new();
    for user in 1..=3 {
        let url = gateway.url("/events?last_event_id=pour");
        let answer = gateway
            .http1()
            .get(url)
            .bearer_auth(issuer.token(user))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        stuck.push(answer);
    }
    let request = gateway.http1().get(gateway.url("/events")).bearer_auth(issuer.token(9));
    let mut answer = request.send().await.unwrap();
    assert_eq!(upstream.connections(), 1, "{:?}", upstream.came);
    let poured = || upstream.poured.load(Ordering::SeqCst);
    eventually("every buffer to be full", async || {
        let before = poured();
        tokio::time::sleep(Duration::from_millis(500)).await;
        (before > 0 && poured() == before).then_some(())
    })
    .await;
    for _ in 0..20 {
        upstream.tell();
        let event = tokio::time::timeout(Duration::from_secs(10), answer.chunk()).await;
        assert_eq!(event.unwrap().unwrap().unwrap(), "data: x\n\n");
    }
    drop(stuck);
}

#[tokio::test]
async fn a_connection_whose_upstream_says_nothing_gets_no_new_stream() {
    let issuer = Issuer::start().await;
    let upstream = Streams::start().await;
    let settings = [
        ("UPSTREAMS__STREAM_READ_TIMEOUT_MS", "1000"),
        ("UPSTREAMS__BREAK_AFTER", "1000"),
    ];
    let gateway = upstream.gateway(&issuer, "100", &settings).await;
    for user in 1..=2 {
        let url = gateway.url("/events?last_event_id=hang");
        let request = gateway.http1().get(url).bearer_auth(issuer.token(user));
        assert_eq!(request.send().await.unwrap().status(), 504);
    }
    assert_eq!(upstream.connections(), 2, "{:?}", upstream.came);
}
