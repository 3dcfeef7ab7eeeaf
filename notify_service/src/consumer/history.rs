//! Which history of the stream is in hand, and where in it to begin.

use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::stream::{Info, Stream};
use fechatter_core::events::SESSION_SUBJECTS;
use futures::StreamExt;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Consumer, Ended, Progress, fault};
use crate::cursor::Cursor;
use crate::event::{Entry, Route, decode};
use crate::hub::REVOKED_FOR;
use crate::positions::Positions;

/// An ordered consumer, not begun to be read.
pub(super) async fn ordered(
    owner: &Consumer,
    stream: &Stream,
    subjects: &str,
    deliver_policy: DeliverPolicy,
) -> Result<jetstream::consumer::Consumer<push::OrderedConfig>, Ended> {
    stream
        .create_consumer(push::OrderedConfig {
            deliver_subject: owner.client.new_inbox(),
            description: Some("notify_service".to_owned()),
            filter_subject: subjects.to_owned(),
            deliver_policy,
            ..push::OrderedConfig::default()
        })
        .await
        .map_err(|error| fault("make the consumer")(&error))
}

/// Goes on in the history in hand, or begins another.
pub(super) async fn settle_history(
    owner: &mut Consumer,
    stream: &Stream,
    info: &Info,
    epoch: Uuid,
) -> Result<(), Ended> {
    let state = &info.state;
    if let Some(progress) = &owner.progress
        && progress.epoch == epoch
    {
        if state.last_sequence < progress.sequence {
            // Restored from an older disk; the relay will begin another history.
            return Err(Ended::Fault(
                "the stream went back; waiting for its new history".to_owned(),
            ));
        }
        return Ok(());
    }
    remember_revoked(owner, stream).await?;
    let oldest = state.first_sequence.max(1);
    let (start, before) = match owner.progress.take() {
        // At first only the newest events matter.
        None => (
            (state.last_sequence + 1).saturating_sub(owner.warm).max(oldest) - 1,
            Positions::default(),
        ),
        // Of a new history everything: it may hold what the one before had not told yet.
        Some(progress) => (oldest - 1, progress.positions.merged(&progress.before)),
    };
    tracing::info!(%epoch, start, "a history of events begins");
    owner.hub.begin_history(epoch, start, before.newest());
    owner.progress = Some(Progress {
        epoch,
        sequence: start,
        positions: Positions::default(),
        before,
    });
    Ok(())
}

/// Reads which sessions were revoked lately: their tokens may still be presented.
async fn remember_revoked(owner: &Consumer, stream: &Stream) -> Result<(), Ended> {
    let since = OffsetDateTime::now_utc() - REVOKED_FOR;
    let consumer = ordered(
        owner,
        stream,
        SESSION_SUBJECTS,
        DeliverPolicy::ByStartTime { start_time: since },
    )
    .await?;
    let mut pending = consumer.cached_info().num_pending;
    let mut messages = consumer
        .messages()
        .await
        .map_err(|error| fault("read revoked sessions")(&error))?;
    while pending > 0 {
        let message = match messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(fault("read revoked sessions")(&error)),
            None => return Err(Ended::Fault("reading revoked sessions ended early".to_owned())),
        };
        pending = message.info().map_or(0, |info| info.pending);
        let at = Cursor {
            epoch: Uuid::nil(),
            sequence: 0,
        };
        let headers = message.headers.clone().unwrap_or_default();
        if let Ok(Entry {
            route: Route::SessionRevoked { session, .. },
            ..
        }) = decode(at, &headers, &message.payload)
        {
            owner.hub.remember_revoked(session);
        }
    }
    Ok(())
}
