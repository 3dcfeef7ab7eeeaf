//! One pass over the matches: the filters that posting lists do not answer, the facets, the total and the best hits.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use tantivy::collector::{Collector, SegmentCollector};
use tantivy::{DocId, Score, SegmentOrdinal, SegmentReader, TantivyError};
use time::{Date, OffsetDateTime};

use super::columns::Columns;
use super::counts::{Allowed, Chats, Counts, IdHasher, IdMap};
use super::schema::micros;
use crate::engine::{EngineQuery, FACET_VALUES_MAX, Facets, Found, Hit, Sort, most_frequent};

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// How much a message of this moment gains over an old one; less than the step between two tiers of matching.
const RECENCY_GAIN: f32 = 0.2;
/// Days after which half of that gain is gone.
const RECENCY_HALF_DAYS: f32 = 30.0;
/// How much a hit in a preferred chat gains.
const PREFERRED_GAIN: f32 = 0.05;

type IdSet = HashSet<i64, BuildHasherDefault<IdHasher>>;

/// What a query wants of its matches.
#[derive(Debug)]
struct Wanted {
    workspace: i64,
    senders: Option<IdSet>,
    from: i64,
    until: i64,
    has_link: bool,
    by_relevance: bool,
    keep: usize,
    now: i64,
}

/// Collects a query's matches.
#[derive(Debug)]
pub struct Matches {
    columns: Arc<[Arc<Columns>]>,
    chats: Arc<Chats>,
    wanted: Arc<Wanted>,
    skip: usize,
}

impl Matches {
    /// What this query wants of its matches in segments with these columns.
    pub fn new(query: &EngineQuery, columns: Arc<[Arc<Columns>]>) -> Self {
        let wanted = Wanted {
            workspace: query.workspace_id.0,
            senders: query
                .senders
                .as_ref()
                .map(|senders| senders.iter().map(|sender| sender.0).collect()),
            from: query.created.from.map_or(i64::MIN, micros),
            until: query.created.until.map_or(i64::MAX, micros),
            has_link: query.has_link,
            // Without text every match is as good as another.
            by_relevance: query.sort == Sort::Relevance && !query.text.is_empty(),
            keep: query.offset.saturating_add(query.limit),
            now: micros(query.now),
        };
        Self {
            columns,
            chats: Arc::new(Chats::new(Arc::clone(&query.chats), Arc::clone(&query.preferred_chats))),
            wanted: Arc::new(wanted),
            skip: query.offset,
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
    best: BinaryHeap<Reverse<Ranked>>,
    total: u64,
    senders: Counts,
    chats: Counts,
    days: Counts,
}

/// Keeps the best `keep`; asks for the id only of what may be among them.
fn offer(best: &mut BinaryHeap<Reverse<Ranked>>, keep: usize, score: f32, created: i64, id: impl FnOnce() -> i64) {
    if best.len() < keep {
        best.push(Reverse(Ranked {
            score,
            created,
            id: id(),
        }));
        return;
    }
    let Some(worst) = best.peek() else { return };
    if score
        .total_cmp(&worst.0.score)
        .then(created.cmp(&worst.0.created))
        .is_lt()
    {
        return;
    }
    let ranked = Ranked {
        score,
        created,
        id: id(),
    };
    if let Some(mut worst) = best.peek_mut()
        && ranked > worst.0
    {
        worst.0 = ranked;
    }
}

/// Matches that are looked at together: a column is asked once for all of them, not for each.
const BLOCK: usize = 64;

/// Matches that wait to be looked at.
#[derive(Debug)]
struct Block {
    docs: [DocId; BLOCK],
    scores: [Score; BLOCK],
    len: usize,
}

/// What a column says of each document of a block.
type Values<T> = [Option<T>; BLOCK];

/// Collects the matches of one segment.
#[derive(Debug)]
pub struct SegmentMatches {
    columns: Arc<Columns>,
    allowed: Allowed,
    wanted: Arc<Wanted>,
    block: Block,
    collected: Collected,
}

impl SegmentMatches {
    #[expect(clippy::cast_precision_loss, reason = "an age in days needs no more")]
    fn score(&self, matched: Score, created: i64, preferred: bool) -> f32 {
        if !self.wanted.by_relevance {
            return 0.0;
        }
        let age_days = (self.wanted.now.saturating_sub(created).max(0) / 60_000_000) as f32 / 1_440.0;
        let recency = RECENCY_GAIN / (1.0 + age_days / RECENCY_HALF_DAYS);
        let preference = if preferred { PREFERRED_GAIN } else { 0.0 };
        matched * (1.0 + recency + preference)
    }
}

impl SegmentMatches {
    /// Looks at the matches that wait.
    fn look(&mut self) {
        let (columns, len) = (Arc::clone(&self.columns), std::mem::take(&mut self.block.len));
        let mut chats: Values<i64> = [None; BLOCK];
        columns.chat.first_vals(&self.block.docs[..len], &mut chats[..len]);
        // Who searches may see few of them; nothing else is asked of the others.
        let mut preferred = [false; BLOCK];
        let mut seen = 0;
        for at in 0..len {
            if let Some(chat) = chats[at]
                && let Some(is_preferred) = self.allowed.get(chat)
            {
                (chats[seen], preferred[seen]) = (Some(chat), is_preferred);
                (self.block.docs[seen], self.block.scores[seen]) = (self.block.docs[at], self.block.scores[at]);
                seen += 1;
            }
        }
        let docs = &self.block.docs[..seen];
        let mut workspaces: Values<i64> = [None; BLOCK];
        let mut created: Values<i64> = [None; BLOCK];
        let mut senders: Values<i64> = [None; BLOCK];
        columns.workspace.first_vals(docs, &mut workspaces[..seen]);
        columns.created.first_vals(docs, &mut created[..seen]);
        columns.sender.first_vals(docs, &mut senders[..seen]);
        for at in 0..seen {
            // A chat belongs to one workspace; should an id ever say otherwise, it opens nothing.
            if workspaces[at] == Some(self.wanted.workspace)
                && let (Some(chat), Some(created), Some(sender)) = (chats[at], created[at], senders[at])
            {
                let score = self.score(self.block.scores[at], created, preferred[at]);
                self.take(self.block.docs[at], score, chat, created, sender);
            }
        }
    }

    /// Counts and ranks a match of a chat that may be seen, if nothing else excludes it.
    fn take(&mut self, doc: DocId, score: f32, chat: i64, created: i64, sender: i64) {
        let (columns, wanted) = (&self.columns, &self.wanted);
        if created < wanted.from
            || created >= wanted.until
            || wanted
                .senders
                .as_ref()
                .is_some_and(|senders| !senders.contains(&sender))
            || (wanted.has_link && columns.link.first(doc) != Some(true))
        {
            return;
        }
        let collected = &mut self.collected;
        collected.total += 1;
        collected.senders.add(sender);
        collected.chats.add(chat);
        collected.days.add(created.div_euclid(MICROS_PER_DAY));
        let id = || columns.id.first(doc).unwrap_or_default();
        offer(&mut collected.best, wanted.keep, score, created, id);
    }
}

impl SegmentCollector for SegmentMatches {
    type Fruit = Collected;

    fn collect(&mut self, doc: DocId, score: Score) {
        let block = &mut self.block;
        (block.docs[block.len], block.scores[block.len]) = (doc, score);
        block.len += 1;
        if block.len == BLOCK {
            self.look();
        }
    }

    fn harvest(mut self) -> Collected {
        self.look();
        self.collected
    }
}

impl Collector for Matches {
    type Fruit = Found;
    type Child = SegmentMatches;

    fn for_segment(&self, segment: SegmentOrdinal, reader: &SegmentReader) -> tantivy::Result<SegmentMatches> {
        let columns = self.columns.get(segment as usize).ok_or_else(|| {
            TantivyError::InternalError("the columns are those of another state of the index".to_owned())
        })?;
        let documents = reader.max_doc();
        let day = |created: i64| created.div_euclid(MICROS_PER_DAY);
        let (first, last) = (columns.created.min_value(), columns.created.max_value());
        let (low, high) = (columns.chat.min_value(), columns.chat.max_value());
        Ok(SegmentMatches {
            allowed: Allowed::between(&self.chats, low, high, documents),
            wanted: Arc::clone(&self.wanted),
            block: Block {
                docs: [0; BLOCK],
                scores: [0.0; BLOCK],
                len: 0,
            },
            collected: Collected {
                senders: Counts::of(&columns.sender, documents),
                chats: Counts::of(&columns.chat, documents),
                days: Counts::between(day(first), day(last), documents),
                ..Collected::default()
            },
            columns: Arc::clone(columns),
        })
    }

    fn requires_scoring(&self) -> bool {
        self.wanted.by_relevance
    }

    fn merge_fruits(&self, segments: Vec<Collected>) -> tantivy::Result<Found> {
        let (mut best, mut total) = (BinaryHeap::new(), 0);
        let (mut senders, mut chats, mut days) = (IdMap::default(), IdMap::default(), IdMap::default());
        for segment in segments {
            total += segment.total;
            segment.senders.add_to(&mut senders);
            segment.chats.add_to(&mut chats);
            segment.days.add_to(&mut days);
            for Reverse(Ranked { score, created, id }) in segment.best {
                offer(&mut best, self.wanted.keep, score, created, || id);
            }
        }
        let hits = best
            .into_sorted_vec()
            .into_iter()
            .skip(self.skip)
            .map(|Reverse(ranked)| Hit { id: ranked.id.into() })
            .collect();
        Ok(Found {
            hits,
            facets: Facets {
                senders: most_frequent(senders.into_iter().map(|(id, n)| (id.into(), n)), FACET_VALUES_MAX),
                chats: chats.into_iter().map(|(id, n)| (id.into(), n)).collect(),
                days: most_frequent(
                    days.into_iter().filter_map(|(day, n)| Some((date(day)?, n))),
                    FACET_VALUES_MAX,
                ),
            },
            total,
        })
    }
}

fn date(days_since_epoch: i64) -> Option<Date> {
    OffsetDateTime::from_unix_timestamp(days_since_epoch.checked_mul(86_400)?)
        .ok()
        .map(OffsetDateTime::date)
}
