//! Everything that events, streams and membership share, behind one lock.
//!
//! One lock on purpose: an event is kept in the ring, changes membership and reaches its receivers' queues in one step,
//! and a stream takes its backlog and begins to receive in one step. So whatever order the two steps come in, a stream
//! misses nothing and gets nothing twice, and nothing passes a membership that has just ended. A step takes microseconds,
//! a few milliseconds for an event to ten thousand receivers; nothing in it waits.

mod join;
mod presence;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fechatter_core::{ChatId, UserId};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::{Config, ReplayConfig, StreamConfig};
use crate::connection::{Connection, End, EphemeralKey};
use crate::cursor::Cursor;
use crate::event::{Entry, Route};
use crate::membership::{Effect, Loaded, Membership, Verdict, additions};
use crate::metrics::Metrics;
use crate::ring::Ring;

pub use crate::membership::LoadEnd;
pub use join::{Begun, Fetched, Join, JoinRequest, Requested};
pub use presence::Local;

/// Most copies remembered; the oldest are forgotten first.
const COPIES_MAX: usize = 100_000;
/// Most revoked sessions remembered; the oldest are forgotten first.
const REVOKED_MAX: usize = 200_000;
/// How long a revoked session is remembered: longer than any access token lives.
pub const REVOKED_FOR: Duration = Duration::from_hours(1);
/// Streams are told of unreadable events once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Hub {
    core: Mutex<Core>,
    /// Users are to be loaded again.
    doubted: Notify,
    replay: ReplayConfig,
    stream: StreamConfig,
    metrics: Metrics,
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// It was put into so many streams.
    To(usize),
    /// Ask PostgreSQL who of the users is in the chat, and come again with the answer.
    Ask { chat: ChatId, users: Vec<UserId> },
}

#[derive(Debug)]
struct Core {
    /// The history that positions count in; none until the stream has been found.
    epoch: Option<Uuid>,
    /// Everything up to here has been processed.
    position: u64,
    /// What came before is not known to be whole.
    floor: u64,
    /// When streams were last told that events are lost.
    told_lost: Option<Instant>,
    /// They are to be told again, and get nothing until then.
    owes_gap: bool,
    /// Some of what was lost may have changed who is in which chat.
    has_lost_changes: bool,
    is_caught_up: bool,
    /// Nothing is known to have happened that has not been processed.
    is_current: bool,
    is_draining: bool,
    ring: Ring,
    /// Where the stream holds copies of earlier events: who reads it back from between the two cannot tell.
    copies: BTreeSet<u64>,
    membership: Membership,
    connections: HashMap<UserId, Vec<Arc<Connection>>>,
    streams: usize,
    next_id: u64,
    /// Known users without a stream, and since when.
    away: HashMap<UserId, Instant>,
    revoked: HashMap<Uuid, Instant>,
    /// Users whose streams began, ended or changed, or who are in other chats, since somebody asked.
    moved: HashSet<UserId>,
    /// Sessions with a stream whose user is not at the device.
    away_sessions: HashSet<Uuid>,
}

impl Hub {
    /// An empty hub.
    pub fn new(config: &Config, metrics: Metrics) -> Self {
        Self {
            core: Mutex::new(Core {
                epoch: None,
                position: 0,
                floor: 0,
                told_lost: None,
                owes_gap: false,
                has_lost_changes: false,
                is_caught_up: false,
                is_current: false,
                is_draining: false,
                ring: Ring::new(config.ring.max_events, config.ring.max_bytes),
                copies: BTreeSet::new(),
                membership: Membership::default(),
                connections: HashMap::new(),
                streams: 0,
                next_id: 1,
                away: HashMap::new(),
                revoked: HashMap::new(),
                moved: HashSet::new(),
                away_sessions: HashSet::new(),
            }),
            doubted: Notify::new(),
            replay: config.replay.clone(),
            stream: config.stream.clone(),
            metrics,
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instruments.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How streams are to be.
    pub const fn stream_config(&self) -> &StreamConfig {
        &self.stream
    }

    /// Where this process is, for streams that have got what there is for them; nothing before it has found the stream,
    /// nor while streams are to be told of a gap.
    pub fn position(&self) -> Option<Cursor> {
        let core = self.core();
        core.cursor().filter(|_| !core.owes_gap)
    }

    /// Begins a history whose events up to `start` will not be held. Clients of an earlier one are told to reload, and
    /// what that one said up to `newest` is asked about when it comes again.
    pub fn begin_history(&self, epoch: Uuid, start: u64, newest: Option<OffsetDateTime>) {
        let mut core = self.core();
        let is_first = core.epoch.is_none();
        core.epoch = Some(epoch);
        core.position = start;
        core.ring.reset(start);
        core.copies.clear();
        core.floor = if is_first { 0 } else { start };
        core.owes_gap = false;
        core.is_current = false;
        if let Some(newest) = newest {
            core.membership.doubt_until(newest);
        }
        if !is_first {
            self.tell_gap(&mut core, "history_changed");
        }
    }

    /// Events before the next one are missing: everybody reloads.
    pub fn lost_events(&self, next: u64) {
        let mut core = self.core();
        core.lose(next.saturating_sub(1));
        core.has_lost_changes = true;
        self.tell_lost(&mut core);
    }

    /// An event of ours that this build cannot read: nobody knows whom it concerned, so everybody reloads. There may be
    /// many of them while replicas of two versions run, so streams are told once in [`TOLD_EVERY`]; in between they get
    /// nothing, and above all no cursor behind an event that they have not been told of.
    ///
    /// One that may have changed who is in which chat has everybody known loaded again.
    pub fn unreadable_event(&self, sequence: u64, may_move_members: bool) {
        let mut core = self.core();
        core.lose(sequence);
        core.has_lost_changes |= may_move_members;
        if core.streams > 0 && core.told_lost.is_some_and(|told| told.elapsed() < TOLD_EVERY) {
            core.owes_gap = true;
        } else {
            self.tell_lost(&mut core);
        }
    }

    /// Tells the streams of unreadable events that they have not been told of, when it is time.
    pub fn tell_owed_gap(&self) {
        let mut core = self.core();
        if core.owes_gap && core.told_lost.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            self.tell_lost(&mut core);
        }
    }

    fn tell_lost(&self, core: &mut Core) {
        core.told_lost = Some(Instant::now());
        core.owes_gap = false;
        self.tell_gap(core, "events_lost");
    }

    /// Tells all streams to reload. When changes of members may have been lost, everybody known is loaded again first, and their
    /// streams get nothing until then: nobody knows whether they may still see what comes.
    fn tell_gap(&self, core: &mut Core, reason: &'static str) {
        if !std::mem::take(&mut core.has_lost_changes) {
            core.gap_for_all(reason, &self.metrics);
            return;
        }
        for connection in core.connections.values().flatten() {
            connection.hold(reason);
        }
        let away: Vec<UserId> = core.away.keys().copied().collect();
        for user in away {
            core.forget(user);
        }
        core.membership.doubt_all();
        self.doubted.notify_one();
    }

    /// Waits until known users are to be loaded again, and says who they are.
    pub async fn doubtful(&self) -> Vec<UserId> {
        self.doubted.notified().await;
        self.core().membership.doubtful().collect()
    }

    /// All that was in the stream when this process looked has been processed.
    pub fn set_caught_up(&self) {
        let mut core = self.core();
        core.is_caught_up = true;
        core.is_current = true;
    }

    /// Events may happen that do not arrive: until [`set_caught_up`](Self::set_caught_up) it is PostgreSQL that says who
    /// is in which chat.
    pub fn set_interrupted(&self) {
        self.core().is_current = false;
    }

    /// Whether events have been arriving since the consumer was last at the end of the stream.
    pub fn is_current(&self) -> bool {
        self.core().is_current
    }

    /// Whether the consumer has been at the end of the stream once.
    pub fn is_caught_up(&self) -> bool {
        self.core().is_caught_up
    }

    /// An event that concerns nobody.
    pub fn skip(&self, sequence: u64) {
        self.core().position = sequence;
    }

    /// A copy of an earlier event, which concerns nobody, now or when it is read back.
    pub fn skip_copy(&self, sequence: u64) {
        let mut core = self.core();
        core.position = sequence;
        core.copies.insert(sequence);
        if core.copies.len() > COPIES_MAX {
            core.copies.pop_first();
        }
    }

    /// Keeps an event, applies it, and puts it into the queues of those who may see it; or does nothing and says what
    /// `verdict` must answer first.
    pub fn publish(&self, entry: &Arc<Entry>, verdict: Option<&Verdict>) -> Published {
        let mut core = self.core();
        if let Some((chat, users)) = core.membership.questions(&entry.route, entry.time, verdict) {
            return Published::Ask { chat, users };
        }
        let receivers = core.apply_and_deliver(entry, verdict, &self.metrics);
        core.position = entry.sequence;
        if !matches!(entry.route, Route::SessionRevoked { .. }) {
            core.ring.push(Arc::clone(entry));
        }
        drop(core);
        self.metrics.delivered(receivers);
        Published::To(receivers)
    }

    /// Remembers a session that was revoked before this process came to the events about it.
    pub fn remember_revoked(&self, session: Uuid) {
        self.core().revoke(session);
    }

    /// Whether a session is known to be revoked.
    pub fn is_revoked(&self, session: Uuid) -> bool {
        self.core().revoked.contains_key(&session)
    }

    /// Whether a user's chats are known.
    pub fn knows(&self, user: UserId) -> bool {
        self.core().membership.knows(user)
    }

    /// Whether a user's chats are known as they are now.
    pub fn is_known_now(&self, user: UserId) -> bool {
        let core = self.core();
        core.is_current && core.membership.knows(user)
    }

    /// Those of past events that the user may see now, copies left out, and the number of that view; nothing when it is not `view`, or when
    /// the user is not known.
    pub fn visible(&self, user: UserId, view: Option<u64>, events: &[Arc<Entry>]) -> Option<(u64, Vec<Arc<Entry>>)> {
        let core = self.core();
        let now = core.membership.widened(user)?;
        if view.is_some_and(|view| view != now) {
            return None;
        }
        let may_see =
            |entry: &&Arc<Entry>| core.membership.may_see(user, &entry.route) && !core.copies.contains(&entry.sequence);
        Some((now, events.iter().filter(may_see).cloned().collect()))
    }

    /// Begins to load users' chats; call it before asking the database.
    pub fn begin_load(&self, users: &[UserId]) {
        let mut core = self.core();
        for user in users {
            core.membership.begin_load(*user);
        }
    }

    /// Ends a load.
    pub fn finish_load(&self, user: UserId, loaded: Loaded) -> LoadEnd {
        let mut core = self.core();
        let before: Vec<ChatId> = core.membership.chats_of(user).collect();
        let end = core.membership.finish_load(user, loaded);
        for chat in before {
            // The user is known and was loaded again: what happened to them has not been told yet.
            if core.membership.knows(user) && !core.membership.is_member(user, chat) {
                core.cut(user, chat, 0);
            }
        }
        if end == LoadEnd::Ready {
            core.moves_chats(user);
            match (core.connections.get(&user), core.cursor()) {
                (None, _) => {
                    core.away.insert(user, Instant::now());
                }
                (Some(connections), Some(at)) => {
                    for reason in connections.iter().filter_map(|connection| connection.release(at)) {
                        self.metrics.gap(reason, 1);
                    }
                }
                (Some(_), None) => {}
            }
        }
        end
    }

    /// Gives up loads.
    pub fn abandon_load(&self, users: &[UserId]) {
        let mut core = self.core();
        for user in users {
            core.membership.abandon_load(*user);
        }
    }

    /// Forgets users about whom PostgreSQL could not be asked; their streams end and load anew when they return.
    pub fn doubt(&self, users: &[UserId]) {
        let mut core = self.core();
        for user in users {
            core.end_user(*user, End::Replaced);
            core.forget(*user);
        }
    }

    /// Ends all streams of a user of whose sessions one may have been revoked: which, is not known. Who may goes on with a fresh
    /// token; a revoked session gets none.
    pub fn doubt_sessions(&self, user: UserId) {
        self.core().end_user(user, End::Revoked);
    }

    /// Forgets users who have had no stream for long.
    pub fn sweep(&self) {
        let linger = self.stream.linger();
        let mut core = self.core();
        let gone: Vec<UserId> = core
            .away
            .iter()
            .filter(|(_, since)| since.elapsed() >= linger)
            .map(|(user, _)| *user)
            .collect();
        for user in gone {
            core.forget(user);
        }
        core.revoked.retain(|_, since| since.elapsed() < REVOKED_FOR);
        self.metrics
            .held(core.ring.len(), core.ring.bytes(), core.membership.len());
    }

    /// A stream is no longer written to.
    pub fn leave(&self, connection: &Arc<Connection>) {
        let user = connection.owner.user;
        let mut core = self.core();
        let Some(connections) = core.connections.get_mut(&user) else {
            return;
        };
        let before = connections.len();
        connections.retain(|other| other.id != connection.id);
        let left = before - connections.len();
        let is_last = connections.is_empty();
        core.streams -= left;
        if is_last {
            core.connections.remove(&user);
            if core.membership.knows(user) {
                core.away.insert(user, Instant::now());
            } else {
                core.forget(user);
            }
        }
        core.moves(user, connection.owner.session);
    }

    /// Takes no more streams and gives those there are, to be closed one after the other.
    pub fn drain(&self) -> Vec<Arc<Connection>> {
        let mut core = self.core();
        core.is_draining = true;
        core.connections.values().flatten().cloned().collect()
    }

    /// Number of streams.
    pub fn streams(&self) -> usize {
        self.core().streams
    }

    /// Whether the user is known to be in the chat; nothing for a user who is not known, or while events do not arrive.
    pub fn is_member(&self, user: UserId, chat: ChatId) -> Option<bool> {
        let core = self.core();
        (core.is_current && core.membership.knows(user)).then(|| core.membership.is_member(user, chat))
    }

    /// Puts a short-lived event into the streams of everybody in the chats but `subject`. Returns how many.
    pub fn publish_ephemeral(&self, chats: &[ChatId], subject: UserId, key: EphemeralKey, frame: &Bytes) -> usize {
        let core = self.core();
        let mut receivers: Vec<UserId> = chats.iter().flat_map(|chat| core.membership.members(*chat)).collect();
        receivers.sort_unstable();
        receivers.dedup();
        receivers
            .into_iter()
            .filter(|user| *user != subject)
            .filter_map(|user| core.connections.get(&user))
            .flatten()
            .filter(|connection| connection.push_ephemeral(key, frame))
            .count()
    }
}

impl Core {
    fn cursor(&self) -> Option<Cursor> {
        self.epoch.map(|epoch| Cursor {
            epoch,
            sequence: self.position,
        })
    }

    /// Nothing up to `sequence` can be replayed any more.
    fn lose(&mut self, sequence: u64) {
        self.position = sequence;
        self.ring.reset(sequence);
        self.floor = sequence;
    }

    fn gap_for_all(&self, reason: &'static str, metrics: &Metrics) {
        let Some(at) = self.cursor() else { return };
        for connection in self.connections.values().flatten() {
            connection.gap(reason, at);
        }
        metrics.gap(reason, self.streams);
    }

    fn apply_and_deliver(&mut self, entry: &Arc<Entry>, verdict: Option<&Verdict>, metrics: &Metrics) -> usize {
        let (route, time) = (&entry.route, entry.time);
        match route {
            Route::Chat(chat) => self.deliver(entry, self.membership.members(*chat), metrics),
            Route::ChatCreated { chat, .. } | Route::MemberAdded { chat, .. } => {
                // First in, so that it is the first that the new member sees of the chat.
                self.membership.apply(route, time, verdict);
                for user in additions(route).map_or(&[][..], |(_, users)| users) {
                    self.moves_chats(*user);
                }
                self.deliver(entry, self.membership.members(*chat), metrics)
            }
            Route::MemberRemoved { chat, user, .. } => {
                let is_outside = !self.membership.is_member(*user, *chat);
                let receivers = self.membership.members(*chat).chain(is_outside.then_some(*user));
                let count = self.deliver(entry, receivers, metrics);
                self.change(route, time, entry.sequence);
                count
            }
            Route::ChatDeleted(chat) => {
                let count = self.deliver(entry, self.membership.members(*chat), metrics);
                self.change(route, time, entry.sequence);
                count
            }
            Route::Read { chat, reader, shared } => {
                if *shared {
                    self.deliver(entry, self.membership.members(*chat), metrics)
                } else {
                    let receiver = self.membership.is_member(*reader, *chat).then_some(*reader);
                    self.deliver(entry, receiver.into_iter(), metrics)
                }
            }
            Route::User {
                workspace,
                user,
                deactivated,
            } => {
                let count = self.deliver(entry, self.membership.colleagues(*workspace), metrics);
                if *deactivated {
                    self.end_user(*user, End::Deactivated);
                    self.forget(*user);
                }
                count
            }
            Route::SessionRevoked { session, user } => {
                for connection in self.connections.get(user).into_iter().flatten() {
                    if connection.owner.session == *session {
                        connection.end(End::Revoked);
                    }
                }
                self.revoke(*session);
                0
            }
            Route::Control => 0,
        }
    }

    fn deliver(&self, entry: &Arc<Entry>, receivers: impl Iterator<Item = UserId>, metrics: &Metrics) -> usize {
        if self.owes_gap {
            return 0;
        }
        let mut count = 0;
        for connection in receivers.filter_map(|user| self.connections.get(&user)).flatten() {
            if connection.push(entry) {
                count += 1;
            } else {
                metrics.slow();
            }
        }
        count
    }

    /// Applies an event that ends memberships. Whoever leaves has taken back what waits for them; what waits of a chat
    /// that ends was sent to its members before.
    fn change(&mut self, route: &Route, time: OffsetDateTime, sequence: u64) {
        if let Effect::Left { chat, user } = self.membership.apply(route, time, None) {
            self.cut(user, chat, sequence);
            self.moves_chats(user);
        }
    }

    fn cut(&self, user: UserId, chat: ChatId, but: u64) {
        for connection in self.connections.get(&user).into_iter().flatten() {
            connection.cut(chat, but);
        }
    }

    fn end_user(&self, user: UserId, end: End) {
        for connection in self.connections.get(&user).into_iter().flatten() {
            connection.end(end);
        }
    }

    fn forget(&mut self, user: UserId) {
        self.membership.forget(user);
        self.away.remove(&user);
    }

    fn revoke(&mut self, session: Uuid) {
        if self.revoked.len() >= REVOKED_MAX
            && let Some(oldest) = self.revoked.iter().min_by_key(|(_, since)| **since).map(|(id, _)| *id)
        {
            self.revoked.remove(&oldest);
        }
        self.revoked.insert(session, Instant::now());
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
