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
            Self::Expiring => Some("token_expiring"),
            Self::Revoked => Some("session_revoked"),
            Self::Deactivated => Some("user_deactivated"),
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
    end: Option<End>,
    waker: Option<Waker>,
}

/// What is to be written next.
#[derive(Debug, Default)]
pub struct Batch {
    pub events: Vec<Arc<Entry>>,
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
        if queue.end.is_some() || (entry.sequence != 0 && entry.sequence <= queue.known) {
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

    /// Tells the client that its place in the stream is lost. What waits is moot, and the new place counts.
    pub fn gap(&self, reason: &str, at: Cursor) {
        let mut queue = self.queue();
        if queue.end.is_some() {
            return;
        }
        queue.events.clear();
        queue.backlog = 0;
        let entry = Arc::new(Entry::gap(reason, at));
        queue.live_bytes = entry.frame.len();
        queue.events.push_back(entry);
        queue.known = 0;
        queue.wake();
    }

    /// Adds a short-lived event, unless the client is behind: those are the first to be dropped.
    pub fn push_ephemeral(&self, key: EphemeralKey, frame: &Bytes) -> bool {
        let mut queue = self.queue();
        if queue.end.is_some() || queue.live_bytes > self.live_bytes_max / 4 || queue.backlog > 0 {
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
        if !queue.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            queue.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Where the client stands if nothing waits for it: past everything up to `at`.
    pub fn idle_cursor(&self, at: Cursor) -> Option<Cursor> {
        let queue = self.queue();
        queue.events.is_empty().then_some(Cursor {
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
mod tests {
    use super::*;
    use time::OffsetDateTime;

    fn connection(live_bytes_max: usize) -> Connection {
        let owner = Owner {
            user: UserId(1),
            workspace: WorkspaceId(1),
            session: Uuid::nil(),
            ticket: None,
        };
        Connection::new(1, owner, live_bytes_max)
    }

    fn event(sequence: u64, chat: i64, bytes: usize) -> Arc<Entry> {
        Arc::new(Entry {
            sequence,
            route: Route::Chat(ChatId(chat)),
            frame: Bytes::from(vec![b'x'; bytes]),
            time: OffsetDateTime::UNIX_EPOCH,
            context: None,
        })
    }

    fn take(connection: &Connection) -> Option<Option<Vec<u64>>> {
        let mut context = Context::from_waker(Waker::noop());
        match connection.poll_next(&mut context) {
            Poll::Ready(batch) => Some(batch.map(|batch| batch.events.iter().map(|e| e.sequence).collect())),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_slow_reader_ends_and_holds_nothing() {
        let connection = connection(1_000);
        assert!((1..=10).all(|sequence| connection.push(&event(sequence, 1, 100))));
        assert_eq!(connection.live_bytes(), 1_000);
        assert!(!connection.push(&event(11, 1, 1)));
        assert_eq!((connection.ended(), connection.live_bytes()), (Some(End::Slow), 0));
        assert_eq!(take(&connection), Some(None));
    }

    #[test]
    fn the_backlog_has_a_bound_of_its_own_and_comes_first() {
        let connection = connection(100);
        connection.begin((1..=5).map(|sequence| event(sequence, 1, 1_000)).collect(), 0);
        assert!(connection.push(&event(6, 1, 100)));
        assert!(!connection.push_ephemeral(EphemeralKey::Presence(UserId(2)), &Bytes::from_static(b"p")));
        assert_eq!(take(&connection), Some(Some(vec![1, 2, 3, 4, 5, 6])));
        assert_eq!(connection.live_bytes(), 0);
        assert_eq!(take(&connection), None);
    }

    #[test]
    fn large_queues_are_written_in_parts_and_one_large_event_alone() {
        let connection = connection(1 << 20);
        for sequence in 1..=3 {
            connection.push(&event(sequence, 1, WRITE_BYTES / 2));
        }
        connection.push(&event(4, 1, WRITE_BYTES * 3));
        assert_eq!(take(&connection), Some(Some(vec![1, 2])));
        assert_eq!(take(&connection), Some(Some(vec![3])));
        assert_eq!(take(&connection), Some(Some(vec![4])));
    }

    #[test]
    fn what_waits_of_a_chat_is_taken_back_on_leaving_it() {
        let connection = connection(1_000);
        connection.begin(VecDeque::from([event(1, 7, 10), event(2, 8, 10)]), 0);
        for (sequence, chat) in [(3, 7), (4, 8), (5, 7)] {
            connection.push(&event(sequence, chat, 10));
        }
        connection.push_ephemeral(EphemeralKey::Typing(ChatId(7), UserId(2)), &Bytes::from_static(b"t"));
        connection.cut(ChatId(7), 5);
        assert_eq!(connection.live_bytes(), 20);
        assert_eq!(take(&connection), Some(Some(vec![2, 4, 5])));
        assert_eq!(take(&connection), None);
    }

    #[test]
    fn what_the_client_knows_is_not_sent_again_until_a_gap() {
        let connection = connection(1_000);
        connection.begin(VecDeque::new(), 10);
        connection.push(&event(10, 1, 1));
        connection.push(&event(11, 1, 1));
        assert_eq!(take(&connection), Some(Some(vec![11])));
        let at = Cursor {
            epoch: Uuid::nil(),
            sequence: 3,
        };
        assert_eq!(connection.idle_cursor(at).unwrap().sequence, 10);
        connection.push(&event(12, 1, 1));
        assert_eq!(connection.idle_cursor(at), None);
        connection.gap("history_replaced", at);
        connection.push(&event(4, 1, 1));
        assert_eq!(take(&connection), Some(Some(vec![0, 4])));
    }

    #[test]
    fn a_revoked_stream_says_so_and_nothing_else() {
        let connection = connection(1_000);
        connection.push(&event(1, 1, 1));
        connection.end(End::Revoked);
        assert!(connection.push(&event(2, 1, 1)));
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(batch)) = connection.poll_next(&mut context) else {
            panic!("nothing to write");
        };
        let text = String::from_utf8(batch.events[0].frame.to_vec()).unwrap();
        assert_eq!(batch.events.len(), 1);
        assert!(text.starts_with("event: reauth\ndata: {\"reason\":\"session_revoked\"}"), "{text}");
        assert_eq!(take(&connection), Some(None));
    }

    #[test]
    fn ephemeral_events_are_coalesced_and_bounded() {
        let connection = connection(1_000);
        for round in 0..100_i64 {
            connection.push_ephemeral(EphemeralKey::Presence(UserId(1)), &Bytes::from_static(b"p"));
            connection.push_ephemeral(EphemeralKey::Presence(UserId(round)), &Bytes::from_static(b"p"));
        }
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(batch)) = connection.poll_next(&mut context) else {
            panic!("nothing to write");
        };
        assert_eq!(batch.ephemeral.len(), EPHEMERAL_MAX);
    }
}
