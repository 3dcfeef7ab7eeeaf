//! Who is in which chat, for the users this process knows: those with a stream and those who had one a moment ago.
//!
//! Loaded from PostgreSQL once and kept current by events. What may go wrong is the meeting of the two: the load sees the
//! database as it is, events come later and may tell of something older. Three rules settle it.
//!
//! 1. Where the load found the user in the chat, it knows the chat's `membership_version`: a change that is not newer is
//!    already in it.
//! 2. Where it did not, an addition counts if it happened after the load (both by the database's clock).
//! 3. Any other addition is old news or a race, and PostgreSQL is asked again. A question that is asked after an event
//!    has arrived always knows its effect, since events are published after the commit.

use std::collections::{HashMap, HashSet};

use fechatter_core::{ChatId, UserId, WorkspaceId};
use time::OffsetDateTime;

use crate::event::Route;

/// A user's chats as the database has them.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub workspace: WorkspaceId,
    /// With the chat's `membership_version`.
    pub seats: Vec<(ChatId, i64)>,
    /// Chats that ended lately with the user in them: their end may be told, nothing else.
    pub ended: Vec<ChatId>,
    /// Not before the moment that the data is of, by the database's clock.
    pub at: OffsetDateTime,
}

/// A change of who is in a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Added { chat: ChatId, version: i64 },
    Removed { chat: ChatId, version: i64 },
    Ended { chat: ChatId },
}

/// PostgreSQL's answer about a chat: its version and who of those asked about is in it.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    pub asked: HashSet<UserId>,
    pub version: i64,
    pub members: HashSet<UserId>,
}

/// How a load ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadEnd {
    Ready,
    /// It raced with a change that it may or may not have seen; ask again.
    Again,
}

#[derive(Debug)]
struct Record {
    workspace: WorkspaceId,
    seats: HashMap<ChatId, i64>,
    ended: HashSet<ChatId>,
    /// An addition that is not newer than this needs asking.
    verified: OffsetDateTime,
    /// Grows when the user may see more than before.
    widened: u64,
    /// Changes may be missing.
    is_doubtful: bool,
}

/// Most changes kept while a load is under way; more make it begin again.
const LOG_MAX: usize = 10_000;

/// Changes to a user who is being loaded.
#[derive(Debug, Default)]
struct Log {
    changes: Vec<(Change, OffsetDateTime)>,
    is_overfull: bool,
}

/// What an event did to who is where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    /// The user left the chat: nothing of it may reach them after this event.
    Left {
        chat: ChatId,
        user: UserId,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub struct Membership {
    users: HashMap<UserId, Record>,
    loading: HashMap<UserId, Log>,
    chats: HashMap<ChatId, HashSet<UserId>>,
    workspaces: HashMap<WorkspaceId, HashSet<UserId>>,
    /// The last [`Record::widened`] of all.
    widenings: u64,
}

impl Membership {
    /// Whether the user's chats are known and not in doubt.
    pub fn knows(&self, user: UserId) -> bool {
        self.users.get(&user).is_some_and(|record| !record.is_doubtful)
    }

    /// Changes may have been lost: everybody must be loaded again, and who is being loaded too.
    pub fn doubt_all(&mut self) {
        for record in self.users.values_mut() {
            record.is_doubtful = true;
        }
        for log in self.loading.values_mut() {
            log.is_overfull = true;
        }
    }

    /// Those whose chats are in doubt.
    pub fn doubtful(&self) -> impl Iterator<Item = UserId> {
        let users = self.users.iter().filter(|(_, record)| record.is_doubtful);
        users.map(|(user, _)| *user)
    }

    /// Begins a load, or begins it again: call it before asking the database.
    pub fn begin_load(&mut self, user: UserId) {
        self.loading.insert(user, Log::default());
    }

    /// Gives up a load.
    pub fn abandon_load(&mut self, user: UserId) {
        self.loading.remove(&user);
    }

    /// Ends a load with the database's answer and with what events told meanwhile.
    pub fn finish_load(&mut self, user: UserId, loaded: Loaded) -> LoadEnd {
        let Some(log) = self.loading.remove(&user) else {
            return LoadEnd::Again;
        };
        let mut record = Record {
            workspace: loaded.workspace,
            seats: loaded.seats.into_iter().collect(),
            ended: loaded.ended.into_iter().collect(),
            verified: loaded.at,
            widened: 0,
            is_doubtful: false,
        };
        if log.is_overfull || !log.changes.iter().all(|(change, time)| record.replay(change, *time)) {
            return LoadEnd::Again;
        }
        self.forget(user);
        for chat in record.seats.keys() {
            self.chats.entry(*chat).or_default().insert(user);
        }
        self.workspaces.entry(record.workspace).or_default().insert(user);
        record.widened = self.next_widening();
        self.users.insert(user, record);
        LoadEnd::Ready
    }

    /// Forgets a user; the next stream loads anew.
    pub fn forget(&mut self, user: UserId) {
        let Some(record) = self.users.remove(&user) else {
            return;
        };
        for chat in record.seats.keys() {
            remove_from(&mut self.chats, chat, user);
        }
        remove_from(&mut self.workspaces, &record.workspace, user);
    }

    /// Makes every addition up to `time` be asked about: events of an earlier history may come again.
    pub fn doubt_until(&mut self, time: OffsetDateTime) {
        for record in self.users.values_mut() {
            record.verified = record.verified.max(time);
        }
    }

    /// The known users in a chat.
    pub fn members(&self, chat: ChatId) -> impl Iterator<Item = UserId> {
        self.chats.get(&chat).into_iter().flatten().copied()
    }

    /// The chats that a known user is in.
    pub fn chats_of(&self, user: UserId) -> impl Iterator<Item = ChatId> {
        self.users
            .get(&user)
            .into_iter()
            .flat_map(|record| record.seats.keys().copied())
    }

    /// The known users of a workspace.
    pub fn colleagues(&self, workspace: WorkspaceId) -> impl Iterator<Item = UserId> {
        self.workspaces.get(&workspace).into_iter().flatten().copied()
    }

    /// Number of users known.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Whether the user is in the chat now.
    pub fn is_member(&self, user: UserId, chat: ChatId) -> bool {
        self.users
            .get(&user)
            .is_some_and(|record| record.seats.contains_key(&chat))
    }

    /// A number that changes when a known user may see past events that they might not see before.
    pub fn widened(&self, user: UserId) -> Option<u64> {
        self.users.get(&user).map(|record| record.widened)
    }

    /// Whether a past event may be shown to the user now.
    pub fn may_see(&self, user: UserId, route: &Route) -> bool {
        let Some(record) = self.users.get(&user) else {
            return false;
        };
        match route {
            Route::Chat(chat) | Route::MemberAdded { chat, .. } => record.seats.contains_key(chat),
            Route::ChatCreated { chat, members, .. } => record.seats.contains_key(chat) && members.contains(&user),
            Route::ChatDeleted(chat) => record.seats.contains_key(chat) || record.ended.contains(chat),
            Route::MemberRemoved { chat, user: who, .. } => *who == user || record.seats.contains_key(chat),
            Route::Read { chat, reader, shared } => (*shared || *reader == user) && record.seats.contains_key(chat),
            Route::User { workspace, .. } => record.workspace == *workspace,
            Route::SessionRevoked { .. } | Route::Control => false,
        }
    }

    /// The chat and the known users about whom PostgreSQL must be asked before the event is applied (rule 3); nothing when
    /// `verdict` answers for all of them. Users become known while PostgreSQL is asked, so this must be seen under the
    /// same lock that the event is applied under.
    pub fn questions(
        &self,
        route: &Route,
        time: OffsetDateTime,
        verdict: Option<&Verdict>,
    ) -> Option<(ChatId, Vec<UserId>)> {
        let (chat, added) = additions(route)?;
        let doubtful: Vec<UserId> = added
            .iter()
            .copied()
            .filter(|user| {
                self.users
                    .get(user)
                    .is_some_and(|record| !record.seats.contains_key(&chat) && time <= record.verified)
            })
            .collect();
        let is_answered = |user: &UserId| verdict.is_some_and(|verdict| verdict.asked.contains(user));
        (!doubtful.iter().all(is_answered)).then_some((chat, doubtful))
    }

    /// Applies an event; `verdict` answers [`questions`](Self::questions), and whoever it does not name is not let in on
    /// the word of an old event.
    pub fn apply(&mut self, route: &Route, time: OffsetDateTime, verdict: Option<&Verdict>) -> Effect {
        if let Some((chat, added)) = additions(route) {
            let version = match route {
                Route::ChatCreated { version, .. } | Route::MemberAdded { version, .. } => *version,
                _ => return Effect::None,
            };
            for user in added {
                self.log(*user, &Change::Added { chat, version }, time);
                self.add(*user, chat, version, time, verdict);
            }
            return Effect::None;
        }
        match route {
            Route::MemberRemoved { chat, version, user } => {
                let (chat, version, user) = (*chat, *version, *user);
                self.log(user, &Change::Removed { chat, version }, time);
                let Some(record) = self.users.get_mut(&user) else {
                    return Effect::None;
                };
                if record.seats.get(&chat).is_none_or(|seat| version <= *seat) {
                    return Effect::None;
                }
                record.seats.remove(&chat);
                remove_from(&mut self.chats, &chat, user);
                Effect::Left { chat, user }
            }
            Route::ChatDeleted(chat) => {
                for log in self.loading.values_mut() {
                    log.push(Change::Ended { chat: *chat }, time);
                }
                for user in self.chats.remove(chat).unwrap_or_default() {
                    if let Some(record) = self.users.get_mut(&user) {
                        record.seats.remove(chat);
                        record.ended.insert(*chat);
                    }
                }
                Effect::None
            }
            _ => Effect::None,
        }
    }

    fn next_widening(&mut self) -> u64 {
        self.widenings += 1;
        self.widenings
    }

    fn add(&mut self, user: UserId, chat: ChatId, version: i64, time: OffsetDateTime, verdict: Option<&Verdict>) {
        let widening = self.next_widening();
        let Some(record) = self.users.get_mut(&user) else {
            return;
        };
        let version = match record.seats.get(&chat) {
            Some(seat) => version.max(*seat),
            None if record.ended.contains(&chat) => return,
            None if time > record.verified => version,
            None => match verdict {
                Some(verdict) if verdict.members.contains(&user) => verdict.version,
                _ => return,
            },
        };
        if record.seats.insert(chat, version).is_none() {
            record.widened = widening;
        }
        self.chats.entry(chat).or_default().insert(user);
    }

    fn log(&mut self, user: UserId, change: &Change, time: OffsetDateTime) {
        if let Some(log) = self.loading.get_mut(&user) {
            log.push(change.clone(), time);
        }
    }
}

impl Log {
    fn push(&mut self, change: Change, time: OffsetDateTime) {
        if self.changes.len() < LOG_MAX {
            self.changes.push((change, time));
        } else {
            self.is_overfull = true;
        }
    }
}

impl Record {
    /// Applies a change that arrived during the load; `false` when only asking again can tell.
    fn replay(&mut self, change: &Change, time: OffsetDateTime) -> bool {
        match *change {
            Change::Added { chat, version } => match self.seats.get_mut(&chat) {
                Some(seat) => *seat = version.max(*seat),
                None if time > self.verified => {
                    self.seats.insert(chat, version);
                }
                None => return false,
            },
            Change::Removed { chat, version } => {
                if self.seats.get(&chat).is_some_and(|seat| version > *seat) {
                    self.seats.remove(&chat);
                }
            }
            Change::Ended { chat } => {
                if self.seats.remove(&chat).is_some() {
                    self.ended.insert(chat);
                }
            }
        }
        true
    }
}

/// Whom an event adds to which chat.
pub(crate) fn additions(route: &Route) -> Option<(ChatId, &[UserId])> {
    match route {
        Route::ChatCreated { chat, members, .. } => Some((*chat, members)),
        Route::MemberAdded { chat, user, .. } => Some((*chat, std::slice::from_ref(user))),
        _ => None,
    }
}

fn remove_from<K: std::hash::Hash + Eq>(index: &mut HashMap<K, HashSet<UserId>>, key: &K, user: UserId) {
    if let Some(users) = index.get_mut(key) {
        users.remove(&user);
        if users.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
