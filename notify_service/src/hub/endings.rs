//! What ends streams, and what is forgotten.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fechatter_core::UserId;
use uuid::Uuid;

use super::{Connection, End, Hub};
use crate::frame;

/// How long an ended session is remembered: longer than any access token lives.
const REVOKED_KEPT: Duration = Duration::from_secs(3_700);

impl Hub {
    /// Ends what is known of users whose membership is in doubt; they come back and are read again.
    pub fn forget(&self, users: &[UserId]) {
        let mut inner = self.inner();
        for user in users {
            let connections = inner.directory.forget(*user);
            self.end_all(connections, End::Rotated, None);
        }
    }

    fn end_all(&self, connections: Vec<Arc<Connection>>, end: End, last: Option<&Bytes>) {
        self.streams.fetch_sub(connections.len(), Ordering::Relaxed);
        for connection in connections {
            connection.end(end, last.cloned());
        }
    }

    /// Ends the streams of a session, and remembers it.
    pub fn revoke_session(&self, user: UserId, session: Uuid) {
        let mut inner = self.inner();
        inner.revoked.insert(session, Instant::now());
        let Some(known) = inner.directory.users.get_mut(&user) else {
            return;
        };
        let (ended, left) = std::mem::take(&mut known.connections)
            .into_iter()
            .partition(|connection| connection.session == session);
        known.connections = left;
        if known.connections.is_empty() {
            known.idle_since = Some(Instant::now());
        }
        self.end_all(ended, End::Reauth, Some(&frame::reauth("session_revoked")));
    }

    /// Ends all streams of a user who may not come back.
    pub fn deactivate(&self, user: UserId) {
        let connections = self.inner().directory.forget(user);
        self.end_all(connections, End::Reauth, Some(&frame::reauth("deactivated")));
    }

    /// Forgets ended sessions and people without a stream whose time is over.
    pub fn sweep(&self) {
        let mut inner = self.inner();
        let now = Instant::now();
        inner.revoked.retain(|_, at| now.duration_since(*at) < REVOKED_KEPT);
        let linger = Duration::from_secs(self.settings.linger_seconds);
        let idle: Vec<UserId> = inner
            .directory
            .users
            .iter()
            .filter(|(_, known)| {
                known
                    .idle_since
                    .is_some_and(|since| now.duration_since(since) >= linger)
            })
            .map(|(user, _)| *user)
            .collect();
        for user in idle {
            inner.directory.forget(user);
        }
    }
}
