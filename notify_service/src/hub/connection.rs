//! One stream of one device: what waits for it, in bytes, and whether it should end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fechatter_core::{UserId, WorkspaceId};
use uuid::Uuid;

/// A stream as the hub sees it.
#[derive(Debug)]
pub struct Connection {
    pub user: UserId,
    pub workspace: WorkspaceId,
    pub session: Uuid,
    /// What the client had when it came; another process may have been ahead of this one.
    after: AtomicU64,
    limit: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
    ended: Option<End>,
    waker: Option<Waker>,
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client did not keep up.
    Slow,
    /// It needs another access token.
    Reauth,
    /// It lasted long enough, or the process stops: the client comes back.
    Rotated,
}

impl End {
    /// The name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Reauth => "reauth",
            Self::Rotated => "rotated",
        }
    }
}

impl Connection {
    /// An empty queue of at most `limit` bytes.
    pub fn new(user: UserId, workspace: WorkspaceId, session: Uuid, after: u64, limit: usize) -> Self {
        Self {
            user,
            workspace,
            session,
            after: AtomicU64::new(after),
            limit,
            queue: Mutex::default(),
        }
    }

    /// The sequence up to which the client has everything already.
    pub fn after(&self) -> u64 {
        self.after.load(Ordering::Relaxed)
    }

    /// A new history begins, or events were lost: the client has nothing of what comes.
    pub fn forget_after(&self) {
        self.after.store(0, Ordering::Relaxed);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame; when it does not fit, the stream ends and the client resumes by its cursor. `false` at that moment.
    pub fn push(&self, frame: &Bytes) -> bool {
        let mut queue = self.queue();
        if queue.ended.is_some() {
            return true;
        }
        let fits = queue.bytes + frame.len() <= self.limit || queue.frames.is_empty();
        if fits {
            queue.bytes += frame.len();
            queue.frames.push_back(frame.clone());
        } else {
            queue.frames = VecDeque::new();
            queue.bytes = 0;
            queue.ended = Some(End::Slow);
        }
        wake(queue);
        fits
    }

    /// Queues a frame only while little waits: what is lost is not missed.
    pub fn push_ephemeral(&self, frame: &Bytes) {
        let mut queue = self.queue();
        if queue.ended.is_none() && queue.bytes + frame.len() <= self.limit / 4 {
            queue.bytes += frame.len();
            queue.frames.push_back(frame.clone());
            wake(queue);
        }
    }

    /// Ends the stream after what is queued and `last`.
    pub fn end(&self, end: End, last: Option<Bytes>) {
        let mut queue = self.queue();
        if queue.ended.is_none() {
            queue.ended = Some(end);
            queue.frames.extend(last);
            wake(queue);
        }
    }

    /// The next frame, `None` at the end.
    pub fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut queue = self.queue();
        if let Some(frame) = queue.frames.pop_front() {
            queue.bytes = queue.bytes.saturating_sub(frame.len());
            if queue.frames.is_empty() {
                // An idle stream holds no buffer.
                queue.frames = VecDeque::new();
            }
            return Poll::Ready(Some(frame));
        }
        if queue.ended.is_some() {
            return Poll::Ready(None);
        }
        if !queue
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()))
        {
            queue.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Why it ended, if it did.
    pub fn ended(&self) -> Option<End> {
        self.queue().ended
    }
}

fn wake(mut queue: MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}
