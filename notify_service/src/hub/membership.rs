//! Who of the connected is in which chat, kept current by the events themselves.
//!
//! Only users with a stream, or with one a moment ago, are known. Their chats are read from PostgreSQL once, when they
//! connect; the events change them from there on. What an event says is older than what was read when its membership
//! version is not above the one read, or, for a chat that was not among those read, when it happened before the reading:
//! then the database is asked again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use fechatter_core::{ChatId, UserId, WorkspaceId};
use time::OffsetDateTime;

use super::connection::Connection;
use super::ring::Scope;
use crate::repositories::memberships::Membership;

/// Events this much newer than the reading are known to have happened after it, whatever the clocks say.
const CLOCK_MARGIN: time::Duration = time::Duration::minutes(1);

/// A change that an event tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    None,
    Joined {
        chat: ChatId,
        users: Vec<UserId>,
        version: i64,
        time: OffsetDateTime,
    },
    Left {
        chat: ChatId,
        user: UserId,
        version: i64,
    },
    Deleted {
        chat: ChatId,
    },
}

/// Somebody with a stream, or with one a moment ago.
#[derive(Debug)]
pub(super) struct Known {
    pub workspace: WorkspaceId,
    /// The membership version that each membership is at least as new as.
    pub chats: HashMap<ChatId, i64>,
    pub deleted: HashSet<ChatId>,
    pub read_at: OffsetDateTime,
    pub connections: Vec<Arc<Connection>>,
    pub idle_since: Option<Instant>,
}

impl Known {
    /// Whether this user may get an event of this scope now.
    pub fn may_get(&self, user: UserId, workspace: WorkspaceId, scope: Scope) -> bool {
        self.workspace == workspace
            && match scope {
                Scope::Chat(chat) => self.chats.contains_key(&chat),
                Scope::ChatAnd(chat, other) => user == other || self.chats.contains_key(&chat),
                Scope::Deleted(chat) => self.deleted.contains(&chat),
                Scope::User(other) => user == other,
                Scope::Workspace => true,
            }
    }
}

/// What was read for a user who connects.
#[derive(Debug, Clone)]
pub struct Reading {
    pub memberships: Vec<Membership>,
    /// The time before the reading.
    pub at: OffsetDateTime,
}

/// Changes that happened while a user was being read.
#[derive(Debug, Default)]
struct Pending {
    readers: usize,
    changes: Vec<(u64, Change)>,
}

/// All known users, by themselves, by chat and by workspace.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub users: HashMap<UserId, Known>,
    chats: HashMap<ChatId, HashSet<UserId>>,
    workspaces: HashMap<WorkspaceId, HashSet<UserId>>,
    pending: HashMap<UserId, Pending>,
    changes: u64,
}

impl Directory {
    /// A reading begins; changes from here on are kept for its end. Gives the mark to end it with.
    pub fn begin_reading(&mut self, user: UserId) -> u64 {
        self.pending.entry(user).or_default().readers += 1;
        self.changes
    }

    /// A reading ends; gives the changes since `mark`.
    pub fn end_reading(&mut self, user: UserId, mark: u64) -> Vec<Change> {
        let Some(pending) = self.pending.get_mut(&user) else {
            return Vec::new();
        };
        let since = pending
            .changes
            .iter()
            .filter(|(number, _)| *number > mark)
            .map(|(_, change)| change.clone())
            .collect();
        pending.readers -= 1;
        if pending.readers == 0 {
            self.pending.remove(&user);
        }
        since
    }

    /// Makes a user known by a reading and the changes since it began. `false` when the reading has to be repeated,
    /// because the user joined a chat meanwhile that was not read: they may have left it again.
    pub fn learn(&mut self, user: UserId, workspace: WorkspaceId, reading: &Reading, since: &[Change]) -> bool {
        let mut chats = HashMap::new();
        let mut deleted = HashSet::new();
        for membership in reading.memberships.iter().filter(|m| m.user == user) {
            if membership.deleted {
                deleted.insert(membership.chat);
            } else {
                chats.insert(membership.chat, membership.version);
            }
        }
        for change in since {
            match change {
                Change::Joined { chat, version, .. } => match chats.get(chat) {
                    Some(read) if read >= version => {}
                    _ if deleted.contains(chat) => {}
                    _ => return false,
                },
                Change::Left { chat, version, .. } => {
                    if chats.get(chat).is_some_and(|read| read < version) {
                        chats.remove(chat);
                    }
                }
                Change::Deleted { chat } => {
                    if chats.remove(chat).is_some() {
                        deleted.insert(*chat);
                    }
                }
                Change::None => {}
            }
        }
        let connections = self.forget(user);
        for chat in chats.keys() {
            self.chats.entry(*chat).or_default().insert(user);
        }
        self.workspaces.entry(workspace).or_default().insert(user);
        self.users.insert(
            user,
            Known {
                workspace,
                chats,
                deleted,
                read_at: reading.at,
                idle_since: connections.is_empty().then(Instant::now),
                connections,
            },
        );
        true
    }

    /// Forgets a user; gives the streams that were open.
    pub fn forget(&mut self, user: UserId) -> Vec<Arc<Connection>> {
        let Some(known) = self.users.remove(&user) else {
            return Vec::new();
        };
        for chat in known.chats.keys() {
            self.leave_index(*chat, user);
        }
        if let Some(users) = self.workspaces.get_mut(&known.workspace) {
            users.remove(&user);
            if users.is_empty() {
                self.workspaces.remove(&known.workspace);
            }
        }
        known.connections
    }

    fn leave_index(&mut self, chat: ChatId, user: UserId) {
        if let Some(users) = self.chats.get_mut(&chat) {
            users.remove(&user);
            if users.is_empty() {
                self.chats.remove(&chat);
            }
        }
    }

    /// The known users who would join by this change but whose reading may be newer than it.
    pub fn doubtful(&self, change: &Change, verified: &HashSet<UserId>) -> Vec<UserId> {
        let Change::Joined { chat, users, time, .. } = change else {
            return Vec::new();
        };
        users
            .iter()
            .filter(|user| !verified.contains(user))
            .filter(|user| {
                self.users
                    .get(user)
                    .is_some_and(|known| !known.chats.contains_key(chat) && *time <= known.read_at + CLOCK_MARGIN)
            })
            .copied()
            .collect()
    }

    /// Notes a change for those who are being read.
    pub fn note(&mut self, change: &Change) {
        if self.pending.is_empty() || *change == Change::None {
            return;
        }
        self.changes += 1;
        let number = self.changes;
        let mut note = |pending: &mut Pending| pending.changes.push((number, change.clone()));
        match change {
            Change::Joined { users, .. } => {
                for user in users {
                    self.pending.get_mut(user).map(&mut note);
                }
            }
            Change::Left { user, .. } => {
                self.pending.get_mut(user).map(&mut note);
            }
            Change::Deleted { .. } => self.pending.values_mut().for_each(note),
            Change::None => {}
        }
    }

    /// Users join; `except` turned out not to be members any more.
    pub fn join(&mut self, chat: ChatId, users: &[UserId], version: i64, except: &HashSet<UserId>) {
        for user in users.iter().filter(|user| !except.contains(user)) {
            if let Some(known) = self.users.get_mut(user)
                && !known.deleted.contains(&chat)
            {
                let newest = known.chats.entry(chat).or_insert(version);
                *newest = version.max(*newest);
                self.chats.entry(chat).or_default().insert(*user);
            }
        }
    }

    /// A user leaves, unless they are known to have joined later.
    pub fn leave(&mut self, chat: ChatId, user: UserId, version: i64) {
        if let Some(known) = self.users.get_mut(&user)
            && known.chats.get(&chat).is_some_and(|newest| *newest < version)
        {
            known.chats.remove(&chat);
            self.leave_index(chat, user);
        }
    }

    /// A chat ends for everybody.
    pub fn delete(&mut self, chat: ChatId) {
        for user in self.chats.remove(&chat).unwrap_or_default() {
            if let Some(known) = self.users.get_mut(&user) {
                known.chats.remove(&chat);
                known.deleted.insert(chat);
            }
        }
    }

    /// Calls `visit` for each known user of this scope.
    pub fn visit(&self, workspace: WorkspaceId, scope: Scope, mut visit: impl FnMut(UserId, &Known)) {
        let mut one = |user: &UserId| {
            if let Some(known) = self.users.get(user)
                && known.may_get(*user, workspace, scope)
            {
                visit(*user, known);
            }
        };
        match scope {
            Scope::Chat(chat) | Scope::ChatAnd(chat, _) => {
                let members = self.chats.get(&chat);
                members.into_iter().flatten().for_each(&mut one);
                if let Scope::ChatAnd(_, other) = scope
                    && !members.is_some_and(|members| members.contains(&other))
                {
                    one(&other);
                }
            }
            Scope::User(user) => one(&user),
            Scope::Deleted(_) | Scope::Workspace => {
                self.workspaces.get(&workspace).into_iter().flatten().for_each(one);
            }
        }
    }
}
