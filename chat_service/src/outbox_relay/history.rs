//! The keeper: makes the stream, and knows which history of it is valid.
//!
//! A history is a row of sequences that only grew. It ends when the stream was lost, or came back without something that
//! it had acknowledged; then a new epoch begins and everything that the outbox still holds is published again. The
//! keeper looks at the start, after every reconnection, whenever a publisher doubts, and twice a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use sqlx::PgPool;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::backoff::{Backoff, Outage};
use super::status::{Part, is_connected};
use super::stream::{self, StreamFault};
use super::{Config, Shared};
use crate::repositories;
use crate::repositories::outbox_progress::{OutboxProgress, Progress};

/// How often the connection's state is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Longest time between two examinations of the stream.
const EXAMINE_EVERY: Duration = Duration::from_secs(30);
/// Longest time a part of an examination may take.
const EXAMINE_TIMEOUT: Duration = Duration::from_mins(1);

/// A history that was found valid, and on which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    pub(super) epoch: Uuid,
    /// [`Shared::connects`] before the examination.
    pub(super) connects: u64,
    /// The last doubt before the examination.
    answers: u64,
}

/// A doubt: only an examination that began after it counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Doubt(u64);

/// What publishers see of the keeper.
#[derive(Debug)]
pub(super) struct Handle {
    current: watch::Receiver<Option<History>>,
    doubts: Arc<Doubts>,
}

#[derive(Debug, Default)]
struct Doubts {
    raised: AtomicU64,
    wake: Notify,
}

impl Handle {
    /// Waits for a history that was found valid after `doubt` was raised.
    pub(super) async fn valid_since(&self, doubt: Doubt) -> History {
        let mut current = self.current.clone();
        let found = current
            .wait_for(|history| history.is_some_and(|history| history.answers >= doubt.0))
            .await;
        match found.map(|history| *history) {
            Ok(Some(history)) => history,
            // The keeper has ended: so will we.
            _ => std::future::pending().await,
        }
    }

    /// Asks for an examination.
    pub(super) fn doubt(&self) -> Doubt {
        let raised = self.doubts.raised.fetch_add(1, Ordering::SeqCst) + 1;
        self.doubts.wake.notify_one();
        Doubt(raised)
    }
}

/// The keeper's side of a [`Handle`].
#[derive(Debug)]
pub(super) struct Requests {
    current: watch::Sender<Option<History>>,
    doubts: Arc<Doubts>,
}

pub(super) fn channel() -> (Handle, Requests) {
    let (sender, receiver) = watch::channel(None);
    let doubts = Arc::new(Doubts::default());
    let handle = Handle {
        current: receiver,
        doubts: Arc::clone(&doubts),
    };
    let requests = Requests {
        current: sender,
        doubts,
    };
    (handle, requests)
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    replicas: usize,
    requests: Requests,
    context: jetstream::Context,
    /// Whether the stream's configuration was compared with ours since the start.
    is_configured: bool,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, replicas: usize, requests: Requests) -> Self {
        let context = jetstream::new(shared.client.clone());
        Self {
            shared,
            replicas,
            requests,
            context,
            is_configured: false,
        }
    }

    /// Runs for ever.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut outage = Outage::new("keeping the event stream");
        let mut examined = Instant::now();
        loop {
            tokio::select! {
                () = self.requests.doubts.wake.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            if !is_connected(&self.shared.client) {
                self.requests.current.send_replace(None);
                self.shared.status.stream_ready(false);
                outage.failed(&"NATS is not connected");
                continue;
            }
            let connects = self.shared.connects();
            let raised = self.requests.doubts.raised.load(Ordering::SeqCst);
            let is_trusted = |history: &History| history.connects == connects && history.answers == raised;
            let is_current = self.requests.current.borrow().as_ref().is_some_and(is_trusted);
            if is_current && examined.elapsed() < EXAMINE_EVERY {
                continue;
            }
            let examination = Box::pin(self.examine()).await;
            examined = Instant::now();
            match examination {
                Ok(epoch) => {
                    self.requests.current.send_replace(Some(History {
                        epoch,
                        connects,
                        answers: raised,
                    }));
                    self.shared.status.stream_ready(true);
                    self.shared.status.worked(Part::Stream);
                    backoff.reset();
                    outage.worked();
                }
                Err(fault) => {
                    self.requests.current.send_replace(None);
                    self.shared.status.stream_ready(false);
                    self.shared.status.failed(Part::Stream, "stream", &fault);
                    outage.failed(&fault);
                    tokio::time::sleep(backoff.delay()).await;
                }
            }
        }
    }

    /// The valid history; a new one when the stream's is not.
    async fn examine(&mut self) -> Result<Uuid, StreamFault> {
        if let Some(epoch) = in_time(self.look()).await? {
            return Ok(epoch);
        }
        // What is published from here on would be published again.
        self.requests.current.send_replace(None);
        self.begin_anew().await
    }

    /// Makes sure that there is a stream, that all progress was made in its history, and that it still holds it.
    async fn look(&mut self) -> Result<Option<Uuid>, StreamFault> {
        stream::check_server(&self.shared.client)?;
        let config = stream::config(&self.shared.config, self.replicas);
        let stream = stream::open(&self.context, &config, !self.is_configured).await?;
        self.is_configured = true;
        let progress = {
            let mut connection = self.shared.pool.acquire().await?;
            OutboxProgress::new(&mut connection).all().await?
        };
        stream::valid_epoch(&stream, &progress).await
    }

    /// Begins a new history unless another process has done it.
    async fn begin_anew(&self) -> Result<Uuid, StreamFault> {
        let shared = &self.shared;
        let (epoch, is_later) = decide(
            &shared.pool,
            &self.context,
            &shared.config,
            self.replicas,
            Anew::IfInvalid,
        )
        .await?;
        if is_later {
            shared.status.rebuilt();
        }
        Ok(epoch)
    }
}

/// When a new history begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anew {
    /// When the present one is not valid.
    IfInvalid,
    /// Also when it seems valid, unless it is another than the one that was found wrong.
    InsteadOf(Option<Uuid>),
}

/// Begins a new history, for an operator. Returns the one that is valid now.
pub(crate) async fn begin_anew(
    pool: &PgPool,
    context: &jetstream::Context,
    config: &Config,
    replicas: usize,
    when: Anew,
) -> Result<Uuid, StreamFault> {
    decide(pool, context, config, replicas, when)
        .await
        .map(|(epoch, _)| epoch)
}

/// Decides alone, under a lock, about a new history. Looks again first: another process may have done it. `true` when one began
/// that is not the first.
///
/// Where it begins is looked up before the old one is ended, and may take as long as the outbox is large. Were the time
/// for that limited, or spent after the stream was emptied, a large outbox would never get past this point.
async fn decide(
    pool: &PgPool,
    context: &jetstream::Context,
    config: &Config,
    replicas: usize,
    when: Anew,
) -> Result<(Uuid, bool), StreamFault> {
    let config = stream::config(config, replicas);
    let mut transaction = in_time(async { Ok(repositories::begin(pool).await?) }).await?;
    let mut outbox = OutboxProgress::new(&mut transaction);
    outbox.lock_history().await?;
    let look = async {
        let stream = stream::open(context, &config, false).await?;
        let progress: Vec<Progress> = outbox.all().await?;
        let valid = stream::valid_epoch(&stream, &progress).await?;
        Ok((progress, valid))
    };
    let (progress, valid) = in_time(look).await?;
    if let Some(epoch) = valid
        && when != Anew::InsteadOf(Some(epoch))
    {
        return Ok((epoch, false));
    }
    let starts = outbox.starts().await?;
    let begin = async {
        // Looked at again: the lookup may have taken long.
        let stream = stream::open(context, &config, false).await?;
        let epoch = match stream::unused_epoch(&stream) {
            Some(epoch) => epoch,
            None => stream::begin_epoch(context, &stream).await?,
        };
        let shards = outbox.rewind(epoch, &starts).await?;
        Ok((epoch, shards))
    };
    let (epoch, shards) = in_time(begin).await?;
    transaction.commit().await?;
    let is_first = progress.iter().all(|shard| shard.stream_epoch.is_none());
    if is_first {
        tracing::info!(%epoch, "first history of the event stream");
    } else {
        tracing::warn!(%epoch, shards, "the event stream was lost or went back: publishing all retained events again");
    }
    Ok((epoch, !is_first))
}

/// Bounds what waits for NATS: a request can be lost with its connection.
async fn in_time<T>(examination: impl Future<Output = Result<T, StreamFault>>) -> Result<T, StreamFault> {
    // On the heap: these futures are large, and rare.
    tokio::time::timeout(EXAMINE_TIMEOUT, Box::pin(examination))
        .await
        .unwrap_or(Err(StreamFault::Timeout))
}
