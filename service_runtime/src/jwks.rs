//! Keeps a [`Verifier`]'s keys fresh from a JWKS URL; known keys keep working while the source is away.

use std::sync::Arc;
use std::time::Duration;

use fechatter_core::token::{KeySet, Verifier};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time between two fetches while all is well.
const REFRESH: Duration = Duration::from_secs(30);
/// Time between two attempts until the first success.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// Least time between two fetches caused by unknown keys, whoever sends them.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(2);
/// How long a fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a request waits for a fetch caused by its unknown key: longer than that takes, so that a slow answer of the source does not make a
/// good token a bad one.
const UNKNOWN_KEY_WAIT: Duration = Duration::from_secs(4);
/// Largest JWKS document read, in bytes.
const DOCUMENT_MAX: usize = 65_536;

/// Asks the background task for a fetch out of turn.
#[derive(Debug, Clone)]
pub struct Refresher {
    requests: mpsc::Sender<oneshot::Sender<()>>,
}

impl Refresher {
    /// Has the key set fetched because a token names a key not known yet, unless that was done a moment ago. Look again then: whether the
    /// key is there now is all that counts.
    pub async fn unknown_key(&self) {
        let (done, fetched) = oneshot::channel();
        if self.requests.try_send(done).is_ok() {
            // Late or refused, the answer is the same: what is known is known.
            let _ = tokio::time::timeout(UNKNOWN_KEY_WAIT, fetched).await;
        }
    }
}

/// For `/ready`: whether keys to check tokens with are known.
pub fn ready(verifier: &Verifier) -> Result<(), &'static str> {
    verifier.is_ready().then_some(()).ok_or("no signing keys fetched yet")
}

/// Starts the background task; it ends with `shutdown`.
pub fn spawn(url: String, verifier: Arc<Verifier>, shutdown: CancellationToken) -> Refresher {
    let (requests, mut waiting) = mpsc::channel::<oneshot::Sender<()>>(64);
    tokio::spawn(async move {
        let client = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .build()
            .unwrap_or_default();
        let mut warned = false;
        let mut last_unknown: Option<Instant> = None;
        let mut asker: Option<oneshot::Sender<()>> = None;
        loop {
            match fetch(&client, &url).await {
                Ok(keys) => {
                    if warned || !verifier.is_ready() {
                        tracing::info!(kids = ?keys.kids(), "signing keys fetched");
                    }
                    warned = false;
                    verifier.set_keys(keys);
                    // Who asked may have given up; nothing is lost then. Who asked during the fetch has its answer too.
                    let later = std::iter::from_fn(|| waiting.try_recv().ok());
                    for asker in asker.take().into_iter().chain(later) {
                        let _ = asker.send(());
                    }
                }
                Err(error) => {
                    if !warned {
                        tracing::warn!(error, url, "cannot fetch signing keys; known ones keep working");
                    }
                    warned = true;
                    drop(asker.take());
                }
            }
            let pause = if verifier.is_ready() { REFRESH } else { FIRST_RETRY };
            let wake = tokio::time::sleep(pause);
            tokio::pin!(wake);
            // Requests that come too soon after the last forced fetch are answered by dropping their channel.
            asker = loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = &mut wake => break None,
                    Some(asker) = waiting.recv() => {
                        if last_unknown.is_none_or(|at| at.elapsed() >= UNKNOWN_KEY_PAUSE) {
                            last_unknown = Some(Instant::now());
                            break Some(asker);
                        }
                    }
                }
            };
        }
    });
    Refresher { requests }
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<KeySet, String> {
    let mut response = client
        .get(url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|e| e.to_string())?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| e.to_string())? {
        if body.len() + chunk.len() > DOCUMENT_MAX {
            return Err(format!("the document is larger than {DOCUMENT_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    KeySet::parse(&body).map_err(|error| error.to_string())
}
