//! Reads back what the ring no longer holds, from the stream by sequence. What was read is kept for a while and shared:
//! many clients return after the same interruption.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::DirectGetErrorKind;
use fechatter_core::events::STREAM;
use futures::{StreamExt, TryStreamExt, stream};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::config::ReplayConfig;
use crate::cursor::Cursor;
use crate::event::{Entry, Headers, decode};
use crate::hub::Fetched;

/// Events read and kept together.
const BLOCK: u64 = 256;
/// Events asked for at the same time.
const IN_FLIGHT: usize = 64;
/// Longest time for one client's backlog.
const PATIENCE: Duration = Duration::from_secs(15);

/// One sequence of the stream.
#[derive(Debug, Clone)]
struct Stored {
    sequence: u64,
    headers: Headers,
    /// None for an event that cannot be read.
    entry: Option<Arc<Entry>>,
}

type Block = Arc<[Stored]>;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<(Uuid, u64), Block> for ByBytes {
    fn weight(&self, _: &(Uuid, u64), block: &Block) -> u64 {
        let bytes: usize = block
            .iter()
            .map(|stored| size_of::<Stored>() + stored.entry.as_ref().map_or(0, |entry| entry.weight()))
            .sum();
        bytes.max(1) as u64
    }
}

/// Why the backlog is not to be had; the label is what the client's `gap` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayFault {
    /// The stream no longer holds it, or it is further back than we look.
    Expired,
    /// Too many read at once, or NATS is away.
    Unavailable,
    /// What is there has holes, or events that cannot be read.
    Lost,
}

impl ReplayFault {
    /// A bounded label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Unavailable => "replay_unavailable",
            Self::Lost => "events_lost",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Replay {
    context: jetstream::Context,
    blocks: Cache<(Uuid, u64), Block, ByBytes>,
    readers: Semaphore,
    max_scanned: u64,
}

impl Replay {
    /// A reader of the stream behind `context`.
    pub fn new(context: jetstream::Context, config: &ReplayConfig) -> Self {
        Self {
            context,
            blocks: Cache::with_weighter(1_024, config.cache_bytes, ByBytes),
            readers: Semaphore::new(config.concurrent),
            max_scanned: config.max_scanned,
        }
    }

    /// The stream's last sequence, if its history is `epoch`.
    pub async fn last_sequence(&self, epoch: Uuid) -> Option<u64> {
        let stream = self.context.get_stream(STREAM).await.ok()?;
        let info = stream.cached_info();
        (crate::consumer::epoch_of(info) == Some(epoch)).then_some(info.state.last_sequence)
    }

    /// Adds the events after `after` (or after what `fetched` has) up to `upto`.
    pub async fn fetch(
        &self,
        epoch: Uuid,
        after: u64,
        upto: u64,
        fetched: Option<Fetched>,
    ) -> Result<Fetched, ReplayFault> {
        let read = async {
            let _permit = self.readers.acquire().await.map_err(|_| ReplayFault::Unavailable)?;
            self.read(epoch, after, upto, fetched.unwrap_or_default()).await
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .unwrap_or(Err(ReplayFault::Unavailable))
    }

    async fn read(&self, epoch: Uuid, after: u64, upto: u64, mut fetched: Fetched) -> Result<Fetched, ReplayFault> {
        if upto.saturating_sub(after) > self.max_scanned {
            return Err(ReplayFault::Expired);
        }
        let stream = self
            .context
            .get_stream(STREAM)
            .await
            .map_err(|_| ReplayFault::Unavailable)?;
        let info = stream.cached_info();
        if crate::consumer::epoch_of(info) != Some(epoch) {
            return Err(ReplayFault::Lost);
        }
        if after + 1 < info.state.first_sequence {
            return Err(ReplayFault::Expired);
        }
        let mut all = Vec::new();
        for number in (after + 1) / BLOCK..=upto / BLOCK {
            let (first, last) = (number * BLOCK, number * BLOCK + BLOCK - 1);
            let block = if first >= info.state.first_sequence.max(1) && last <= upto {
                let read = self.read_range(&stream, epoch, first, last);
                self.blocks.get_or_insert_async(&(epoch, number), read).await?
            } else {
                // Not whole: part of it has left, or is still to come.
                self.read_range(&stream, epoch, first.max(after + 1), last.min(upto))
                    .await?
            };
            all.extend(
                block
                    .iter()
                    .filter(|stored| stored.sequence > after && stored.sequence <= upto)
                    .cloned(),
            );
        }
        let firsts = first_copies(&all, epoch).ok_or(ReplayFault::Lost)?;
        for (stored, _) in all.into_iter().zip(firsts).filter(|(_, is_first)| *is_first) {
            // Nobody knows whom an event that cannot be read concerned.
            fetched.entries.push(stored.entry.ok_or(ReplayFault::Lost)?);
        }
        fetched.upto = upto;
        Ok(fetched)
    }

    async fn read_range(
        &self,
        stream: &jetstream::stream::Stream,
        epoch: Uuid,
        first: u64,
        last: u64,
    ) -> Result<Block, ReplayFault> {
        let stored: Vec<Option<Stored>> = stream::iter(first..=last)
            .map(|sequence| read_one(stream, epoch, sequence))
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(stored.into_iter().flatten().collect())
    }
}

/// Reads one sequence; `None` for one that holds no event of ours.
async fn read_one(
    stream: &jetstream::stream::Stream,
    epoch: Uuid,
    sequence: u64,
) -> Result<Option<Stored>, ReplayFault> {
    let message = match stream.direct_get(sequence).await {
        Ok(message) => message,
        // Deleted one by one by an operator; what leaves by age or size leaves from the front.
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
        Err(error) => {
            tracing::debug!(%error, sequence, "cannot read the stream");
            return Err(ReplayFault::Unavailable);
        }
    };
    let Ok(headers) = Headers::of(&message.headers) else {
        return Ok(None);
    };
    let at = Cursor { epoch, sequence };
    let entry = decode(at, &message.headers, &message.payload).ok().map(Arc::new);
    Ok(Some(Stored {
        sequence,
        headers,
        entry,
    }))
}

/// Which of the events are first copies of this history: in each shard those whose positions lead without a gap up to
/// the highest. A copy stands behind later ones, so it is not where it would have to be. `None` when what does not fit
/// may be more than copies.
fn first_copies(all: &[Stored], epoch: Uuid) -> Option<Vec<bool>> {
    let mut highest: HashMap<i16, i64> = HashMap::new();
    let ours = |stored: &Stored| stored.headers.epoch == epoch;
    for stored in all.iter().filter(|stored| ours(stored)) {
        let highest = highest.entry(stored.headers.shard).or_insert(stored.headers.position);
        *highest = (*highest).max(stored.headers.position);
    }
    let mut next = highest;
    let mut firsts: Vec<bool> = all
        .iter()
        .rev()
        .map(|stored| {
            let Headers { shard, position, .. } = stored.headers;
            match next.get_mut(&shard) {
                Some(expected) if ours(stored) && *expected == position => {
                    *expected -= 1;
                    true
                }
                _ => false,
            }
        })
        .collect();
    firsts.reverse();
    let is_whole = all
        .iter()
        .zip(&firsts)
        .filter(|(stored, _)| ours(stored))
        .all(|(stored, is_first)| {
            // Whatever was passed over must have its first copy among those taken.
            *is_first
                || next
                    .get(&stored.headers.shard)
                    .is_some_and(|below| stored.headers.position > *below)
        });
    is_whole.then_some(firsts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(events: &[(Uuid, i16, i64)]) -> Vec<Stored> {
        events
            .iter()
            .zip(1..)
            .map(|(&(epoch, shard, position), sequence)| Stored {
                sequence,
                headers: Headers { epoch, shard, position },
                entry: None,
            })
            .collect()
    }

    #[test]
    fn copies_and_other_histories_are_passed_over() {
        let (now, before) = (Uuid::now_v7(), Uuid::nil());
        let all = stored(&[
            (now, 1, 5),
            (now, 2, 1),
            (before, 1, 6),
            (now, 1, 6),
            (now, 1, 5),
            (now, 1, 7),
            (now, 1, 6),
            (now, 2, 2),
        ]);
        let expected = vec![true, true, false, true, false, true, false, true];
        assert_eq!(first_copies(&all, now), Some(expected));
    }

    #[test]
    fn a_hole_is_no_copy() {
        let now = Uuid::now_v7();
        assert_eq!(first_copies(&stored(&[(now, 1, 5), (now, 1, 7)]), now), None);
        assert_eq!(first_copies(&[], now), Some(vec![]));
    }
}
