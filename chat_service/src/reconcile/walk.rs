//! Reading the whole stream, headers alone, and holding each event against the outbox.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self, stream::Stream};
use fechatter_core::events::{HEADER_EPOCH, HEADER_MESSAGE_ID, HEADER_POSITION, HEADER_SHARD, METADATA_EPOCH, STREAM};
use futures::StreamExt;
use sqlx::PgPool;
use uuid::Uuid;

use super::{Difference, repositories};
use crate::repositories::outbox_progress::Progress;

/// Events that are held against the outbox at once.
const CHUNK: usize = 1_000;
/// Longest wait for the next event.
const PATIENCE: Duration = Duration::from_secs(30);

/// Positions of a shard that were found, as ranges without holes: first → last, and where the last is in the stream.
type Ranges = BTreeMap<i64, (i64, u64)>;

/// What the stream holds.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) epoch: Uuid,
    pub(super) events: u64,
    pub(super) copies: u64,
    pub(super) latecomers: u64,
    pub(super) foreign: Difference,
    found: HashMap<i16, Ranges>,
}

/// Positions that were not found: after one, up to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) after: i64,
    pub(super) until: i64,
    /// Nothing of the shard was found before it.
    pub(super) is_first: bool,
}

/// An event's place and id by its headers.
#[derive(Debug, Clone, Copy)]
struct Place {
    epoch: Uuid,
    shard: i16,
    position: i64,
    id: Uuid,
}

impl Place {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let header = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
        Some(Self {
            epoch: header(HEADER_EPOCH)?.parse().ok()?,
            shard: header(HEADER_SHARD)?.parse().ok()?,
            position: header(HEADER_POSITION)?.parse().ok()?,
            // `{event id}.{epoch}`
            id: header(HEADER_MESSAGE_ID)?.split('.').next()?.parse().ok()?,
        })
    }
}

/// Reads the stream from its first to its present last event.
pub(super) async fn read(
    pool: &PgPool,
    context: &jetstream::Context,
    stream: &Stream,
    progress: impl Fn(u64, u64),
) -> anyhow::Result<Walked> {
    let info = stream.get_info().await.context("cannot look at the stream")?;
    let epoch_of = |info: &jetstream::stream::Info| info.config.metadata.get(METADATA_EPOCH)?.parse::<Uuid>().ok();
    let mut walked = Walked {
        epoch: epoch_of(&info).context("the stream has no epoch: it was not made by chat_service")?,
        events: 0,
        copies: 0,
        latecomers: 0,
        foreign: Difference::default(),
        found: HashMap::new(),
    };
    let last = info.state.last_sequence;
    if info.state.messages == 0 {
        return Ok(walked);
    }
    // Of a shard that the outbox holds nothing of any more, everything that was ever given has left it by age.
    let given = repositories::last_positions(pool).await?;
    let mut oldest: HashMap<i16, i64> = given.into_iter().map(|(shard, last)| (shard, last + 1)).collect();
    oldest.extend(repositories::oldest_positions(pool).await?);
    let consumer = stream
        .create_consumer(pull::OrderedConfig {
            description: Some("chat_service reconcile".to_owned()),
            headers_only: true,
            ..pull::OrderedConfig::default()
        })
        .await
        .context("cannot make a consumer")?;
    let mut messages = consumer.messages().await.context("cannot read the stream")?;
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        let message = match tokio::time::timeout(PATIENCE, messages.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return Err(error).context("reading the stream failed"),
            Ok(None) => bail!("reading the stream ended early"),
            Err(_) => bail!("the stream said nothing for {} s", PATIENCE.as_secs()),
        };
        let Ok(place) = message.info() else {
            bail!("not a JetStream message")
        };
        let (sequence, pending) = (place.stream_sequence, place.pending);
        chunk.push((sequence, message.headers.as_ref().and_then(Place::of)));
        // The end may have been deleted since: nothing pending is the end as well.
        let is_last = sequence >= last || pending == 0;
        if chunk.len() == CHUNK || is_last {
            walked.hold_against_outbox(pool, &chunk, &oldest).await?;
            chunk.clear();
            progress(walked.events, info.state.messages);
        }
        if is_last {
            break;
        }
    }
    let now = context.get_stream(STREAM).await.context("the stream is gone")?;
    if epoch_of(now.cached_info()) != Some(walked.epoch) {
        bail!("a new history of the stream began meanwhile; run it again");
    }
    Ok(walked)
}

impl Walked {
    async fn hold_against_outbox(
        &mut self,
        pool: &PgPool,
        chunk: &[(u64, Option<Place>)],
        oldest: &HashMap<i16, i64>,
    ) -> Result<(), sqlx::Error> {
        let current = self.epoch;
        let places = chunk
            .iter()
            .filter_map(|(_, place)| *place)
            .filter(|place| place.epoch == current);
        let (shards, positions): (Vec<i16>, Vec<i64>) = places.map(|place| (place.shard, place.position)).unzip();
        let ids = repositories::event_ids(pool, &shards, &positions).await?;
        for &(sequence, place) in chunk {
            self.events += 1;
            let Some(place) = place else {
                self.foreign.add(1, [format!("#{sequence}")]);
                continue;
            };
            if place.epoch != current {
                self.latecomers += 1;
                continue;
            }
            match ids.get(&(place.shard, place.position)) {
                Some(id) if *id == place.id => {}
                // Older than the outbox: its partition was dropped.
                None if oldest.get(&place.shard).is_some_and(|oldest| place.position < *oldest) => {}
                _ => {
                    self.foreign.add(1, [format!("#{sequence}")]);
                    continue;
                }
            }
            if !insert(self.found.entry(place.shard).or_default(), place.position, sequence) {
                self.copies += 1;
            }
        }
        Ok(())
    }

    /// What was not found of a shard after `after` up to `until`.
    pub(super) fn holes(&self, shard: i16, after: i64, until: i64) -> Vec<Hole> {
        let mut holes = Vec::new();
        let mut reached = after;
        let mut is_first = true;
        for (&first, &(last, _)) in self.found.get(&shard).into_iter().flatten() {
            if first > until {
                break;
            }
            if first > reached + 1 {
                holes.push(Hole {
                    after: reached,
                    until: first - 1,
                    is_first,
                });
            }
            is_first = false;
            reached = reached.max(last);
        }
        if reached < until {
            holes.push(Hole {
                after: reached,
                until,
                is_first,
            });
        }
        holes
    }

    /// How far each shard is in the stream without a hole behind what is marked, and where its last event is.
    pub(super) fn reached(&self, marked: &[Progress]) -> BTreeMap<i16, (i64, u64)> {
        let of = |shard: &Progress| {
            let ranges = self.found.get(&shard.shard)?;
            let (_, &(last, sequence)) = ranges.range(..=shard.published_position + 1).next_back()?;
            Some((shard.shard, (last, sequence)))
        };
        marked.iter().filter_map(of).collect()
    }
}

/// Adds a position; `false` when it was there.
fn insert(ranges: &mut Ranges, position: i64, sequence: u64) -> bool {
    let before = ranges
        .range(..=position)
        .next_back()
        .map(|(&first, &(last, _))| (first, last));
    if before.is_some_and(|(_, last)| position <= last) {
        return false;
    }
    let behind = ranges.remove(&(position + 1));
    let first = before
        .filter(|(_, last)| last + 1 == position)
        .map_or(position, |(first, _)| first);
    ranges.insert(first, behind.unwrap_or((position, sequence)));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walked(positions: &[i64]) -> Walked {
        let mut ranges = Ranges::new();
        for (sequence, &position) in (1..).zip(positions) {
            insert(&mut ranges, position, sequence);
        }
        Walked {
            epoch: Uuid::nil(),
            events: 0,
            copies: 0,
            latecomers: 0,
            foreign: Difference::default(),
            found: HashMap::from([(3, ranges)]),
        }
    }

    #[test]
    fn holes_are_found_wherever_they_are() {
        let hole = |after, until, is_first| Hole { after, until, is_first };
        assert_eq!(walked(&[1, 2, 3]).holes(3, 0, 3), []);
        assert_eq!(walked(&[3, 1, 2]).holes(3, 0, 3), []);
        assert_eq!(
            walked(&[2, 4, 7, 5]).holes(3, 0, 9),
            [
                hole(0, 1, true),
                hole(2, 3, false),
                hole(5, 6, false),
                hole(7, 9, false)
            ]
        );
        // Before the beginning of the history and behind what is marked nothing is missing.
        assert_eq!(walked(&[5, 6, 9]).holes(3, 4, 6), []);
        assert_eq!(walked(&[]).holes(3, 0, 2), [hole(0, 2, true)]);
        assert_eq!(walked(&[]).holes(3, 0, 0), []);
    }

    #[test]
    fn the_end_without_a_hole_is_where_marks_may_go() {
        let marked = |published_position| Progress {
            shard: 3,
            published_position,
            stream_epoch: Some(Uuid::nil()),
            stream_sequence: 0,
        };
        let walked = walked(&[1, 2, 3, 5, 6]);
        assert_eq!(walked.reached(&[marked(0)])[&3], (3, 3));
        assert_eq!(walked.reached(&[marked(4)])[&3], (6, 5));
        assert_eq!(walked.reached(&[marked(6)])[&3], (6, 5));
    }

    #[test]
    fn a_copy_is_no_second_event() {
        let mut ranges = Ranges::new();
        assert!(insert(&mut ranges, 1, 1) && insert(&mut ranges, 2, 2));
        assert!(!insert(&mut ranges, 1, 3));
        assert_eq!(ranges, Ranges::from([(1, (2, 2))]));
    }
}
