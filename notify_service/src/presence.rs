//! Who is here, as all replicas together see it. In memory alone: a replica says what it sees, says so again every few
//! seconds, and what it has not repeated for long is forgotten.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use fechatter_core::{ChatId, UserId, WorkspaceId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

/// Most users remembered; over it those who are offline are forgotten, the longest gone first.
const REMEMBERED_MAX: usize = 500_000;

/// Whether a user is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = PresenceStatus)]
pub enum Status {
    /// No live stream.
    Offline,
    /// Live streams, all of them of sessions that said to be away.
    Away,
    Online,
}

/// A user's presence; also the data of the `presence` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Presence {
    pub user_id: UserId,
    pub status: Status,
    /// When the last stream ended; `null` while there is one, and when it is not known.
    #[schema(required)]
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_seen_at: Option<OffsetDateTime>,
}

/// What one replica says of one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    pub replica: Uuid,
    pub user_id: UserId,
    pub workspace_id: WorkspaceId,
    pub status: Status,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The chats whose members may know.
    pub chat_ids: Arc<[ChatId]>,
}

/// A change that members of the chats are to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub presence: Presence,
    pub chats: Arc<[ChatId]>,
}

#[derive(Debug)]
struct Record {
    workspace: WorkspaceId,
    /// Each replica's word, and when it was last given.
    sightings: HashMap<Uuid, (Status, Instant)>,
    status: Status,
    last_seen: Option<OffsetDateTime>,
    chats: Arc<[ChatId]>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Records {
    users: HashMap<UserId, Record>,
}

impl Records {
    /// Takes a replica's word; gives the change it makes: for who shares a chat with the user only now, that the user is there.
    pub fn see(&mut self, sighting: &Sighting, now: Instant) -> Option<Change> {
        let record = self.users.entry(sighting.user_id).or_insert_with(|| Record {
            workspace: sighting.workspace_id,
            sightings: HashMap::new(),
            status: Status::Offline,
            last_seen: None,
            chats: Arc::clone(&sighting.chat_ids),
        });
        let before = std::mem::replace(&mut record.chats, Arc::clone(&sighting.chat_ids));
        if sighting.status == Status::Offline {
            record.sightings.remove(&sighting.replica);
        } else {
            record.sightings.insert(sighting.replica, (sighting.status, now));
        }
        let change = record.settle(sighting.user_id, sighting.at);
        if change.is_some() || record.status == Status::Offline {
            return change;
        }
        let before: HashSet<&ChatId> = before.iter().collect();
        let more = record.chats.iter().filter(|chat| !before.contains(chat));
        let more: Arc<[ChatId]> = more.copied().collect();
        (!more.is_empty()).then(|| Change {
            presence: record.presence(sighting.user_id),
            chats: more,
        })
    }

    /// A replica repeats who it sees. Only what was not known of them is a change; where their chats are not known here, nobody is
    /// told.
    pub fn repeat(&mut self, replica: Uuid, users: &[(UserId, WorkspaceId, Status)], now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (user, workspace, status) in users {
            let record = self.users.entry(*user).or_insert_with(|| Record {
                workspace: *workspace,
                sightings: HashMap::new(),
                status: Status::Offline,
                last_seen: None,
                chats: Arc::from([]),
            });
            record.sightings.insert(replica, (*status, now));
            let change = record.settle(*user, OffsetDateTime::now_utc());
            changes.extend(change.filter(|change| !change.chats.is_empty()));
        }
        changes
    }

    /// Forgets words that were not repeated within `patience`.
    pub fn expire(&mut self, patience: Duration, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (user, record) in &mut self.users {
            record
                .sightings
                .retain(|_, (_, given)| now.duration_since(*given) < patience);
            changes.extend(record.settle(*user, OffsetDateTime::now_utc()));
        }
        self.forget();
        changes
    }

    fn forget(&mut self) {
        let Some(over) = self.users.len().checked_sub(REMEMBERED_MAX).filter(|over| *over > 0) else {
            return;
        };
        let offline = self.users.iter().filter(|(_, record)| record.status == Status::Offline);
        let mut offline: Vec<_> = offline.map(|(user, record)| (record.last_seen, *user)).collect();
        offline.sort_unstable();
        for (_, user) in offline.into_iter().take(over) {
            self.users.remove(&user);
        }
    }

    /// A user's presence.
    pub fn of(&self, user: UserId) -> Presence {
        let record = self.users.get(&user);
        Presence {
            user_id: user,
            status: record.map_or(Status::Offline, |record| record.status),
            last_seen_at: record.and_then(|record| record.last_seen),
        }
    }

    /// Those of a workspace who are not offline.
    pub fn present(&self, workspace: WorkspaceId) -> Vec<UserId> {
        let present = self.users.iter();
        present
            .filter(|(_, record)| record.workspace == workspace && record.status != Status::Offline)
            .map(|(user, _)| *user)
            .collect()
    }
}

impl Record {
    fn settle(&mut self, user: UserId, at: OffsetDateTime) -> Option<Change> {
        let status = self.sightings.values().map(|(status, _)| *status).max();
        let status = status.unwrap_or(Status::Offline);
        if status == self.status {
            return None;
        }
        self.status = status;
        self.last_seen = (status == Status::Offline).then_some(at);
        Some(Change {
            presence: self.presence(user),
            chats: Arc::clone(&self.chats),
        })
    }

    fn presence(&self, user: UserId) -> Presence {
        Presence {
            user_id: user,
            status: self.status,
            last_seen_at: self.last_seen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    fn sighting(replica: u128, status: Status) -> Sighting {
        Sighting {
            replica: Uuid::from_u128(replica),
            user_id: UserId(7),
            workspace_id: WorkspaceId(1),
            status,
            at: OffsetDateTime::UNIX_EPOCH,
            chat_ids: Arc::from([ChatId(5)]),
        }
    }

    #[test]
    fn the_best_word_of_all_replicas_counts_and_only_changes_are_told() {
        let (mut records, now) = (Records::default(), Instant::now());
        let told = |change: Option<Change>| change.map(|change| change.presence.status);
        assert_eq!(told(records.see(&sighting(1, Status::Away), now)), Some(Status::Away));
        assert_eq!(
            told(records.see(&sighting(2, Status::Online), now)),
            Some(Status::Online)
        );
        assert_eq!(told(records.see(&sighting(1, Status::Online), now)), None);
        assert_eq!(told(records.see(&sighting(2, Status::Offline), now)), None);
        let change = records.see(&sighting(1, Status::Offline), now).unwrap();
        assert_eq!(change.presence.last_seen_at, Some(OffsetDateTime::UNIX_EPOCH));
        assert_eq!(&*change.chats, [ChatId(5)]);
        assert_eq!(told(records.see(&sighting(1, Status::Offline), now)), None);
        assert_eq!(records.of(UserId(7)).status, Status::Offline);
    }

    #[test]
    fn who_shares_a_chat_only_now_is_told_and_who_does_no_longer_is_not() {
        let (mut records, now) = (Records::default(), Instant::now());
        let with = |status: Status, chats: &[i64]| Sighting {
            chat_ids: chats.iter().map(|chat| ChatId(*chat)).collect(),
            ..sighting(1, status)
        };
        records.see(&with(Status::Online, &[5, 6]), now);
        let change = records.see(&with(Status::Online, &[6, 7]), now).unwrap();
        assert_eq!(
            (change.presence.status, &*change.chats),
            (Status::Online, &[ChatId(7)][..])
        );
        assert_eq!(records.see(&with(Status::Online, &[6]), now), None);
        let change = records.see(&with(Status::Offline, &[6]), now).unwrap();
        assert_eq!(&*change.chats, [ChatId(6)]);
        assert_eq!(records.see(&with(Status::Offline, &[6, 7]), now), None);
    }

    #[test]
    fn a_replica_that_returns_after_it_was_forgotten_is_believed_again() {
        let (mut records, begun) = (Records::default(), Instant::now());
        let word = [(UserId(7), WorkspaceId(1), Status::Online)];
        records.see(&sighting(1, Status::Online), begun);
        assert_eq!(records.expire(PATIENCE, begun + PATIENCE).len(), 1);
        let changes = records.repeat(Uuid::from_u128(1), &word, begun + PATIENCE);
        assert_eq!(changes.len(), 1, "those who were told that the user is gone");
        assert_eq!(
            (changes[0].presence.status, &*changes[0].chats),
            (Status::Online, &[ChatId(5)][..])
        );
        // Of somebody never heard of nobody can be told.
        let stranger = [(UserId(8), WorkspaceId(1), Status::Online)];
        assert!(
            records
                .repeat(Uuid::from_u128(1), &stranger, begun + PATIENCE)
                .is_empty()
        );
        assert_eq!(records.of(UserId(8)).status, Status::Online);
    }

    #[test]
    fn a_replica_that_falls_silent_is_forgotten_unless_it_repeats() {
        let (mut records, begun) = (Records::default(), Instant::now());
        records.see(&sighting(1, Status::Online), begun);
        let later = begun + PATIENCE - Duration::from_secs(1);
        assert!(records.expire(PATIENCE, later).is_empty());
        records.repeat(
            Uuid::from_u128(1),
            &[(UserId(7), WorkspaceId(1), Status::Online)],
            later,
        );
        assert!(records.expire(PATIENCE, begun + PATIENCE).is_empty());
        assert_eq!(records.present(WorkspaceId(1)), [UserId(7)]);
        assert_eq!(records.present(WorkspaceId(2)), []);
        let changes = records.expire(PATIENCE, later + PATIENCE);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].presence.status, Status::Offline);
        assert!(changes[0].presence.last_seen_at.is_some());
    }
}
