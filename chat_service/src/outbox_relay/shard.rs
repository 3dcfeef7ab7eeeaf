//! One shard's loop: read what is pending, publish it in order, record how far it got.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Shared;
use super::backoff::{Backoff, Outage};
use super::history::{Doubt, History};
use super::publisher::{BATCH_BYTES, Fault, Outgoing, publish_batch, publish_one};
use super::status::{Part, is_connected};
use crate::repositories::outbox_progress::{OutboxProgress, PendingRow, Progress};

/// How long what was published may be unrecorded. A relay that dies leaves so much to be published again, which the stream
/// recognises; each record spared is a statement for nearly every event while few come at a time.
const RECORD_AFTER: Duration = Duration::from_millis(250);

/// Publishes the shard until `stop`; a batch in flight is finished.
pub(super) async fn run(relay: Arc<Shared>, shard: i16, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
    let mut outage = Outage::new("publishing events of a shard");
    let mut publisher = ShardPublisher {
        shared: &relay,
        shard,
        progress: None,
        recorded: None,
        unrecorded_since: None,
        connects: 0,
        has_backlog: false,
    };
    let mut doubt = Doubt::default();
    while let Some(history) = stop.run_until_cancelled(relay.history.valid_since(doubt)).await {
        let outcome = match publisher.publish_next(history).await {
            Ok(may_have_more) => publisher.record_in_time().await.map(|()| may_have_more),
            fault => fault,
        };
        match outcome {
            Ok(may_have_more) => {
                backoff.reset();
                outage.worked();
                relay.status.worked(Part::Shard(shard));
                // A commit after the look has left its signal.
                if !may_have_more {
                    let wake = relay.wake.wait(shard);
                    let due = publisher.until_due();
                    let next = async {
                        match due {
                            Some(due) => tokio::time::timeout(due, wake).await.unwrap_or_default(),
                            None => wake.await,
                        }
                    };
                    stop.run_until_cancelled(next).await;
                }
                if stop.is_cancelled() {
                    if let Err(fault) = publisher.record().await {
                        relay.history.doubt();
                        tracing::debug!(shard, %fault, "published events stay unrecorded; they will be published again");
                    }
                    return;
                }
            }
            Err(fault) => {
                publisher.forget();
                if !matches!(fault, Fault::Superseded) {
                    relay.status.failed(Part::Shard(shard), fault.kind(), &fault);
                    if !is_told_by_others(&fault) {
                        outage.failed(&format_args!("shard {shard}: {fault}"));
                    }
                }
                doubt = relay.history.doubt();
                // Without a connection there is no history to wait for; with one the server asks for patience.
                let wait = if is_connected(&relay.client) && !matches!(fault, Fault::Disconnected | Fault::Superseded) {
                    backoff.delay()
                } else {
                    Duration::ZERO
                };
                if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Servers that are away are logged once for the whole process, not by each shard.
fn is_told_by_others(fault: &Fault) -> bool {
    matches!(fault, Fault::Disconnected | Fault::NoStream | Fault::Database(_))
}

struct ShardPublisher<'a> {
    shared: &'a Shared,
    shard: i16,
    /// How far this task has published, while nothing happened that casts doubt on it.
    progress: Option<Progress>,
    /// How much of it the database knows.
    recorded: Option<Progress>,
    /// Since when it knows less.
    unrecorded_since: Option<Instant>,
    /// The connection that what is unrecorded was acknowledged on.
    connects: u64,
    /// Whether the last read left something behind.
    has_backlog: bool,
}

impl ShardPublisher<'_> {
    /// Publishes the next rows; `false` when that was all there were.
    async fn publish_next(&mut self, history: History) -> Result<bool, Fault> {
        if !is_connected(&self.shared.client) || self.shared.connects() != history.connects {
            return Err(Fault::Disconnected);
        }
        // As it was left here: should another process have moved it, recording the next progress tells.
        let kept = self
            .progress
            .filter(|progress| progress.stream_epoch == Some(history.epoch));
        let progress = if let Some(progress) = kept {
            progress
        } else {
            let mut connection = self.shared.pool.acquire().await?;
            OutboxProgress::new(&mut connection).of(self.shard).await?
        };
        if progress.stream_epoch != Some(history.epoch) {
            return Err(Fault::Superseded);
        }
        let (rows, is_full) = self.read(progress.published_position).await?;
        if kept.is_none() {
            self.recorded = Some(progress);
            self.unrecorded_since = None;
        }
        self.progress = Some(progress);
        let mut events = Vec::with_capacity(rows.len());
        for (row, expected) in rows.iter().zip(progress.published_position + 1..) {
            if row.position != expected {
                // What comes before the hole is in order; the hole itself stops the shard until somebody looks.
                if events.is_empty() {
                    return Err(Fault::Hole {
                        expected,
                        found: row.position,
                    });
                }
                break;
            }
            match Outgoing::encode(row, self.shard, history.epoch) {
                Ok(event) => events.push(event),
                Err(fault) if events.is_empty() => return Err(fault),
                Err(_) => break,
            }
        }
        // A read that was not full saw all there was: the next event comes with a signal.
        self.has_backlog = is_full;
        let may_have_more = is_full || events.len() < rows.len();
        drop(rows);
        for unit in units(&events) {
            self.publish_unit(history, unit).await?;
        }
        Ok(may_have_more)
    }

    /// The next rows after `position`, and whether there may be more: together with other shards, or by itself while there is a backlog.
    async fn read(&self, position: i64) -> Result<(Vec<PendingRow>, bool), Fault> {
        let is_full = |rows: &[PendingRow], limit: i64| i64::try_from(rows.len()).is_ok_and(|count| count >= limit);
        if !self.has_backlog
            && let Some(rows) = self.shared.reader.pending(self.shard, position).await
        {
            let is_full = is_full(&rows, self.shared.reader.limit);
            return Ok((rows, is_full));
        }
        let limit = self.shared.config.batch.into();
        let mut connection = self.shared.pool.acquire().await?;
        let rows = OutboxProgress::new(&mut connection)
            .pending(self.shard, position, limit)
            .await?;
        let is_full = is_full(&rows, limit);
        Ok((rows, is_full))
    }

    async fn publish_unit(&mut self, history: History, unit: &[Outgoing]) -> Result<(), Fault> {
        if unit.len() < self.shared.batch_min {
            return self.publish_one_by_one(history, unit).await;
        }
        match publish_batch(self.shared, history, unit).await {
            Ok(sequence) => self.advance(history, unit, sequence),
            // An earlier attempt, or another process, stored some of them: find out which, one by one.
            Err(Fault::Duplicates) => self.publish_one_by_one(history, unit).await,
            Err(fault) => Err(fault),
        }
    }

    async fn publish_one_by_one(&mut self, history: History, unit: &[Outgoing]) -> Result<(), Fault> {
        let mut stored = 0;
        let mut sequence = 0;
        let mut result = Ok(());
        for event in unit {
            match publish_one(self.shared, history, event).await {
                Ok(ack) => {
                    stored += 1;
                    sequence = ack.sequence;
                }
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        if stored > 0 {
            self.advance(history, &unit[..stored], sequence)?;
        }
        result
    }

    /// Notes that the stream holds `stored`, the last of them at `sequence`.
    fn advance(&mut self, history: History, stored: &[Outgoing], sequence: i64) -> Result<(), Fault> {
        let (Some(progress), Some(last)) = (self.progress, stored.last()) else {
            return Err(Fault::Superseded);
        };
        if sequence <= progress.stream_sequence {
            return Err(Fault::Acknowledgement(format!(
                "sequence {sequence} after {}: the stream went back",
                progress.stream_sequence
            )));
        }
        self.progress = Some(Progress {
            published_position: last.position,
            stream_sequence: sequence,
            ..progress
        });
        self.unrecorded_since.get_or_insert_with(Instant::now);
        self.connects = history.connects;
        if self.shared.connects() != history.connects {
            return Err(Fault::Disconnected);
        }
        Ok(())
    }

    /// Until when what was published should be recorded; none when it is.
    fn until_due(&self) -> Option<Duration> {
        self.unrecorded_since
            .map(|since| RECORD_AFTER.saturating_sub(since.elapsed()))
    }

    async fn record_in_time(&mut self) -> Result<(), Fault> {
        match self.until_due() {
            Some(Duration::ZERO) => self.record().await,
            _ => Ok(()),
        }
    }

    /// Records how far this task has published.
    async fn record(&mut self) -> Result<(), Fault> {
        let (Some(progress), Some(recorded), Some(_)) = (self.progress, self.recorded, self.unrecorded_since) else {
            return Ok(());
        };
        self.still_connected()?;
        let mut connection = self.shared.pool.acquire().await?;
        let is_ours = OutboxProgress::new(&mut connection)
            .advance(&recorded, progress.published_position, progress.stream_sequence)
            .await?;
        if !is_ours {
            return Err(Fault::Superseded);
        }
        self.recorded = Some(progress);
        self.unrecorded_since = None;
        // Else the server may have crashed since its acknowledgement and been examined without this record.
        self.still_connected()
    }

    fn still_connected(&self) -> Result<(), Fault> {
        if self.shared.connects() == self.connects {
            Ok(())
        } else {
            Err(Fault::Disconnected)
        }
    }

    /// Believes nothing any more; what is unrecorded will be published again.
    fn forget(&mut self) {
        self.progress = None;
        self.recorded = None;
        self.unrecorded_since = None;
    }
}

/// Splits events into batches that are not too large.
fn units(events: &[Outgoing]) -> impl Iterator<Item = &[Outgoing]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|event| {
            bytes += event.body.len();
            bytes <= BATCH_BYTES
        });
        let length = fitting.count().max(1).min(rest.len());
        let (unit, remaining) = rest.split_at(length);
        rest = remaining;
        (!unit.is_empty()).then_some(unit)
    })
}
