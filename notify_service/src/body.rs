//! The body of a stream's answer: no task and no channel of its own, only a queue that is polled when the connection can
//! write.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use rand::RngExt;
use time::OffsetDateTime;
use tokio::time::{Instant, Sleep};

use crate::connection::{Batch, Connection, End};
use crate::event::{Route, heartbeat};
use crate::hub::Hub;

/// Frames up to this size are copied into one write; a larger one goes as it is, shared by all its receivers.
const COPY_BYTES: usize = 4 * 1024;

/// When a stream ends by itself.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// The token needs renewal.
    pub reauth_at: Instant,
    /// It has lived long enough.
    pub rotate_at: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct EventBody {
    connection: Arc<Connection>,
    hub: Arc<Hub>,
    timer: Pin<Box<Sleep>>,
    life: Life,
    opened: Instant,
    /// Sent before anything else.
    preamble: Option<Bytes>,
    /// What is taken and not handed on yet, last first.
    taken: Vec<Bytes>,
}

impl EventBody {
    /// The body of a stream that has just been joined.
    pub fn new(connection: Arc<Connection>, hub: Arc<Hub>, life: Life) -> Self {
        let opened = Instant::now();
        let config = hub.stream_config();
        let retry = format!("retry: {}\n", config.retry_ms);
        // The first heartbeat comes anywhere within the interval: clients that came together do not beat together.
        let first = rand::rng().random_range(1..=config.heartbeat_max_seconds * 1_000);
        let first = (opened + Duration::from_millis(first))
            .min(life.reauth_at)
            .min(life.rotate_at);
        Self {
            connection,
            hub,
            timer: Box::pin(tokio::time::sleep_until(first)),
            life,
            opened,
            preamble: Some(retry.into()),
            taken: Vec::new(),
        }
    }

    /// Ends the stream when its time has come.
    fn check_life(&self) {
        let now = Instant::now();
        if now >= self.life.reauth_at {
            self.connection.end(End::Expiring);
        } else if now >= self.life.rotate_at {
            self.connection.end(End::Rotated);
        }
    }

    fn set_timer(&mut self) {
        let config = self.hub.stream_config();
        let (least, most) = (
            config.heartbeat_min_seconds * 1_000,
            config.heartbeat_max_seconds * 1_000,
        );
        let next = Instant::now() + Duration::from_millis(rand::rng().random_range(least..=most));
        let next = next.min(self.life.reauth_at).min(self.life.rotate_at);
        self.timer.as_mut().reset(next);
    }

    /// Makes few writes of many small frames.
    fn take(&mut self, batch: Batch) {
        let metrics = self.hub.metrics();
        let now = OffsetDateTime::now_utc();
        let mut writes: Vec<Bytes> = Vec::new();
        let mut small = BytesMut::new();
        let mut add = |frame: Bytes| {
            if frame.len() > COPY_BYTES {
                if !small.is_empty() {
                    writes.push(small.split().freeze());
                }
                writes.push(frame);
            } else {
                small.extend_from_slice(&frame);
            }
        };
        let is_alone = batch.events.len() + batch.ephemeral.len() == 1 && self.preamble.is_none();
        if is_alone {
            let frame = batch.events.first().map(|entry| entry.frame.clone());
            self.taken.extend(frame.or_else(|| batch.ephemeral.first().cloned()));
        } else {
            self.preamble.take().into_iter().for_each(&mut add);
            batch.events.iter().map(|entry| entry.frame.clone()).for_each(&mut add);
            batch.ephemeral.into_iter().for_each(&mut add);
            if !small.is_empty() {
                writes.push(small.freeze());
            }
            self.taken.extend(writes.into_iter().rev());
        }
        for entry in batch.events.iter().skip(batch.backlog) {
            if !matches!(entry.route, Route::Control) {
                metrics.written_after((now - entry.time).try_into().unwrap_or_default());
            }
        }
    }
}

impl http_body::Body for EventBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(bytes) = self.taken.pop() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            self.check_life();
            match self.connection.poll_next(context) {
                Poll::Ready(Some(batch)) => self.take(batch),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    if self.timer.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    self.set_timer();
                    self.check_life();
                    if self.connection.ended().is_none() {
                        // Asked before the queue: whatever had been processed by then is in the queue or written.
                        let at = self.hub.position();
                        let at = at.and_then(|at| self.connection.idle_cursor(at));
                        self.taken.push(heartbeat(at));
                    }
                }
            }
        }
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        // Whoever ended it first said why; otherwise the client left.
        self.connection.end(End::Client);
        self.hub.leave(&self.connection);
        let end = self.connection.ended().unwrap_or(End::Client);
        self.hub.metrics().ended(end, self.opened.elapsed());
    }
}
