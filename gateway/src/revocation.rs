//! Revoked sessions, read from the event stream: a token whose session has ended stops working here within a second.
//!
//! Every gateway replica reads for itself, from before the oldest token that can still be valid. Without NATS the
//! gateway works on with what it knows and says so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use fechatter_core::events::{Event, EventType, SESSION_SUBJECTS, STREAM, SessionRevokedEvent};
use fechatter_core::token::ACCESS_SECONDS_MAX;
use futures::StreamExt;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a revocation is remembered: longer than any access token lives, leeway and clock differences included.
const REMEMBER: time::Duration = time::Duration::seconds(ACCESS_SECONDS_MAX + 5 * 60);
/// Sessions remembered at most; a bound, not an expectation.
const SESSIONS_MAX: usize = 1_000_000;
const RETRY: Duration = Duration::from_secs(1);

/// The sessions that ended lately.
#[derive(Debug, Default)]
pub struct Revoked {
    sessions: RwLock<HashMap<Uuid, i64>>,
    count: AtomicUsize,
    /// Whether the consumer is there; it outlives short interruptions.
    following: AtomicBool,
    client: OnceLock<async_nats::Client>,
    /// Whether everything that was there at the start has been read.
    caught_up: watch::Sender<bool>,
}

impl Revoked {
    /// Whether tokens of this session are refused.
    pub fn contains(&self, session: Uuid) -> bool {
        // Nearly always nothing is revoked, and then there is no lock to take.
        self.count.load(Ordering::Relaxed) > 0
            && self
                .sessions
                .read()
                .is_ok_and(|sessions| sessions.contains_key(&session))
    }

    /// Whether revocations arrive now.
    pub fn is_connected(&self) -> bool {
        let connected = |client: &async_nats::Client| client.connection_state() == State::Connected;
        self.following.load(Ordering::Relaxed) && self.client.get().is_some_and(connected)
    }

    /// Whether the sessions that ended before this process began have been read once.
    pub fn is_caught_up(&self) -> bool {
        *self.caught_up.borrow()
    }

    /// Waits for [`Self::is_caught_up`].
    pub async fn caught_up(&self) {
        // The sender is this value itself, so that the wait cannot fail.
        let _ = self.caught_up.subscribe().wait_for(|caught_up| *caught_up).await;
    }

    /// Sessions remembered.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remembers a session that ended at `revoked_at`.
    pub fn insert(&self, session: Uuid, revoked_at: OffsetDateTime) {
        let expires = (revoked_at + REMEMBER).unix_timestamp();
        let Ok(mut sessions) = self.sessions.write() else {
            return;
        };
        if sessions.len() >= SESSIONS_MAX {
            tracing::error!(
                sessions = sessions.len(),
                "too many revoked sessions, forgetting the oldest half"
            );
            let mut times: Vec<i64> = sessions.values().copied().collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            sessions.retain(|_, at| *at > median);
        }
        sessions.insert(session, expires);
        self.count.store(sessions.len(), Ordering::Relaxed);
    }

    fn forget_expired(&self, now: OffsetDateTime) {
        if let Ok(mut sessions) = self.sessions.write() {
            sessions.retain(|_, expires| *expires > now.unix_timestamp());
            self.count.store(sessions.len(), Ordering::Relaxed);
        }
    }
}

/// Reads revocations until `shutdown`, again from the start of the window after every interruption.
pub async fn follow(revoked: Arc<Revoked>, client: async_nats::Client, shutdown: CancellationToken) {
    let jetstream = jetstream::new(client.clone());
    let _ = revoked.client.set(client);
    let mut warned = false;
    loop {
        let result = tokio::select! {
            () = shutdown.cancelled() => return,
            result = read(&revoked, &jetstream) => result,
        };
        revoked.following.store(false, Ordering::Relaxed);
        if let Err(error) = result
            && !warned
        {
            tracing::warn!(
                error,
                "revoked sessions cannot be read; tokens of ended sessions work until they expire"
            );
            warned = true;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn read(revoked: &Revoked, jetstream: &jetstream::Context) -> Result<(), String> {
    let stream = jetstream
        .get_stream_no_info(STREAM)
        .await
        .map_err(|error| error.to_string())?;
    let consumer = stream
        .create_consumer(OrderedConfig {
            filter_subject: SESSION_SUBJECTS.to_owned(),
            deliver_policy: DeliverPolicy::ByStartTime {
                start_time: OffsetDateTime::now_utc() - REMEMBER,
            },
            ..OrderedConfig::default()
        })
        .await
        .map_err(|error| error.to_string())?;
    let pending = consumer.cached_info().num_pending;
    let mut messages = consumer.messages().await.map_err(|error| error.to_string())?;
    revoked.following.store(true, Ordering::Relaxed);
    tracing::info!(pending, "following revoked sessions");
    if pending == 0 {
        revoked.caught_up.send_replace(true);
    }
    let mut forget = tokio::time::interval(Duration::from_mins(1));
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(Ok(message)) => {
                    apply(revoked, &message.payload);
                    if message.info().is_ok_and(|info| info.pending == 0) {
                        revoked.caught_up.send_replace(true);
                    }
                }
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the subscription ended".to_owned()),
            },
            _ = forget.tick() => revoked.forget_expired(OffsetDateTime::now_utc()),
        }
    }
}

fn apply(revoked: &Revoked, payload: &[u8]) {
    let parsed = Event::parse(payload).and_then(|(kind, event)| match kind {
        EventType::SessionRevoked => Ok(Some((event.payload::<SessionRevokedEvent>()?.session_id, event.time))),
        _ => Ok(None),
    });
    match parsed {
        Ok(Some((session, time))) => {
            tracing::debug!(%session, "session revoked");
            revoked.insert(session, time);
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "an event about sessions cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_remembered_for_their_time() {
        let (revoked, now) = (Revoked::default(), OffsetDateTime::now_utc());
        let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
        let longest = time::Duration::seconds(ACCESS_SECONDS_MAX);
        assert!(REMEMBER > longest, "no token outlives what is known of its session");
        revoked.insert(old, now - (REMEMBER - time::Duration::minutes(1)));
        revoked.insert(new, now);
        assert!(revoked.contains(old) && revoked.contains(new) && !revoked.contains(Uuid::now_v7()));
        revoked.forget_expired(now + time::Duration::minutes(2));
        assert!(!revoked.contains(old) && revoked.contains(new));
        assert_eq!(revoked.len(), 1);
    }

    #[test]
    fn events_are_applied_and_junk_is_not() {
        let revoked = Revoked::default();
        let session_id = Uuid::now_v7();
        let payload = SessionRevokedEvent {
            session_id,
            user_id: 5.into(),
        };
        let event = Event::new(
            EventType::SessionRevoked,
            1.into(),
            5,
            OffsetDateTime::now_utc(),
            payload,
        );
        apply(&revoked, &serde_json::to_vec(&event).unwrap());
        apply(&revoked, b"junk");
        assert!(revoked.contains(session_id));
        assert_eq!(revoked.len(), 1);
    }
}
