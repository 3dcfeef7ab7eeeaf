//! Reads back from the stream what is no longer in memory, for a client that comes back late.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, Message};
use fechatter_core::WorkspaceId;
use fechatter_core::events::STREAM;
use futures::StreamExt;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::consumer::{Meaning, epoch_of, interpret, place_of};
use crate::frame::{Cursor, GapReason};
use crate::hub::{Earlier, Entry};

/// Clients that are read for at the same time.
const READERS: usize = 8;
/// Longest time for one of them, waiting included.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Replay {
    context: jetstream::Context,
    readers: Semaphore,
    /// More events of a workspace than this are not read.
    events_max: u64,
}

impl Replay {
    /// Reads at most `events_max` events for a client.
    pub fn new(client: async_nats::Client, events_max: u64) -> Self {
        Self {
            context: jetstream::new(client),
            readers: Semaphore::new(READERS),
            events_max,
        }
    }

    /// The events of a workspace after `cursor`, up to `upto` at least.
    pub async fn read(&self, workspace: WorkspaceId, cursor: Cursor, upto: u64) -> Earlier {
        let read = async {
            let _turn = self.readers.acquire().await.map_err(|_| GapReason::Expired)?;
            self.read_events(workspace, cursor, upto).await
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(entries)) => Earlier {
                entries,
                upto,
                fault: None,
            },
            result => Earlier {
                fault: Some(result.map_or(GapReason::Expired, |result| result.err().unwrap_or(GapReason::Expired))),
                ..Earlier::default()
            },
        }
    }

    async fn read_events(&self, workspace: WorkspaceId, cursor: Cursor, upto: u64) -> Result<Vec<Entry>, GapReason> {
        let away = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "cannot read missed events back");
            GapReason::Expired
        };
        let stream = self.context.get_stream(STREAM).await.map_err(|error| away(&error))?;
        let info = stream.cached_info();
        if epoch_of(info) != Some(cursor.epoch) {
            return Err(GapReason::HistoryChanged);
        }
        if info.state.first_sequence > cursor.sequence + 1 {
            return Err(GapReason::Expired);
        }
        let consumer = stream
            .create_consumer(OrderedConfig {
                description: Some("Reads missed events back for one client".to_owned()),
                deliver_policy: DeliverPolicy::ByStartSequence {
                    start_sequence: cursor.sequence + 1,
                },
                filter_subject: format!("fechatter.{workspace}.>"),
                ..OrderedConfig::default()
            })
            .await
            .map_err(|error| away(&error))?;
        let pending = consumer.cached_info().num_pending;
        if pending > self.events_max {
            return Err(GapReason::TooMany);
        }
        let mut entries = Vec::new();
        if pending == 0 {
            return Ok(entries);
        }
        let mut seen = HashMap::new();
        let mut messages = consumer.messages().await.map_err(|error| away(&error))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| away(&error))?;
            let info = message.info().map_err(|error| away(&error))?;
            let (sequence, pending) = (info.stream_sequence, info.pending);
            if sequence > upto {
                break;
            }
            entries.extend(entry(&message, cursor.epoch, sequence, &mut seen));
            if pending == 0 {
                break;
            }
        }
        Ok(entries)
    }
}

/// The event of a message, unless it is a copy, of another history, or for nobody.
fn entry(message: &Message, epoch: Uuid, sequence: u64, seen: &mut HashMap<usize, i64>) -> Option<Entry> {
    let place = place_of(message.headers.as_ref()?)?;
    let highest = seen.entry(place.shard).or_insert(0);
    if place.epoch != epoch || place.position <= *highest {
        return None;
    }
    *highest = place.position;
    match interpret(&message.payload, Cursor { epoch, sequence }) {
        Ok(Meaning::Deliver { entry, .. }) => Some(entry),
        Ok(Meaning::Revoke { .. }) | Err(_) => None,
    }
}
