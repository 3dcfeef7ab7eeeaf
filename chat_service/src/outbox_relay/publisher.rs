//! Publishes one unit: a single event, or several of one shard as an atomic batch of JetStream (ADR-50).
//!
//! Order rests on one rule: an event is sent only after the one before it in its shard is known to be stored, or in the
//! same batch, which the server stores whole and in order or not at all.

use std::time::{Duration, Instant, SystemTime};

use async_nats::HeaderMap;
use async_nats::client::{Request, RequestError, RequestErrorKind};
use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use bytes::Bytes;
use fechatter_core::WorkspaceId;
use fechatter_core::events::{
    Event, EventType, HEADER_EPOCH, HEADER_MESSAGE_ID, HEADER_POSITION, HEADER_SHARD, STREAM, UnreadableEvent,
};
use observability::messaging::{self, Operation};
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Shared;
use super::history::History;
use super::status::is_connected;
use crate::repositories::outbox_progress::PendingRow;

/// How long an acknowledgement may take.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the wait for an acknowledgement looks whether the connection was lost.
const LOOK: Duration = Duration::from_millis(25);
/// Most bytes of bodies in one batch: the server holds a batch until its end.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// From how many events on a batch pays, for a stream with so many replicas.
///
/// A server that holds the stream alone makes a store of files for each batch, which costs it milliseconds, as much as dozens of single
/// events and their acknowledgements. One of several keeps the batch in memory, and each acknowledgement is a round trip among them.
pub(super) const fn batch_min(stream_replicas: usize) -> usize {
    if stream_replicas <= 1 { 32 } else { 2 }
}

/// Why a unit, or a shard, did not get on. All are tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the connection to NATS was lost")]
    Disconnected,
    #[error("no acknowledgement from JetStream within {} s", ACK_TIMEOUT.as_secs())]
    Timeout,
    #[error("the stream {STREAM} does not exist or JetStream is not available")]
    NoStream,
    #[error("the batch holds events that the stream has already")]
    Duplicates,
    #[error("JetStream refused: {0}")]
    Refused(jetstream::Error),
    #[error("NATS client: {0}")]
    Client(String),
    #[error("the acknowledgement makes no sense: {0}")]
    Acknowledgement(String),
    #[error("the event at position {position} cannot be published: {why}")]
    Event { position: i64, why: String },
    #[error("the outbox has a hole: position {expected} is missing before {found}")]
    Hole { expected: i64, found: i64 },
    #[error("the stream's history was begun anew, or another process publishes this shard")]
    Superseded,
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}

impl Fault {
    /// A bounded name for metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Timeout => "timeout",
            Self::NoStream => "no_stream",
            Self::Duplicates => "duplicates",
            Self::Refused(_) => "refused",
            Self::Client(_) => "client",
            Self::Acknowledgement(_) => "acknowledgement",
            Self::Event { .. } => "event",
            Self::Hole { .. } => "hole",
            Self::Superseded => "superseded",
            Self::Database(_) => "database",
        }
    }
}

/// What the server answers to a stored message or batch.
#[derive(Debug, Deserialize)]
pub(super) struct Ack {
    stream: String,
    /// Of the last message of the unit.
    #[serde(rename = "seq")]
    pub(super) sequence: i64,
    #[serde(default)]
    count: Option<usize>,
}

/// An event as it goes to NATS.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) position: i64,
    subject: String,
    headers: HeaderMap,
    pub(super) body: Bytes,
    context: Option<SpanContext>,
}

impl Outgoing {
    pub(super) fn encode(row: &PendingRow, shard: i16, epoch: Uuid) -> Result<Self, Fault> {
        let unusable = |why: String| Fault::Event {
            position: row.position,
            why,
        };
        let event_type: EventType = row
            .event_type
            .parse()
            .map_err(|error: UnreadableEvent| unusable(error.to_string()))?;
        let workspace = WorkspaceId(row.workspace_id);
        let mut event: Event<&RawValue> = Event::new(event_type, workspace, row.scope_id, row.created_at, &row.data.0);
        event.id = row.event_id;
        let body = serde_json::to_vec(&event).map_err(|error| unusable(error.to_string()))?;
        let mut headers = HeaderMap::new();
        // With the epoch: what an earlier history remembers must not swallow the event in this one.
        headers.insert(
            HEADER_MESSAGE_ID,
            format!("{}.{}", row.event_id.simple(), epoch.simple()),
        );
        headers.insert(async_nats::header::NATS_EXPECTED_STREAM, STREAM);
        headers.insert(HEADER_EPOCH, epoch.to_string());
        headers.insert(HEADER_SHARD, shard.to_string());
        headers.insert(HEADER_POSITION, row.position.to_string());
        if let Some(traceparent) = &row.traceparent {
            headers.insert("traceparent", traceparent.as_str());
        }
        Ok(Self {
            position: row.position,
            subject: event_type.subject(workspace, row.scope_id),
            headers,
            body: body.into(),
            context: row.traceparent.as_deref().and_then(span_context),
        })
    }
}

/// Publishes several events as one atomic batch and returns the sequence of the last.
pub(super) async fn publish_batch(shared: &Shared, history: History, events: &[Outgoing]) -> Result<i64, Fault> {
    let Some((last, rest)) = events.split_last() else {
        return Err(Fault::Acknowledgement("an empty batch".to_owned()));
    };
    let id = Uuid::new_v4().simple().to_string();
    let batch_headers = |event: &Outgoing, index: usize| {
        let mut headers = event.headers.clone();
        headers.insert(async_nats::header::NATS_BATCH_ID, id.as_str());
        headers.insert(async_nats::header::NATS_BATCH_SEQUENCE, (index + 1).to_string());
        headers
    };
    observed(shared, events, "batch", async {
        // A message that gets lost makes the server refuse the batch at its end; so does one that it refuses, and for
        // want of a reply subject only the end hears of it.
        let sent = async {
            for (index, event) in rest.iter().enumerate() {
                shared
                    .client
                    .publish_with_headers(event.subject.clone(), batch_headers(event, index), event.body.clone())
                    .await
                    .map_err(|error| Fault::Client(error.to_string()))?;
            }
            Ok::<(), Fault>(())
        };
        tokio::time::timeout(ACK_TIMEOUT, sent)
            .await
            .map_err(|_| Fault::Timeout)??;
        let mut headers = batch_headers(last, rest.len());
        headers.insert(
            async_nats::header::NATS_BATCH_COMMIT,
            async_nats::header::NATS_BATCH_COMMIT_FINAL,
        );
        let ack = acknowledged(shared, history, last, headers).await?;
        if ack.count != Some(events.len()) {
            return Err(Fault::Acknowledgement(format!(
                "{:?} of {} events stored; NATS 2.12.1 or newer is needed",
                ack.count,
                events.len()
            )));
        }
        Ok(ack.sequence)
    })
    .await
}

/// Publishes one event.
pub(super) async fn publish_one(shared: &Shared, history: History, event: &Outgoing) -> Result<Ack, Fault> {
    observed(
        shared,
        std::slice::from_ref(event),
        "single",
        acknowledged(shared, history, event, event.headers.clone()),
    )
    .await
}

/// Sends a message and waits for the stream's answer, on one and the same connection.
async fn acknowledged(shared: &Shared, history: History, event: &Outgoing, headers: HeaderMap) -> Result<Ack, Fault> {
    let request = Request::new()
        .headers(headers)
        .payload(event.body.clone())
        .timeout(Some(ACK_TIMEOUT));
    // An answer that was lost with the connection need not be waited for.
    let lost = async {
        while is_connected(&shared.client) && shared.connects() == history.connects {
            tokio::time::sleep(LOOK).await;
        }
    };
    let reply = tokio::select! {
        biased;
        reply = shared.client.send_request(event.subject.clone(), request) => reply.map_err(|error| request_fault(&error))?,
        () = lost => return Err(Fault::Disconnected),
    };
    if shared.connects() != history.connects {
        // The server may have come back without what it acknowledged before; the keeper looks first.
        return Err(Fault::Disconnected);
    }
    match serde_json::from_slice(&reply.payload) {
        Ok(Response::Ok(Ack { stream, .. })) if stream != STREAM => {
            Err(Fault::Acknowledgement(format!("from the stream {stream:?}")))
        }
        Ok(Response::Ok(ack)) => Ok(ack),
        Ok(Response::Err { error }) if error.error_code() == ErrorCode::ATOMIC_PUBLISH_CONTAINS_DUPLICATE_MESSAGE => {
            Err(Fault::Duplicates)
        }
        Ok(Response::Err { error }) => Err(Fault::Refused(error)),
        Err(error) => Err(Fault::Acknowledgement(error.to_string())),
    }
}

fn request_fault(error: &RequestError) -> Fault {
    match error.kind() {
        RequestErrorKind::TimedOut => Fault::Timeout,
        RequestErrorKind::NoResponders => Fault::NoStream,
        _ => Fault::Client(error.to_string()),
    }
}

/// Measures a unit, and traces each of its events whose cause is traced.
async fn observed<T>(
    shared: &Shared,
    events: &[Outgoing],
    mode: &'static str,
    publish: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let (started, began) = (Instant::now(), SystemTime::now());
    let result = publish.await;
    if result.is_ok() {
        shared.status.published(events.len(), mode, started.elapsed());
    }
    for context in events.iter().filter_map(|event| event.context.as_ref()) {
        let attributes = [KeyValue::new(
            "messaging.batch.message_count",
            i64::try_from(events.len()).unwrap_or(i64::MAX),
        )];
        let error = result.as_ref().err().map(|fault| (fault.kind(), fault.to_string()));
        messaging::record("chat_service", Operation::Publish, context, began, attributes, error);
    }
    result
}

fn span_context(traceparent: &str) -> Option<SpanContext> {
    let context = observability::propagation::context_from_traceparent(traceparent)?;
    Some(context.span().span_context().clone())
}
