//! Which users have streams here, and whether they said to be away.

use std::sync::Arc;

use fechatter_core::{ChatId, UserId, WorkspaceId};
use uuid::Uuid;

use super::{Core, Hub};
use crate::presence::Status;

/// What this process sees of a user.
#[derive(Debug, Clone)]
pub struct Local {
    pub user: UserId,
    /// Of the streams there are.
    pub workspace: Option<WorkspaceId>,
    pub status: Status,
    pub chats: Arc<[ChatId]>,
}

impl Hub {
    /// The users whose streams began, ended or changed, or whose chats are others, since the last call.
    pub fn moved(&self) -> Vec<Local> {
        let mut core = self.core();
        let moved = std::mem::take(&mut core.moved);
        moved.into_iter().map(|user| core.local(user)).collect()
    }

    /// What this process sees of a user now.
    pub fn local(&self, user: UserId) -> Local {
        self.core().local(user)
    }

    /// A session says whether its user is at the device. It counts as long as the session has a stream.
    pub fn set_away(&self, user: UserId, session: Uuid, is_away: bool) {
        let mut core = self.core();
        let streams = core.connections.get(&user).into_iter().flatten();
        if !streams.into_iter().any(|stream| stream.owner.session == session) {
            return;
        }
        let changed = if is_away {
            core.away_sessions.insert(session)
        } else {
            core.away_sessions.remove(&session)
        };
        if changed {
            core.moved.insert(user);
        }
    }
}

impl Core {
    fn local(&self, user: UserId) -> Local {
        let streams = self.connections.get(&user);
        let status = match streams {
            None => Status::Offline,
            Some(streams) => {
                let all_away = streams
                    .iter()
                    .all(|stream| self.away_sessions.contains(&stream.owner.session));
                if all_away { Status::Away } else { Status::Online }
            }
        };
        let mut chats: Vec<ChatId> = self.membership.chats_of(user).collect();
        chats.sort_unstable();
        Local {
            user,
            workspace: streams.and_then(|streams| Some(streams.first()?.owner.workspace)),
            status,
            chats: chats.into(),
        }
    }

    /// The user is in other chats than before: others may know of them.
    pub(super) fn moves_chats(&mut self, user: UserId) {
        if self.connections.contains_key(&user) {
            self.moved.insert(user);
        }
    }

    /// A stream of the user began or ended.
    pub(super) fn moves(&mut self, user: UserId, session: Uuid) {
        self.moved.insert(user);
        let streams = self.connections.get(&user).into_iter().flatten();
        if !streams.into_iter().any(|stream| stream.owner.session == session) {
            self.away_sessions.remove(&session);
        }
    }
}
