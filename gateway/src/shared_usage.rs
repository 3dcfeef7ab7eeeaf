//! What this replica has taken from quotas, told to the other replicas, so that a limit is the platform's and not each
//! replica's.
//!
//! Several times a second each replica publishes what it took since, by plain NATS messages; the others take the same from
//! their own copies of the quotas. So together they let through a quota and what comes in between two messages. Nothing
//! waits for it: without NATS each replica counts for itself.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use fechatter_core::{UserId, WorkspaceId};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::policy::Current;
use crate::rate_limit::{Principal, Quota};

/// Where replicas tell each other.
const SUBJECT: &str = "gateway.usage";
/// How often.
const INTERVAL: Duration = Duration::from_millis(100);
/// Principals in one message; with more, the next message has them.
const ENTRIES_MAX: usize = 5_000;
/// Principals remembered between two messages; beyond, they are counted here alone.
const PENDING_MAX: usize = 50_000;
const RETRY: Duration = Duration::from_secs(1);

/// What was taken since the last message.
#[derive(Debug, Default)]
pub struct Usage {
    /// Whether anybody is told.
    is_shared: AtomicBool,
    taken: Mutex<HashMap<(Quota, Principal), u32>>,
}

impl Usage {
    /// Notes that one was taken.
    pub fn note(&self, quota: Quota, principal: Principal) {
        if !self.is_shared.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(mut taken) = self.taken.lock()
            && (taken.len() < PENDING_MAX || taken.contains_key(&(quota, principal)))
        {
            *taken.entry((quota, principal)).or_default() += 1;
        }
    }

    /// Whether others are told.
    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Says whether anybody is told.
    pub fn share(&self, shared: bool) {
        self.is_shared.store(shared, Ordering::Relaxed);
        if !shared && let Ok(mut taken) = self.taken.lock() {
            taken.clear();
        }
    }

    fn drain(&self) -> Vec<Entry> {
        let Ok(mut taken) = self.taken.lock() else {
            return Vec::new();
        };
        let keys: Vec<_> = taken.keys().take(ENTRIES_MAX).copied().collect();
        let entries = keys.into_iter().filter_map(|key| {
            let count = taken.remove(&key)?;
            Some(Entry(key.0, name(key.1)?, count))
        });
        entries.collect()
    }
}

/// A quota, whose, and how many were taken from it.
#[derive(Debug, Serialize, Deserialize)]
struct Entry(Quota, String, u32);

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    replica: Uuid,
    taken: Vec<Entry>,
}

/// A principal in a message; the buckets strangers share are each replica's own.
fn name(principal: Principal) -> Option<String> {
    Some(match principal {
        Principal::User(id) => format!("u{id}"),
        Principal::Workspace(id) => format!("w{id}"),
        Principal::Network(network) => format!("n{network:x}"),
        Principal::Shared(_) => return None,
    })
}

fn principal(name: &str) -> Option<Principal> {
    let rest = name.get(1..)?;
    match name.as_bytes().first()? {
        b'u' => rest.parse().ok().map(|id| Principal::User(UserId(id))),
        b'w' => rest.parse().ok().map(|id| Principal::Workspace(WorkspaceId(id))),
        b'n' => u128::from_str_radix(rest, 16).ok().map(Principal::Network),
        _ => None,
    }
}

/// Tells and listens until `shutdown`.
pub async fn run(policy: Current, client: Client, shutdown: CancellationToken) {
    let replica = Uuid::now_v7();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = exchange(&policy, &client, replica) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Ends when the subscription does.
async fn exchange(policy: &Current, client: &Client, replica: Uuid) {
    let Ok(mut others) = client.subscribe(SUBJECT).await else {
        return;
    };
    let mut tell = tokio::time::interval(INTERVAL);
    tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = others.next() => match message {
                Some(message) => take(policy, &message.payload, replica),
                None => return,
            },
            _ = tell.tick() => publish(policy, client, replica).await,
        }
    }
}

async fn publish(policy: &Current, client: &Client, replica: Uuid) {
    let limits = std::sync::Arc::clone(&policy.load().limits);
    let connected = client.connection_state() == State::Connected;
    limits.usage.share(connected && policy.load().config.rate_limits.shared);
    let taken = limits.usage.drain();
    if taken.is_empty() {
        return;
    }
    let Ok(message) = serde_json::to_vec(&Message { replica, taken }) else {
        return;
    };
    if let Err(error) = client.publish(SUBJECT, message.into()).await {
        tracing::debug!(%error, "usage of quotas is not shared");
    }
}

fn take(policy: &Current, payload: &[u8], replica: Uuid) {
    let message: Message = match serde_json::from_slice(payload) {
        Ok(message) => message,
        Err(error) => return tracing::warn!(%error, "a message about quotas cannot be read"),
    };
    if message.replica == replica {
        return;
    }
    let policy = policy.load();
    for Entry(quota, name, count) in message.taken {
        if let Some(principal) = principal(&name) {
            policy.limits.taken_elsewhere(quota, principal, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Class;

    #[test]
    fn principals_survive_a_message() {
        for one in [
            Principal::User(UserId(7)),
            Principal::Workspace(WorkspaceId(8)),
            Principal::Network(u128::MAX),
        ] {
            assert_eq!(principal(&name(one).unwrap()), Some(one));
        }
        assert_eq!(name(Principal::Shared(1)), None);
        for junk in ["", "u", "x1", "u-", "nzz", "\u{e9}"] {
            assert_eq!(principal(junk), None, "{junk}");
        }
    }

    #[test]
    fn what_was_taken_is_told_once_and_only_when_somebody_listens() {
        let usage = Usage::default();
        let user = Principal::User(UserId(7));
        usage.note(Quota::Class(Class::Send), user);
        assert!(usage.drain().is_empty());
        usage.share(true);
        usage.note(Quota::Class(Class::Send), user);
        usage.note(Quota::Class(Class::Send), user);
        let taken = usage.drain();
        assert_eq!((taken.len(), taken[0].2), (1, 2));
        assert!(usage.drain().is_empty());
    }
}
