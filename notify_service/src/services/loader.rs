//! Loads users' chats, many users with one question, so that all clients returning at once do not storm PostgreSQL.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fechatter_core::UserId;
use futures::future::join_all;
use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::membership::LoadEnd;
use crate::repositories;

/// Users of one question.
const BATCH: usize = 500;
/// Requests that may wait.
const WAITING_MAX: usize = 20_000;
/// How often a load that races with events is begun again.
const ATTEMPTS: usize = 4;
/// Longest wait of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time of a question.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a user's chats are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoadFault {
    /// PostgreSQL is away or slow.
    #[error("the members could not be loaded")]
    Unavailable,
    /// There is no such user, or they are deactivated.
    #[error("the user is not active")]
    NotActive,
}

type Answer = oneshot::Sender<Result<(), LoadFault>>;

/// Asks the loading task.
#[derive(Debug, Clone)]
pub struct Loader {
    requests: mpsc::Sender<(UserId, Answer)>,
}

impl Loader {
    /// Starts the loading task and the one that has doubtful users loaded again; they end with `shutdown`.
    pub fn spawn(hub: Arc<Hub>, pool: PgPool, shutdown: CancellationToken) -> Self {
        let (requests, mut waiting) = mpsc::channel(WAITING_MAX);
        let loader = Self { requests };
        tokio::spawn(loader.clone().reload(Arc::clone(&hub), shutdown.clone()));
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while let Some(1..) = shutdown.run_until_cancelled(waiting.recv_many(&mut batch, BATCH)).await {
                serve(&hub, &pool, std::mem::take(&mut batch)).await;
            }
        });
        loader
    }

    /// Loads users again whose chats are in doubt; the streams of those who cannot be loaded end.
    async fn reload(self, hub: Arc<Hub>, shutdown: CancellationToken) {
        while let Some(users) = shutdown.run_until_cancelled(hub.doubtful()).await {
            for users in users.chunks(BATCH) {
                let results = join_all(users.iter().map(|user| self.load(*user))).await;
                let failed: Vec<UserId> = users
                    .iter()
                    .zip(results)
                    .filter(|(_, result)| result.is_err())
                    .map(|(user, _)| *user)
                    .collect();
                if !failed.is_empty() {
                    tracing::warn!(users = failed.len(), "cannot load users again; their streams end");
                    hub.doubt(&failed);
                }
            }
        }
    }

    /// Makes sure that the user's chats are known.
    pub async fn load(&self, user: UserId) -> Result<(), LoadFault> {
        let (answer, answered) = oneshot::channel();
        self.requests
            .try_send((user, answer))
            .map_err(|_| LoadFault::Unavailable)?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(result)) => result,
            _ => Err(LoadFault::Unavailable),
        }
    }
}

/// Those who wait for each user.
type Waiting = HashMap<UserId, Vec<Answer>>;

fn answer(waiting: &mut Waiting, user: UserId, result: Result<(), LoadFault>) {
    for answer in waiting.remove(&user).into_iter().flatten() {
        // Whoever asked may have left.
        let _ = answer.send(result);
    }
}

async fn serve(hub: &Hub, pool: &PgPool, batch: Vec<(UserId, Answer)>) {
    let mut waiting = Waiting::new();
    for (user, answer) in batch {
        waiting.entry(user).or_default().push(answer);
    }
    let known: Vec<UserId> = waiting.keys().copied().filter(|user| hub.is_known_now(*user)).collect();
    for user in known {
        answer(&mut waiting, user, Ok(()));
    }
    for _ in 0..ATTEMPTS {
        if waiting.is_empty() || !attempt(hub, pool, &mut waiting).await {
            break;
        }
    }
    let users: Vec<UserId> = waiting.keys().copied().collect();
    hub.abandon_load(&users);
    for user in users {
        answer(&mut waiting, user, Err(LoadFault::Unavailable));
    }
}

/// Asks once for all who are waited for; whoever raced with an event stays. `false` when PostgreSQL does not answer.
async fn attempt(hub: &Hub, pool: &PgPool, waiting: &mut Waiting) -> bool {
    let users: Vec<UserId> = waiting.keys().copied().collect();
    hub.begin_load(&users);
    let query = repositories::membership::of_users(pool, &users);
    let mut loaded = match tokio::time::timeout(QUERY_TIMEOUT, query).await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => {
            tracing::warn!(%error, users = users.len(), "cannot load members");
            return false;
        }
        Err(_) => {
            tracing::warn!(users = users.len(), "loading members takes too long");
            return false;
        }
    };
    let count = users.len();
    for user in users {
        match loaded.remove(&user) {
            None => {
                hub.abandon_load(&[user]);
                answer(waiting, user, Err(LoadFault::NotActive));
            }
            Some(chats) => {
                if hub.finish_load(user, chats) == LoadEnd::Ready {
                    answer(waiting, user, Ok(()));
                }
            }
        }
    }
    hub.metrics().loaded(count);
    true
}
