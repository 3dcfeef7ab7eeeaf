//! One live stream: what is waiting to be written to it, bounded in bytes, and how it ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use uuid::Uuid;

use crate::cursor::Cursor;
use crate::event::{Entry, Route};

/// Most bytes handed to the HTTP connection at once, unless one event is larger.
const WRITE_BYTES: usize = 16 * 1024;
/// Most ephemeral events that wait; the oldest leave first.
const EPHEMERAL_MAX: usize = 32;
/// A queue that has been larger gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 16;

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The client left, or the connection broke.
    Client,
    /// It did not read fast enough.
    Slow,
    /// The token is about to expire.
    Expiring,
    /// The session was revoked.
    Revoked,
    /// The user was deactivated.
    Deactivated,
    /// It had lived long enough.
    Rotated,
    /// The process stops.
    Draining,
    /// Another stream took its place (same ticket), or what we know of the user is in doubt.
    Replaced,
}

impl End {
    /// A bounded label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Slow => "slow",
            Self::Expiring => "expiring",
            Self::Revoked => "revoked",
            Self::Deactivated => "deactivated",
            Self::Rotated => "rotated",
            Self::Draining => "draining",
            Self::Replaced => "replaced",
        }
    }

    /// The reason a `reauth` event gives, for ends that need other credentials.
    const fn reauth(self) -> Option<&'static str> {
        match self {
            Self::Expiring => Some("token_expires"),
            Self::Revoked => Some("session_revoked"),
            Self::Deactivated => Some("deactivated"),
            _ => None,
        }
    }
}

/// What identifies a short-lived event: a newer one of the same key replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EphemeralKey {
    Typing(ChatId, UserId),
    Presence(UserId),
}

/// Whose stream it is.
#[derive(Debug, Clone)]
pub struct Owner {
    pub user: UserId,
    pub workspace: WorkspaceId,
    pub session: Uuid,
    /// Digest of the ticket it was opened with.
    pub ticket: Option<[u8; 32]>,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    pub id: u64,
    pub owner: Owner,
    live_bytes_max: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Arc<Entry>>,
    /// How many at the front are the backlog, which has a bound of its own.
    backlog: usize,
    live_bytes: usize,
    ephemeral: VecDeque<(EphemeralKey, Bytes)>,
    /// Events up to here are known to the client already.
    known: u64,
    /// The client is to be told of a gap, for this reason, once it is known what it may see; until then it gets nothing.
    held: Option<&'static str>,
    end: Option<End>,
    waker: Option<Waker>,
}

/// What is to be written next.
#[derive(Debug, Default)]
pub struct Batch {
    pub events: Vec<Arc<Entry>>,
    /// How many of them, from the first, are of the backlog.
    pub backlog: usize,
    pub ephemeral: Vec<Bytes>,
}

impl Connection {
    /// A stream whose live events may take `live_bytes_max` bytes while they wait.
    pub fn new(id: u64, owner: Owner, live_bytes_max: usize) -> Self {
        Self {
            id,
            owner,
            live_bytes_max,
            queue: Mutex::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the stream begins with: control event, backlog, control event. The client knows what is up to `known`.
    pub fn begin(&self, events: VecDeque<Arc<Entry>>, known: u64) {
        let mut queue = self.queue();
        queue.backlog = events.len();
        queue.events = events;
        queue.known = known;
    }

    /// Adds a live event; `false` when it no longer fits, which ends the stream.
    pub fn push(&self, entry: &Arc<Entry>) -> bool {
        let mut queue = self.queue();
        if queue.end.is_some() || queue.held.is_some() || (entry.sequence != 0 && entry.sequence <= queue.known) {
            return true;
        }
        let bytes = entry.frame.len();
        if queue.live_bytes > 0 && queue.live_bytes + bytes > self.live_bytes_max {
            queue.abandon(End::Slow);
            return false;
        }
        queue.live_bytes += bytes;
        queue.events.push_back(Arc::clone(entry));
        queue.wake();
        true
    }

    /// Puts nothing into the stream any more, its cursor neither, until [`release`](Self::release) tells of the gap.
    pub fn hold(&self, reason: &'static str) {
        let mut queue = self.queue();
        if queue.end.is_some() {
            return;
        }
        queue.forget_events();
        queue.held = Some(reason);
    }

    /// Ends what [`hold`](Self::hold) began with its gap; gives the reason if there was one to tell.
    pub fn release(&self, at: Cursor) -> Option<&'static str> {
        let reason = self.queue().held.take()?;
        self.gap(reason, at);
        Some(reason)
    }

    /// Tells the client that its place in the stream is lost. What waits is moot, and the new place counts. Who is held is told
    /// later.
    pub fn gap(&self, reason: &str, at: Cursor) {
        let mut queue = self.queue();
        if queue.end.is_some() || queue.held.is_some() {
            return;
        }
        queue.forget_events();
        let entry = Arc::new(Entry::gap(reason, at));
        queue.live_bytes = entry.frame.len();
        queue.events.push_back(entry);
        queue.known = 0;
        queue.wake();
    }

    /// Adds a short-lived event, unless the client is behind: those are the first to be dropped.
    pub fn push_ephemeral(&self, key: EphemeralKey, frame: &Bytes) -> bool {
        let mut queue = self.queue();
        let is_held = queue.end.is_some() || queue.held.is_some();
        if is_held || queue.live_bytes > self.live_bytes_max / 4 || queue.backlog > 0 {
            return false;
        }
        queue.ephemeral.retain(|(present, _)| *present != key);
        if queue.ephemeral.len() >= EPHEMERAL_MAX {
            queue.ephemeral.pop_front();
        }
        queue.ephemeral.push_back((key, frame.clone()));
        queue.wake();
        true
    }

    /// Takes back what waits of a chat that the user may no longer see, but for the event that says so.
    pub fn cut(&self, chat: ChatId, but: u64) {
        let mut queue = self.queue();
        let keeps = |entry: &Entry| {
            entry.route.chat() != Some(chat)
                || entry.sequence == but
                || matches!(entry.route, Route::MemberRemoved { user, .. } if user == self.owner.user)
        };
        let mut index = 0;
        let (mut cut_backlog, mut cut_bytes) = (0, 0);
        let backlog = queue.backlog;
        queue.events.retain(|entry| {
            let is_backlog = index < backlog;
            index += 1;
            if keeps(entry) {
                return true;
            }
            if is_backlog {
                cut_backlog += 1;
            } else {
                cut_bytes += entry.frame.len();
            }
            false
        });
        queue.backlog -= cut_backlog;
        queue.live_bytes -= cut_bytes;
        queue
            .ephemeral
            .retain(|(key, _)| !matches!(key, EphemeralKey::Typing(in_chat, _) if *in_chat == chat));
    }

    /// Ends the stream: after what waits where new credentials are needed or nothing is wrong, at once otherwise.
    pub fn end(&self, end: End) {
        let mut queue = self.queue();
        if queue.end.is_some() {
            return;
        }
        match end {
            End::Revoked | End::Deactivated => queue.abandon(end),
            End::Client | End::Slow => return queue.abandon(end),
            End::Expiring | End::Rotated | End::Draining | End::Replaced => queue.end = Some(end),
        }
        if let Some(reason) = end.reauth() {
            queue.events.push_back(Arc::new(Entry::reauth(reason)));
        }
        queue.wake();
    }

    /// Why it ended or is about to.
    pub fn ended(&self) -> Option<End> {
        self.queue().end
    }

    /// Takes what is to be written next; `None` when the stream is over.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Batch>> {
        let mut queue = self.queue();
        let mut batch = Batch::default();
        let mut bytes = 0;
        while let Some(entry) = queue.events.front() {
            let length = entry.frame.len();
            if bytes > 0 && bytes + length > WRITE_BYTES {
                break;
            }
            bytes += length;
            if queue.backlog > 0 {
                queue.backlog -= 1;
                batch.backlog += 1;
            } else {
                queue.live_bytes = queue.live_bytes.saturating_sub(length);
            }
            batch.events.extend(queue.events.pop_front());
        }
        if queue.events.is_empty() {
            batch.ephemeral = queue.ephemeral.drain(..).map(|(_, frame)| frame).collect();
            queue.release_memory();
        }
        if bytes > 0 || !batch.ephemeral.is_empty() {
            return Poll::Ready(Some(batch));
        }
        if queue.end.is_some() {
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

    /// Where the client stands if nothing waits for it: past everything up to `at`.
    pub fn idle_cursor(&self, at: Cursor) -> Option<Cursor> {
        let queue = self.queue();
        (queue.events.is_empty() && queue.held.is_none()).then_some(Cursor {
            epoch: at.epoch,
            sequence: at.sequence.max(queue.known),
        })
    }

    /// Bytes of live events that wait.
    pub fn live_bytes(&self) -> usize {
        self.queue().live_bytes
    }
}

impl Queue {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ends at once and frees what waits.
    fn abandon(&mut self, end: End) {
        self.end = Some(end);
        self.events = VecDeque::new();
        self.ephemeral = VecDeque::new();
        self.backlog = 0;
        self.live_bytes = 0;
        self.wake();
    }

    fn forget_events(&mut self) {
        self.events.clear();
        self.backlog = 0;
        self.live_bytes = 0;
    }

    fn release_memory(&mut self) {
        if self.events.capacity() > KEPT_CAPACITY {
            self.events = VecDeque::new();
        }
        if self.ephemeral.capacity() > KEPT_CAPACITY {
            self.ephemeral = VecDeque::new();
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
