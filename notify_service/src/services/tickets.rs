//! Tickets: how a browser's `EventSource`, which can set no header, opens a stream without a token in a URL.
//!
//! A ticket opens one stream within 30 s. From then on it belongs to that stream: its client may come back with it and a
//! cursor, as `EventSource` does by itself, until the access token that it was made with expires. Tickets are kept in a
//! NATS bucket by their digest, so that any process redeems one, and only one does.

use std::time::Duration;

use async_nats::jetstream::kv::{self, Store, UpdateErrorKind};
use async_nats::jetstream::{self, stream::StorageType};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fechatter_core::token::Claims;
use fechatter_core::{UserId, WorkspaceId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

/// Seconds within which a ticket opens its stream.
pub const TICKET_SECONDS: i64 = 30;
const BUCKET: &str = "fechatter_tickets";
/// Longer than any access token lives.
const KEPT: Duration = Duration::from_secs(3_700);
/// Most bytes of tickets that are kept; the server reserves them.
const BUCKET_BYTES: i64 = 64 * 1024 * 1024;
/// Length of a ticket: 32 random bytes in base64.
const TICKET_CHARS: usize = 43;

/// Who a stream belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub user: UserId,
    pub workspace: WorkspaceId,
    pub session: Uuid,
    /// When the access token expires, in seconds since the epoch.
    pub expires: i64,
}

impl From<&Claims> for Identity {
    fn from(claims: &Claims) -> Self {
        Self {
            user: claims.user_id(),
            workspace: claims.ws,
            session: claims.sid,
            expires: claims.exp,
        }
    }
}

/// A ticket as it is kept.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    identity: Identity,
    issued: i64,
    redeemed: bool,
}

/// Why a ticket does not open a stream.
#[derive(Debug, thiserror::Error)]
pub enum TicketFault {
    /// Forged, used, or too old; which of them is not told.
    #[error("the ticket is not valid")]
    Invalid,
    /// The bucket cannot be reached.
    #[error("tickets cannot be kept or read: {0}")]
    Unavailable(Box<dyn std::error::Error + Send + Sync>),
}

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> TicketFault {
    TicketFault::Unavailable(Box::new(error))
}

/// Makes and redeems tickets.
#[derive(Debug)]
pub struct Tickets {
    context: jetstream::Context,
    replicas: usize,
}

impl Tickets {
    /// Tickets in a bucket with this many replicas.
    pub fn new(client: async_nats::Client, replicas: usize) -> Self {
        Self {
            context: jetstream::new(client),
            replicas,
        }
    }

    async fn store(&self) -> Result<Store, TicketFault> {
        self.context.get_key_value(BUCKET).await.map_err(unavailable)
    }

    /// The bucket, made when it is not there; the server may have lost its disk.
    async fn store_or_create(&self) -> Result<Store, TicketFault> {
        if let Ok(store) = self.store().await {
            return Ok(store);
        }
        self.context
            .create_key_value(kv::Config {
                bucket: BUCKET.to_owned(),
                description: "Tickets that open event streams, by their digest".to_owned(),
                history: 1,
                max_age: KEPT,
                max_bytes: BUCKET_BYTES,
                max_value_size: 1_024,
                storage: StorageType::File,
                num_replicas: self.replicas,
                ..kv::Config::default()
            })
            .await
            .map_err(unavailable)
    }

    /// Makes a ticket.
    pub async fn issue(&self, identity: Identity) -> Result<String, TicketFault> {
        let ticket = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let kept = Kept {
            identity,
            issued: OffsetDateTime::now_utc().unix_timestamp(),
            redeemed: false,
        };
        let value = serde_json::to_vec(&kept).map_err(unavailable)?;
        let store = self.store_or_create().await?;
        store.create(key(&ticket), value.into()).await.map_err(unavailable)?;
        Ok(ticket)
    }

    /// Redeems a ticket for a new stream, or lets its own client come back when that brings a cursor.
    pub async fn redeem(&self, ticket: &str, has_cursor: bool) -> Result<Identity, TicketFault> {
        if ticket.len() != TICKET_CHARS {
            return Err(TicketFault::Invalid);
        }
        let store = self.store_or_create().await?;
        let key = key(ticket);
        let entry = store.entry(&key).await.map_err(unavailable)?;
        let entry = entry.ok_or(TicketFault::Invalid)?;
        let kept: Kept = serde_json::from_slice(&entry.value).map_err(|_| TicketFault::Invalid)?;
        let now = OffsetDateTime::now_utc().unix_timestamp();
        if kept.identity.expires <= now {
            return Err(TicketFault::Invalid);
        }
        if kept.redeemed {
            return if has_cursor {
                Ok(kept.identity)
            } else {
                Err(TicketFault::Invalid)
            };
        }
        if now - kept.issued > TICKET_SECONDS {
            return Err(TicketFault::Invalid);
        }
        let redeemed = serde_json::to_vec(&Kept { redeemed: true, ..kept }).map_err(unavailable)?;
        match store.update(&key, redeemed.into(), entry.revision).await {
            Ok(_) => Ok(kept.identity),
            // Somebody else was quicker: the ticket is theirs.
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Err(TicketFault::Invalid),
            Err(error) => Err(unavailable(error)),
        }
    }
}

/// What is kept does not open a stream.
fn key(ticket: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(ticket))
}
