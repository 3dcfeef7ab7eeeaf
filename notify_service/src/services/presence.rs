//! Who is here: what this process sees is told to all replicas, and what they say to those who share a chat.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fechatter_core::{ChatId, UserId, WorkspaceId};
use service_runtime::ApiResult;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::access::{Access, database_fault};
use crate::config::PresenceConfig;
use crate::connection::EphemeralKey;
use crate::ephemeral::{self, Awayness, Repetition};
use crate::event::frame;
use crate::presence::{Change, Presence as View, Records, Sighting, Status};
use crate::repositories;

/// Changes within this time are told as one.
const PERIOD: Duration = Duration::from_millis(250);
/// Users of one repetition.
const REPEATED_AT_ONCE: usize = 2_000;
/// Most users of one answer.
const ANSWERED_MAX: usize = 1_000;

/// See the module.
#[derive(Debug, Clone)]
pub struct Presence {
    client: async_nats::Client,
    access: Access,
    config: PresenceConfig,
    replica: Uuid,
    records: Arc<Mutex<Records>>,
}

/// What was said of a user last, and to whom.
#[derive(Debug)]
struct Said {
    workspace: WorkspaceId,
    status: Status,
    chats: Arc<[ChatId]>,
    /// When it is to be said that the user is gone, unless they return.
    gone_at: Option<Instant>,
}

impl Presence {
    /// Speaks by `client`.
    pub fn new(client: async_nats::Client, access: Access, config: PresenceConfig) -> Self {
        Self {
            client,
            access,
            config,
            replica: Uuid::new_v4(),
            records: Arc::default(),
        }
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The presence of those of `users` who are in the chat; of everybody in it who is here when none are named. At most
    /// [`ANSWERED_MAX`].
    pub async fn in_chat(
        &self,
        caller: (UserId, WorkspaceId),
        chat: ChatId,
        users: Option<Vec<UserId>>,
    ) -> ApiResult<Vec<View>> {
        let (user, workspace) = caller;
        self.access.member(user, workspace, chat).await?;
        let asked = users.unwrap_or_else(|| self.records().present(workspace));
        let verdict = repositories::membership::of_chat(&self.access.pool, chat, &asked)
            .await
            .map_err(|error| database_fault(&error))?;
        let mut members: Vec<UserId> = verdict.members.into_iter().collect();
        members.sort_unstable();
        members.truncate(ANSWERED_MAX);
        let records = self.records();
        Ok(members.into_iter().map(|user| records.of(user)).collect())
    }

    /// A session says whether its user is at the device; its streams may be anywhere.
    pub async fn declare(&self, workspace: WorkspaceId, user: UserId, session: Uuid, is_away: bool) {
        let awayness = Awayness {
            user_id: user,
            session_id: session,
            is_away,
        };
        ephemeral::send(&self.client, workspace, &awayness).await;
    }

    /// Takes a replica's word, this one's included, and tells those who may know.
    pub fn see(&self, sighting: &Sighting) {
        let change = self.records().see(sighting, Instant::now());
        self.tell(change);
    }

    /// A replica repeats what it sees.
    pub fn repeat(&self, repetition: &Repetition) {
        self.records()
            .repeat(repetition.replica, &repetition.users, Instant::now());
    }

    fn tell(&self, changes: impl IntoIterator<Item = Change>) {
        let hub = &self.access.hub;
        for change in changes {
            let Ok(data) = serde_json::to_string(&change.presence) else {
                continue;
            };
            let user = change.presence.user_id;
            let key = EphemeralKey::Presence(user);
            let receivers = hub.publish_ephemeral(&change.chats, user, key, &frame(None, "presence", &data));
            hub.metrics().ephemeral("presence", receivers);
        }
    }

    /// Says what changes here, repeats it now and then, and forgets replicas that fell silent, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut said: HashMap<UserId, Said> = HashMap::new();
        let mut repeated = Instant::now();
        while shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            self.say_changes(&mut said).await;
            let now = Instant::now();
            // Three times within the patience of the others.
            if now.duration_since(repeated) >= self.config.patience() / 3 {
                repeated = now;
                self.say_again(&said).await;
                let changes = self.records().expire(self.config.patience(), now);
                self.tell(changes);
            }
        }
        // Streams have moved to other replicas by now.
        for (user, said) in said {
            self.say(user, said.workspace, Status::Offline, &said.chats).await;
        }
    }

    async fn say_changes(&self, said: &mut HashMap<UserId, Said>) {
        let now = Instant::now();
        for local in self.access.hub.moved() {
            match (local.workspace, said.get_mut(&local.user)) {
                (Some(workspace), known) => {
                    if known.is_none_or(|known| known.status != local.status) {
                        self.say(local.user, workspace, local.status, &local.chats).await;
                    }
                    let news = Said {
                        workspace,
                        status: local.status,
                        chats: local.chats,
                        gone_at: None,
                    };
                    said.insert(local.user, news);
                }
                // A client that returns at once was never gone.
                (None, Some(known)) => known.gone_at = Some(now + self.config.linger()),
                (None, None) => {}
            }
        }
        let gone: Vec<UserId> = said
            .iter()
            .filter(|(_, said)| said.gone_at.is_some_and(|at| at <= now))
            .map(|(user, _)| *user)
            .collect();
        for user in gone {
            if let Some(said) = said.remove(&user) {
                self.say(user, said.workspace, Status::Offline, &said.chats).await;
            }
        }
    }

    async fn say(&self, user: UserId, workspace: WorkspaceId, status: Status, chats: &Arc<[ChatId]>) {
        let sighting = Sighting {
            replica: self.replica,
            user_id: user,
            workspace_id: workspace,
            status,
            at: OffsetDateTime::now_utc(),
            chat_ids: Arc::clone(chats),
        };
        ephemeral::send(&self.client, workspace, &sighting).await;
    }

    async fn say_again(&self, said: &HashMap<UserId, Said>) {
        let users: Vec<(UserId, WorkspaceId, Status)> = said
            .iter()
            .map(|(user, said)| (*user, said.workspace, said.status))
            .collect();
        for users in users.chunks(REPEATED_AT_ONCE) {
            let repetition = Repetition {
                replica: self.replica,
                users: users.to_vec(),
            };
            ephemeral::send(&self.client, WorkspaceId(0), &repetition).await;
        }
    }
}
