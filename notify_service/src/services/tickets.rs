//! Tickets for browsers' `EventSource`, which cannot send a header: made with a token, used once within 30 s, then bound
//! to that stream so that its automatic reconnects work.
//!
//! They live in a key-value bucket of JetStream, so that any replica can take what another has made; a compare-and-set
//! by revision makes the first use the only first use. The ticket is stored as a digest only. The server forgets it when
//! its time is over: one that was not used after those 30 s, one that was with its token.

use std::sync::Arc;
use std::time::Duration;

use async_nats::header;
use async_nats::jetstream;
use async_nats::jetstream::context::{KeyValueErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::kv::{self, Store};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind, StorageType};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fechatter_core::problem::Code;
use fechatter_core::token::Claims;
use fechatter_core::{UserId, WorkspaceId};
use rand::Rng;
use serde::{Deserialize, Serialize};
use service_runtime::{ApiError, ApiResult};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::hub::Hub;

/// The bucket.
pub const BUCKET: &str = "fechatter_tickets";
/// Seconds within which a ticket must be used for the first time.
pub const FIRST_USE_SECONDS: i64 = 30;
/// Longest life of an entry, whatever it says itself: the longest that an access token can be made to live.
const KEPT: Duration = Duration::from_hours(1);
/// How long the server remembers that an entry has left, which nobody asks for; its shortest.
const MARKED: Duration = Duration::from_secs(1);
/// Disk of the bucket; the server reserves it and takes no more tickets when it is full. An entry takes less than 400
/// bytes, so that is 160,000 streams that were begun with a ticket and whose tokens live; the unused ones leave too soon
/// to count.
const BUCKET_BYTES: i64 = 64 << 20;
/// Random bytes of a ticket.
const TICKET_BYTES: usize = 32;
/// Longest request to NATS.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What a ticket stands for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    user: UserId,
    workspace: WorkspaceId,
    session: Uuid,
    /// When the token it came from expires, in seconds since the epoch.
    expires: i64,
    made: i64,
    is_bound: bool,
}

/// Whom a ticket speaks for.
#[derive(Debug, Clone, Copy)]
pub struct Admitted {
    pub user: UserId,
    pub workspace: WorkspaceId,
    pub session: Uuid,
    pub expires: i64,
    pub digest: [u8; 32],
}

/// Makes and takes tickets.
#[derive(Debug, Clone)]
pub struct Tickets {
    context: jetstream::Context,
    hub: Arc<Hub>,
    replicas: usize,
    store: Arc<Mutex<Option<Store>>>,
}

fn away(error: &dyn std::fmt::Display) -> ApiError {
    tracing::warn!(%error, "tickets are not available");
    ApiError::unavailable(
        "Tickets are not available now; try again soon, or send a bearer token.",
        2,
    )
}

fn refused(detail: &str) -> ApiError {
    ApiError::new(Code::InvalidToken, detail)
}

fn key(digest: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(digest)
}

impl Tickets {
    /// Tickets in the bucket behind `context`, which is made with `replicas` when it is not there.
    pub fn new(context: jetstream::Context, hub: Arc<Hub>, replicas: usize) -> Self {
        Self {
            context,
            hub,
            replicas,
            store: Arc::default(),
        }
    }

    /// Makes a ticket for the bearer of a token.
    pub async fn issue(&self, claims: &Claims) -> ApiResult<String> {
        let mut secret = [0; TICKET_BYTES];
        rand::rng().fill_bytes(&mut secret);
        let ticket = URL_SAFE_NO_PAD.encode(secret);
        let stored = Stored {
            user: claims.user_id(),
            workspace: claims.ws,
            session: claims.sid,
            expires: claims.exp,
            made: OffsetDateTime::now_utc().unix_timestamp(),
            is_bound: false,
        };
        let value = serde_json::to_vec(&stored).map_err(|error| ApiError::internal(&error))?;
        let key = key(&digest(&ticket));
        let store = self.store().await?;
        let ttl = lifetime(stored.expires.min(stored.made + FIRST_USE_SECONDS), stored.made);
        let created = tokio::time::timeout(TIMEOUT, store.create_with_ttl(&key, value.clone().into(), ttl)).await;
        if !matches!(created, Ok(Ok(_))) {
            // The bucket may have been lost with its disk: look for it again, once.
            self.store.lock().await.take();
            let store = self.store().await?;
            tokio::time::timeout(TIMEOUT, store.create_with_ttl(&key, value.into(), ttl))
                .await
                .map_err(|error| away(&error))?
                .map_err(|error| away(&error))?;
        }
        self.hub.metrics().ticket("issued");
        Ok(ticket)
    }

    /// Takes a ticket: for the first time, or with a cursor for the stream that it is bound to.
    pub async fn redeem(&self, ticket: &str, has_cursor: bool) -> ApiResult<Admitted> {
        let result = self
            .redeem_at(ticket, has_cursor, OffsetDateTime::now_utc().unix_timestamp())
            .await;
        self.hub.metrics().ticket(match &result {
            Ok(_) => "accepted",
            Err(error) if error.0.code == Code::InvalidToken => "refused",
            Err(_) => "failed",
        });
        result
    }

    async fn redeem_at(&self, ticket: &str, has_cursor: bool, now: i64) -> ApiResult<Admitted> {
        // Nothing that we did not make is asked about.
        if URL_SAFE_NO_PAD.decode(ticket).map(|bytes| bytes.len()) != Ok(TICKET_BYTES) {
            return Err(refused(
                "The ticket is not valid; get a new one by POST /events/ticket.",
            ));
        }
        let digest = digest(ticket);
        let key = key(&digest);
        let store = self.store().await?;
        let entry = match tokio::time::timeout(TIMEOUT, entry(&store, &key)).await {
            Ok(Ok(entry)) => entry,
            Ok(Err(error)) => {
                self.store.lock().await.take();
                return Err(away(&error));
            }
            Err(error) => return Err(away(&error)),
        };
        let invalid = || refused("The ticket is not valid or has been used; get a new one by POST /events/ticket.");
        let entry = entry.ok_or_else(invalid)?;
        let mut stored: Stored = serde_json::from_slice(&entry.payload).map_err(|error| ApiError::internal(&error))?;
        if stored.expires <= now || self.hub.is_revoked(stored.session) {
            return Err(invalid());
        }
        if stored.is_bound {
            if !has_cursor {
                return Err(invalid());
            }
        } else {
            if now > stored.made + FIRST_USE_SECONDS {
                return Err(invalid());
            }
            stored.is_bound = true;
            let value = serde_json::to_vec(&stored).map_err(|error| ApiError::internal(&error))?;
            let bound = self.bind(&store, &key, value, entry.sequence, lifetime(stored.expires, now));
            match tokio::time::timeout(TIMEOUT, bound).await {
                Ok(Ok(_)) => {}
                // Somebody else was quicker, theirs was the first use; or it has just left.
                Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => return Err(invalid()),
                Ok(Err(error)) => return Err(away(&error)),
                Err(error) => return Err(away(&error)),
            }
        }
        Ok(Admitted {
            user: stored.user,
            workspace: stored.workspace,
            session: stored.session,
            expires: stored.expires,
            digest,
        })
    }

    /// Replaces an entry that is as it was, as [`Store::update`] does, which takes no lifetime.
    async fn bind(
        &self,
        store: &Store,
        key: &str,
        value: Vec<u8>,
        revision: u64,
        ttl: Duration,
    ) -> Result<PublishAck, PublishError> {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
        headers.insert(header::NATS_MESSAGE_TTL, ttl.as_secs().to_string());
        let subject = format!("{}{key}", store.prefix);
        self.context
            .publish_with_headers(subject, headers, value.into())
            .await?
            .await
    }

    /// The bucket, made when it is not there.
    async fn store(&self) -> ApiResult<Store> {
        let mut known = self.store.lock().await;
        if let Some(store) = &*known {
            return Ok(store.clone());
        }
        let found = tokio::time::timeout(TIMEOUT, self.find_or_make())
            .await
            .map_err(|error| away(&error))??;
        *known = Some(found.clone());
        Ok(found)
    }

    async fn find_or_make(&self) -> ApiResult<Store> {
        let wanted = kv::Config {
            bucket: BUCKET.to_owned(),
            description: "Tickets of event streams, by digest".to_owned(),
            history: 1,
            max_age: KEPT,
            max_bytes: BUCKET_BYTES,
            max_value_size: 1_024,
            storage: StorageType::File,
            num_replicas: self.replicas,
            limit_markers: Some(MARKED),
            ..kv::Config::default()
        };
        match self.context.get_key_value(BUCKET).await {
            Ok(store) => {
                let found = &store.stream.cached_info().config;
                if found.allow_message_ttl && found.max_age == KEPT && found.max_bytes == BUCKET_BYTES {
                    return Ok(store);
                }
                // Made by an earlier version.
                return self
                    .context
                    .update_key_value(wanted)
                    .await
                    .map_err(|error| away(&error));
            }
            Err(error) if error.kind() == KeyValueErrorKind::GetBucket => {}
            Err(error) => return Err(away(&error)),
        }
        match self.context.create_key_value(wanted).await {
            Ok(store) => Ok(store),
            // Another replica was quicker.
            Err(_) => self.context.get_key_value(BUCKET).await.map_err(|error| away(&error)),
        }
    }
}

/// What is stored under a key, if anything is. Asks the bucket's leader, not any replica as [`Store::entry`] does: one that is
/// behind does not know a ticket yet that was made a moment ago, or that it has been used.
async fn entry(store: &Store, key: &str) -> Result<Option<StreamMessage>, LastRawMessageError> {
    let subject = format!("{}{key}", store.prefix);
    match store.stream.get_last_raw_message_by_subject(&subject).await {
        // What marks that an entry has left has no value.
        Ok(message) => Ok(Some(message).filter(|message| !message.payload.is_empty())),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How long the server is to keep an entry until `end`; it counts in whole seconds.
fn lifetime(end: i64, now: i64) -> Duration {
    Duration::from_secs(u64::try_from(end - now).unwrap_or(0).max(1))
}

fn digest(ticket: &str) -> [u8; 32] {
    Sha256::digest(ticket.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use fechatter_core::user::Role;

    #[tokio::test]
    async fn a_ticket_is_known_whatever_a_replica_of_the_bucket_has_not_heard_yet() {
        let server = dev::nats::Server::temporary().expect("a server");
        let client = async_nats::connect(server.url()).await.expect("a connection");
        let context = jetstream::new(client);
        let config = serde_json::from_str(r#"{"database": {"url": "postgres://x"}}"#).expect("a configuration");
        let hub = Arc::new(Hub::new(&config, Metrics::default()));
        let tickets = Tickets::new(context.clone(), hub, 1);
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claims = Claims {
            iss: "fechatter".to_owned(),
            aud: "fechatter".to_owned(),
            sub: "1".to_owned(),
            ws: WorkspaceId(1),
            role: Role::Member,
            sid: Uuid::nil(),
            jti: Uuid::nil(),
            iat: now,
            exp: now + 60,
        };
        let ticket = tickets.issue(&claims).await.expect("a ticket");
        let bucket = format!("KV_{BUCKET}");
        let mut stream = context
            .get_stream(&bucket)
            .await
            .expect("the bucket")
            .cached_info()
            .config
            .clone();
        stream.allow_direct = false;
        context.update_stream(&stream).await.expect("an update");
        crate::services::lagging_replica::answer(server.port(), &format!("$JS.API.DIRECT.GET.{bucket}.>"));
        assert!(tickets.redeem(&ticket, false).await.is_ok());
        assert!(tickets.redeem(&ticket, false).await.is_err(), "once");
        assert!(tickets.redeem(&ticket, true).await.is_ok(), "its reconnection");
    }
}
