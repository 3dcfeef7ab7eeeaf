//! The streams of this process, who may see what, and the newest events.
//!
//! One lock holds all of it, so that joining is atomic with the look at the newest events (nothing missed, nothing twice)
//! and every event meets one state of membership. Nothing waits while it is held.

mod backlog;
mod connection;
mod endings;
mod membership;
mod ring;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use uuid::Uuid;

pub use backlog::Earlier;
pub use connection::{Connection, End};
pub use membership::{Change, Reading};
pub use ring::{Entry, Scope};

use crate::config::{Streams, Window};
use crate::frame::{self, Cursor, GapReason};
use crate::metrics;
use membership::Directory;
use ring::Ring;

/// See the module.
#[derive(Debug)]
pub struct Hub {
    inner: Mutex<Inner>,
    streams: AtomicUsize,
    settings: Streams,
    replay_max: usize,
}

#[derive(Debug)]
struct Inner {
    /// The stream's history; none until the process has caught up with the stream for the first time.
    epoch: Option<Uuid>,
    /// The stream's sequence of the newest event that was looked at.
    position: u64,
    caught_up: bool,
    /// What the stream holds after this is known to be whole.
    whole_after: u64,
    ring: Ring,
    directory: Directory,
    revoked: HashMap<Uuid, Instant>,
}

/// A client that wants a stream.
#[derive(Debug, Clone, Copy)]
pub struct Join {
    pub user: UserId,
    pub workspace: WorkspaceId,
    pub session: Uuid,
    pub cursor: Option<Cursor>,
    /// A cursor was given that is not one of ours.
    pub unreadable_cursor: bool,
}

/// A stream that has begun.
#[derive(Debug)]
pub struct Joined {
    pub connection: Arc<Connection>,
    /// The control event, what was missed, `caught_up`.
    pub backlog: Vec<Bytes>,
}

/// Why a stream cannot begin now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The user's chats have to be read first.
    NotRead,
    /// What came after the cursor is no longer in memory; it has to be read from the stream up to `upto`.
    NotKept { upto: u64 },
    /// The process has not caught up with the stream yet.
    NotReady,
    /// The session has ended.
    Revoked,
    /// The process has as many streams as it may.
    Full,
}

impl Hub {
    /// An empty hub.
    pub fn new(settings: Streams, window: &Window) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                epoch: None,
                position: 0,
                caught_up: false,
                whole_after: 0,
                ring: Ring::new(window.max_events, window.max_bytes),
                directory: Directory::default(),
                revoked: HashMap::new(),
            }),
            streams: AtomicUsize::new(0),
            settings,
            replay_max: window.replay_max,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How streams are served.
    pub const fn settings(&self) -> &Streams {
        &self.settings
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Events and bytes in memory, users known.
    pub fn size(&self) -> (usize, usize, usize) {
        let inner = self.inner();
        let (events, bytes) = inner.ring.size();
        (events, bytes, inner.directory.users.len())
    }

    /// Where this process is; none before it has caught up.
    pub fn cursor(&self) -> Option<Cursor> {
        self.inner().cursor()
    }

    /// Whether streams can begin.
    pub fn is_ready(&self) -> bool {
        self.inner().caught_up
    }

    /// Begins a stream; `earlier` is what was read of the stream for it.
    pub fn join(&self, join: &Join, earlier: &Earlier) -> Result<Joined, Refusal> {
        let mut inner = self.inner();
        if !inner.caught_up {
            return Err(Refusal::NotReady);
        }
        if inner.revoked.contains_key(&join.session) {
            return Err(Refusal::Revoked);
        }
        if self.streams() >= self.settings.max {
            return Err(Refusal::Full);
        }
        let position = inner.cursor().ok_or(Refusal::NotReady)?;
        let backlog = inner.backlog(join, position, earlier, self.replay_max)?;
        let Some(known) = inner.directory.users.get_mut(&join.user) else {
            return Err(Refusal::NotRead);
        };
        if known.connections.len() >= self.settings.max_of_user {
            known.connections.remove(0).end(End::Rotated, None);
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
        let connection = Arc::new(Connection::new(
            join.user,
            join.workspace,
            join.session,
            backlog.after,
            self.settings.queue_bytes,
        ));
        known.connections.push(Arc::clone(&connection));
        known.idle_since = None;
        self.streams.fetch_add(1, Ordering::Relaxed);
        metrics::connected(backlog.beginning, backlog.count);
        Ok(Joined {
            connection,
            backlog: backlog.frames,
        })
    }

    /// A stream is over.
    pub fn leave(&self, connection: &Arc<Connection>) {
        self.remove(&mut self.inner(), connection);
    }

    fn remove(&self, inner: &mut Inner, connection: &Arc<Connection>) {
        let Some(known) = inner.directory.users.get_mut(&connection.user) else {
            return;
        };
        let before = known.connections.len();
        known.connections.retain(|other| !Arc::ptr_eq(other, connection));
        self.streams
            .fetch_sub(before - known.connections.len(), Ordering::Relaxed);
        if known.connections.is_empty() {
            known.connections = Vec::new();
            known.idle_since = Some(Instant::now());
        }
    }

    /// Begins reading a user's chats.
    pub fn begin_reading(&self, user: UserId) -> u64 {
        self.inner().directory.begin_reading(user)
    }

    /// Ends it without a result.
    pub fn abort_reading(&self, user: UserId, mark: u64) {
        self.inner().directory.end_reading(user, mark);
    }

    /// Ends it with what was read; `false` when it has to be repeated.
    pub fn end_reading(&self, user: UserId, workspace: WorkspaceId, mark: u64, reading: &Reading) -> bool {
        let mut inner = self.inner();
        let since = inner.directory.end_reading(user, mark);
        // Somebody else was quicker: what they read has followed the events since.
        inner.directory.users.contains_key(&user) || inner.directory.learn(user, workspace, reading, &since)
    }

    /// All known users, to be read again.
    pub fn known_users(&self) -> Vec<UserId> {
        self.inner().directory.users.keys().copied().collect()
    }

    /// Replaces what is known of these users; only while no event is being applied.
    pub fn relearn(&self, users: &[UserId], reading: &Reading) {
        let mut by_user: HashMap<UserId, Vec<_>> = HashMap::new();
        for membership in &reading.memberships {
            by_user.entry(membership.user).or_default().push(*membership);
        }
        let mut inner = self.inner();
        for user in users {
            let Some(workspace) = inner.directory.users.get(user).map(|known| known.workspace) else {
                continue;
            };
            let reading = Reading {
                memberships: by_user.remove(user).unwrap_or_default(),
                at: reading.at,
            };
            inner.directory.learn(*user, workspace, &reading, &[]);
        }
    }

    /// A new history begins after `position`.
    pub fn begin_history(&self, epoch: Uuid, position: u64) {
        let mut inner = self.inner();
        let changed = inner.epoch.replace(epoch).is_some();
        inner.restart(position);
        inner.whole_after = 0;
        if changed {
            inner.tell_gap(GapReason::HistoryChanged);
        }
    }

    /// Events were lost before the one after `position`.
    pub fn lost_events(&self, position: u64) {
        let mut inner = self.inner();
        inner.restart(position);
        inner.whole_after = position;
        inner.tell_gap(GapReason::EventsLost);
    }

    /// The process has seen what the stream held when it began.
    pub fn set_caught_up(&self) {
        self.inner().caught_up = true;
    }

    /// Moves on past an event that nobody gets.
    pub fn advance(&self, sequence: u64) {
        let mut inner = self.inner();
        inner.position = inner.position.max(sequence);
    }

    /// Applies what an event changes and delivers it. `verified` were asked for in the database, of whom `absent` are not
    /// members; the error lists further users to be asked for.
    pub fn publish(
        &self,
        entry: Entry,
        change: &Change,
        verified: &HashSet<UserId>,
        absent: &HashSet<UserId>,
    ) -> Result<usize, Vec<UserId>> {
        let mut inner = self.inner();
        let doubtful = inner.directory.doubtful(change, verified);
        if !doubtful.is_empty() {
            return Err(doubtful);
        }
        inner.directory.note(change);
        match change {
            Change::Joined {
                chat, users, version, ..
            } => inner.directory.join(*chat, users, *version, absent),
            Change::Deleted { chat } => inner.directory.delete(*chat),
            Change::Left { .. } | Change::None => {}
        }
        inner.position = inner.position.max(entry.sequence);
        let (mut deliveries, mut slow) = (0, Vec::new());
        inner.directory.visit(entry.workspace, entry.scope, |_, known| {
            for connection in known.connections.iter().filter(|c| c.after() < entry.sequence) {
                if connection.push(&entry.frame) {
                    deliveries += 1;
                } else {
                    slow.push(Arc::clone(connection));
                }
            }
        });
        // Nobody polls the stream of a client that does not read, so it cannot take its leave itself.
        for connection in &slow {
            self.remove(&mut inner, connection);
        }
        if let Change::Left { chat, user, version } = change {
            inner.directory.leave(*chat, *user, *version);
        }
        inner.ring.push(entry);
        Ok(deliveries)
    }

    /// Sends something that nobody misses when it is lost.
    pub fn tell(&self, workspace: WorkspaceId, scope: Scope, except: Option<UserId>, frame: &Bytes) {
        self.inner().directory.visit(workspace, scope, |user, known| {
            if Some(user) != except {
                for connection in &known.connections {
                    connection.push_ephemeral(frame);
                }
            }
        });
    }

    /// Whether a user is in a chat; `None` for somebody who is not known here.
    pub fn is_member(&self, workspace: WorkspaceId, user: UserId, chat: ChatId) -> Option<bool> {
        let inner = self.inner();
        let known = inner.directory.users.get(&user)?;
        Some(known.may_get(user, workspace, Scope::Chat(chat)))
    }

    /// Every open stream.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        let inner = self.inner();
        inner
            .directory
            .users
            .values()
            .flat_map(|known| known.connections.iter().cloned())
            .collect()
    }
}

impl Inner {
    fn cursor(&self) -> Option<Cursor> {
        self.epoch.map(|epoch| Cursor {
            epoch,
            sequence: self.position,
        })
    }

    fn restart(&mut self, position: u64) {
        self.position = position;
        self.ring.reset(position);
    }

    fn tell_gap(&self, reason: GapReason) {
        let Some(cursor) = self.cursor() else { return };
        let frame = frame::gap(cursor, reason);
        let streams: usize = self.directory.users.values().map(|known| known.connections.len()).sum();
        metrics::gap(reason.as_str(), streams);
        for known in self.directory.users.values() {
            for connection in &known.connections {
                connection.push(&frame);
                // Sequences of another history mean nothing.
                connection.forget_after();
            }
        }
    }
}
