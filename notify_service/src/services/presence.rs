//! Who is here: what this process sees is told to all replicas, and what they say to those who share a chat.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use service_runtime::{ApiError, ApiResult};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::access::{Access, database_fault};
use crate::config::PresenceConfig;
use crate::connection::EphemeralKey;
use crate::ephemeral::{self, Awayness, Repetition, RollCall};
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
    /// Somebody asked to be told everything again.
    was_called: Arc<AtomicBool>,
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
            was_called: Arc::default(),
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

    /// A session says whether its user is at the device; its streams may be anywhere. An error while NATS is away.
    pub async fn declare(&self, workspace: WorkspaceId, user: UserId, session: Uuid, is_away: bool) -> ApiResult<()> {
        if !self.is_connected() {
            return Err(ApiError::unavailable("Presence cannot be told now; try again soon.", 2));
        }
        let awayness = Awayness {
            user_id: user,
            session_id: session,
            is_away,
        };
        ephemeral::send(&self.client, workspace, &awayness).await;
        Ok(())
    }

    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::SeqCst)
    }

    /// Takes a replica's word, this one's included, and tells those who may know.
    pub fn see(&self, sighting: &Sighting) {
        let change = self.records().see(sighting, Instant::now());
        self.tell(change);
    }

    /// A replica repeats what it sees.
    pub fn repeat(&self, repetition: &Repetition) {
        let changes = self
            .records()
            .repeat(repetition.replica, &repetition.users, Instant::now());
        self.tell(changes);
    }

    /// Somebody asks to be told everything again.
    pub fn is_called(&self) {
        self.was_called.store(true, Ordering::SeqCst);
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
    ///
    /// While NATS is away nothing is said and nobody forgotten. Whoever has just connected may have missed words, and others
    /// theirs: they are asked for, and there is patience again.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut said: HashMap<UserId, Said> = HashMap::new();
        let mut repeated = Instant::now();
        let mut connected: Option<(u64, Instant)> = None;
        while shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            let (now, connects) = (Instant::now(), self.connects());
            if !self.is_connected() {
                continue;
            }
            let since = match connected {
                Some((known, since)) if known == connects => since,
                _ => {
                    let replica = self.replica;
                    ephemeral::send(&self.client, WorkspaceId(0), &RollCall { replica }).await;
                    now
                }
            };
            connected = Some((connects, since));
            self.say_changes(&mut said).await;
            if self.was_called.swap(false, Ordering::SeqCst) {
                for (user, said) in &said {
                    self.say(*user, said.workspace, said.status, &said.chats).await;
                }
            }
            // Three times within the patience of the others.
            if now.duration_since(repeated) >= self.config.patience() / 3 {
                repeated = now;
                self.say_again(&said).await;
                if now.duration_since(since) >= self.config.patience() {
                    let changes = self.records().expire(self.config.patience(), now);
                    self.tell(changes);
                }
            }
        }
        // Streams have moved to other replicas by now.
        for (user, said) in said {
            self.say_gone(user, &said).await;
        }
    }

    async fn say_changes(&self, said: &mut HashMap<UserId, Said>) {
        let now = Instant::now();
        for local in self.access.hub.moved() {
            match (local.workspace, said.get_mut(&local.user)) {
                (Some(workspace), known) => {
                    let is_said = |known: &mut Said| (known.status, &known.chats) == (local.status, &local.chats);
                    if !known.is_some_and(is_said) {
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
                self.say_gone(user, &said).await;
            }
        }
    }

    /// Tells those who share a chat now, as far as that is known.
    async fn say_gone(&self, user: UserId, said: &Said) {
        let hub = &self.access.hub;
        let chats = if hub.knows(user) {
            hub.local(user).chats
        } else {
            Arc::clone(&said.chats)
        };
        self.say(user, said.workspace, Status::Offline, &chats).await;
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
