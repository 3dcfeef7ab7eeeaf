//! One pass over the matches: the filters that posting lists do not answer, the facets, the total and the best hits.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use fechatter_core::ChatId;
use tantivy::collector::{Collector, SegmentCollector};
use tantivy::columnar::Column;
use tantivy::{DocId, Score, SegmentOrdinal, SegmentReader};
use time::{Date, OffsetDateTime};

use super::schema::{column, micros};
use crate::engine::{EngineQuery, FACET_VALUES_MAX, Facets, Found, Hit, Sort, most_frequent};

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// How much a message of this moment gains over an old one; less than the step between two tiers of matching.
const RECENCY_GAIN: f32 = 0.2;
/// Days after which half of that gain is gone.
const RECENCY_HALF_DAYS: f32 = 30.0;
/// How much a hit in a preferred chat gains.
const PREFERRED_GAIN: f32 = 0.05;

/// Hashes ids by one multiplication; they are ours, nobody can choose them to collide.
#[derive(Debug, Clone, Copy, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }

    fn write_i64(&mut self, id: i64) {
        self.write_u64(id.cast_unsigned());
    }
}

type IdMap<V> = HashMap<i64, V, BuildHasherDefault<IdHasher>>;
type IdSet = HashSet<i64, BuildHasherDefault<IdHasher>>;

/// Collects a query's matches.
#[derive(Debug)]
pub struct Matches {
    /// Allowed chats; the value says whether the chat is preferred.
    chats: Arc<IdMap<bool>>,
    senders: Option<Arc<IdSet>>,
    from: i64,
    until: i64,
    has_link: bool,
    by_relevance: bool,
    keep: usize,
    skip: usize,
    now: i64,
}

impl Matches {
    /// What this query wants of its matches.
    pub fn new(query: &EngineQuery) -> Self {
        let preferred = |chat: &ChatId| query.preferred_chats.binary_search(chat).is_ok();
        Self {
            chats: Arc::new(query.chats.iter().map(|chat| (chat.0, preferred(chat))).collect()),
            senders: query
                .senders
                .as_ref()
                .map(|senders| Arc::new(senders.iter().map(|sender| sender.0).collect())),
            from: query.created.from.map_or(i64::MIN, micros),
            until: query.created.until.map_or(i64::MAX, micros),
            has_link: query.has_link,
            // Without text every match is as good as another.
            by_relevance: query.sort == Sort::Relevance && !query.text.is_empty(),
            keep: query.offset.saturating_add(query.limit),
            skip: query.offset,
            now: micros(query.now),
        }
    }
}

/// A match in the order of hits: the greater, the earlier it is shown.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    score: f32,
    created: i64,
    id: i64,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score
            .total_cmp(&other.score)
            .then(self.created.cmp(&other.created))
            .then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

/// What one segment gives.
#[derive(Debug, Default)]
pub struct Collected {
    best: BinaryHeap<std::cmp::Reverse<Ranked>>,
    total: u64,
    senders: IdMap<u64>,
    chats: IdMap<u64>,
    days: IdMap<u64>,
}

impl Collected {
    fn offer(&mut self, ranked: Ranked, keep: usize) {
        if keep == 0 {
            return;
        }
        if self.best.len() < keep {
            self.best.push(std::cmp::Reverse(ranked));
        } else if let Some(mut worst) = self.best.peek_mut()
            && ranked > worst.0
        {
            worst.0 = ranked;
        }
    }
}

/// Collects the matches of one segment.
#[derive(Debug)]
pub struct SegmentMatches {
    id: Column<i64>,
    chat: Column<i64>,
    sender: Column<i64>,
    created: Column<i64>,
    link: Column<bool>,
    chats: Arc<IdMap<bool>>,
    senders: Option<Arc<IdSet>>,
    from: i64,
    until: i64,
    has_link: bool,
    by_relevance: bool,
    keep: usize,
    now: i64,
    collected: Collected,
}

impl SegmentMatches {
    #[expect(clippy::cast_precision_loss, reason = "an age in days needs no more")]
    fn score(&self, matched: Score, created: i64, preferred: bool) -> f32 {
        if !self.by_relevance {
            return 0.0;
        }
        let age_days = (self.now.saturating_sub(created).max(0) / 60_000_000) as f32 / 1_440.0;
        let recency = RECENCY_GAIN / (1.0 + age_days / RECENCY_HALF_DAYS);
        let preference = if preferred { PREFERRED_GAIN } else { 0.0 };
        matched * (1.0 + recency + preference)
    }
}

impl SegmentCollector for SegmentMatches {
    type Fruit = Collected;

    fn collect(&mut self, doc: DocId, score: Score) {
        let (Some(chat), Some(created)) = (self.chat.first(doc), self.created.first(doc)) else {
            return;
        };
        let Some(&preferred) = self.chats.get(&chat) else {
            return;
        };
        if created < self.from || created >= self.until {
            return;
        }
        let Some(sender) = self.sender.first(doc) else { return };
        if self.senders.as_ref().is_some_and(|senders| !senders.contains(&sender)) {
            return;
        }
        if self.has_link && self.link.first(doc) != Some(true) {
            return;
        }
        let Some(id) = self.id.first(doc) else { return };
        let score = self.score(score, created, preferred);
        self.collected.total += 1;
        *self.collected.senders.entry(sender).or_default() += 1;
        *self.collected.chats.entry(chat).or_default() += 1;
        *self
            .collected
            .days
            .entry(created.div_euclid(MICROS_PER_DAY))
            .or_default() += 1;
        self.collected.offer(Ranked { score, created, id }, self.keep);
    }

    fn harvest(self) -> Collected {
        self.collected
    }
}

impl Collector for Matches {
    type Fruit = Found;
    type Child = SegmentMatches;

    fn for_segment(&self, _segment: SegmentOrdinal, reader: &SegmentReader) -> tantivy::Result<SegmentMatches> {
        let columns = reader.fast_fields();
        Ok(SegmentMatches {
            id: columns.i64(column::ID)?,
            chat: columns.i64(column::CHAT)?,
            sender: columns.i64(column::SENDER)?,
            created: columns.i64(column::CREATED)?,
            link: columns.bool(column::HAS_LINK)?,
            chats: Arc::clone(&self.chats),
            senders: self.senders.clone(),
            from: self.from,
            until: self.until,
            has_link: self.has_link,
            by_relevance: self.by_relevance,
            keep: self.keep,
            now: self.now,
            collected: Collected::default(),
        })
    }

    fn requires_scoring(&self) -> bool {
        self.by_relevance
    }

    fn merge_fruits(&self, segments: Vec<Collected>) -> tantivy::Result<Found> {
        let mut all = Collected::default();
        for segment in segments {
            all.total += segment.total;
            for (into, from) in [
                (&mut all.senders, segment.senders),
                (&mut all.chats, segment.chats),
                (&mut all.days, segment.days),
            ] {
                for (value, count) in from {
                    *into.entry(value).or_default() += count;
                }
            }
            for std::cmp::Reverse(ranked) in segment.best {
                all.offer(ranked, self.keep);
            }
        }
        let hits = all
            .best
            .into_sorted_vec()
            .into_iter()
            .skip(self.skip)
            .map(|std::cmp::Reverse(ranked)| Hit { id: ranked.id.into() })
            .collect();
        Ok(Found {
            hits,
            facets: Facets {
                senders: most_frequent(all.senders.into_iter().map(|(id, n)| (id.into(), n)), FACET_VALUES_MAX),
                chats: all.chats.into_iter().map(|(id, n)| (id.into(), n)).collect(),
                days: most_frequent(
                    all.days.into_iter().filter_map(|(day, n)| Some((date(day)?, n))),
                    FACET_VALUES_MAX,
                ),
            },
            total: all.total,
        })
    }
}

fn date(days_since_epoch: i64) -> Option<Date> {
    OffsetDateTime::from_unix_timestamp(days_since_epoch.checked_mul(86_400)?)
        .ok()
        .map(OffsetDateTime::date)
}
