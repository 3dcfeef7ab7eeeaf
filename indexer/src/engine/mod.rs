//! The search engine behind one trait, with two real implementations that one contract suite drives.
//!
//! An engine stores what it needs to find messages and nothing that decides who may see them: which chats a searcher
//! may look into comes with every query, chat names and kinds are read from PostgreSQL.

pub mod embedded;
pub mod meilisearch;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use fechatter_core::{ChatId, MessageId, UserId, WorkspaceId};
use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use crate::query::{TextClause, TimeRange};

/// A message as an engine indexes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageDocument {
    pub id: MessageId,
    pub workspace_id: WorkspaceId,
    pub chat_id: ChatId,
    pub sender_id: UserId,
    pub content: String,
    pub created_at: OffsetDateTime,
    /// 1 at creation, one more at each edit and at deletion.
    pub version: i64,
}

/// One thing to do to the index. Of two changes to a message, the one with the larger version wins, whichever comes
/// first; a deletion leaves a mark so that a late older version does not bring the message back. A deleted chat leaves
/// one too: no message of it is ever taken again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Upsert(MessageDocument),
    Delete {
        id: MessageId,
        version: i64,
    },
    /// Forgets every message of a chat.
    DeleteChat(ChatId),
}

/// How far a consumer had come in the stream when a commit was made; kept with the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamPosition {
    /// The stream's history.
    pub epoch: Uuid,
    /// The largest stream sequence whose effect is in the index.
    pub sequence: u64,
}

impl StreamPosition {
    /// The later of two positions: never back within one history. Of two histories, `next` is the present one.
    #[must_use]
    pub const fn reached(known: Option<Self>, next: Option<Self>) -> Option<Self> {
        match (known, next) {
            (Some(known), Some(next)) => {
                let same = known.epoch.as_u128() == next.epoch.as_u128();
                Some(if same && known.sequence >= next.sequence {
                    known
                } else {
                    next
                })
            }
            (known, None) => known,
            (None, next) => next,
        }
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Documents written.
    pub written: usize,
    /// Messages removed; chats count once.
    pub deleted: usize,
    /// Changes that were not newer than what the index had.
    pub stale: usize,
}

/// The order of hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// Best match first; newer first among equals.
    #[default]
    Relevance,
    Newest,
}

/// A query as an engine understands it: text, filters that have been resolved to ids, paging.
#[derive(Debug, Clone)]
pub struct EngineQuery {
    pub workspace_id: WorkspaceId,
    /// All of these must be in the message; none matches every message.
    pub text: Vec<TextClause>,
    /// The chats to look into, sorted. The searcher is a member of each.
    pub chats: Arc<[ChatId]>,
    /// Those of them whose hits rank a little higher, sorted.
    pub preferred_chats: Arc<[ChatId]>,
    /// Only messages of these senders; `None` for anybody's.
    pub senders: Option<Vec<UserId>>,
    pub created: TimeRange,
    pub has_link: bool,
    pub sort: Sort,
    pub offset: usize,
    pub limit: usize,
    /// What recency is measured from.
    pub now: OffsetDateTime,
}

/// A found message, to be checked and read again in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    pub id: MessageId,
}

/// Counts of all matches, not only of the page, by value. Each map holds at most [`FACET_VALUES_MAX`] values, except
/// `chats`, which is complete so that kinds can be summed from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facets {
    pub senders: BTreeMap<UserId, u64>,
    pub chats: BTreeMap<ChatId, u64>,
    /// By calendar day in UTC.
    pub days: BTreeMap<Date, u64>,
}

/// Most values of one facet in an answer; those with the most matches stay.
pub const FACET_VALUES_MAX: usize = 100;

/// What an index has of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub id: MessageId,
    pub version: i64,
    /// `false` for the mark of a deleted message.
    pub is_findable: bool,
}

/// The matches of a query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub hits: Vec<Hit>,
    pub facets: Facets,
    /// How many messages match; an estimate.
    pub total: u64,
}

/// Why an engine could not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It is away, overloaded, or does not let us in: the same call succeeds later, whatever it is about.
    #[error("the search engine is not available: {0}")]
    Unavailable(String),
    /// It failed at this call, which may be its own trouble or that of what it was given.
    #[error("the search engine failed: {0}")]
    Failed(String),
    /// It has no room to write: nothing was changed, and the same call succeeds once a person has made room.
    #[error("the search index has no room: {0}")]
    Full(String),
    /// It refused this batch; the same batch will be refused again, a part of it may not be.
    #[error("the search engine refused the batch: {0}")]
    Rejected(String),
}

/// A search engine.
#[async_trait]
pub trait SearchEngine: Send + Sync + std::fmt::Debug {
    /// Name for logs, metrics and `/health`.
    fn name(&self) -> &'static str;

    /// Whether several processes may write to it, which then have to take turns.
    fn is_shared(&self) -> bool;

    /// Applies changes in order, all or none, and returns once they are durable and findable.
    async fn apply(&self, changes: Vec<Change>, position: Option<StreamPosition>) -> Result<Applied, EngineError>;

    /// Finds messages.
    async fn search(&self, query: EngineQuery) -> Result<Found, EngineError>;

    /// Whether it can be searched now; the text is a note for `/health`.
    async fn check(&self) -> Result<String, EngineError>;

    /// Whether it would take a batch now, as far as can be told without one; the error says why not.
    async fn writable(&self) -> Result<(), EngineError>;

    /// Number of findable messages.
    async fn documents(&self) -> Result<u64, EngineError>;

    /// What it has of the messages after `after` up to `until`, by id, marks of deleted messages included.
    async fn stored(&self, after: MessageId, until: MessageId) -> Result<Vec<Stored>, EngineError>;

    /// The stream position of the last commit; none before the first event.
    async fn position(&self) -> Result<Option<StreamPosition>, EngineError>;

    /// Why the index cannot be trusted to be complete, if so: it is new, was found damaged, or a rebuild was interrupted.
    async fn incomplete(&self) -> Result<Option<String>, EngineError>;

    /// Begins or resumes building a fresh index beside the serving one. From now on [`apply`](Self::apply) goes to
    /// both. Returns the id of the last message loaded by an interrupted build, or 0.
    async fn rebuild_begin(&self) -> Result<i64, EngineError>;

    /// Adds documents read from PostgreSQL to the fresh index; `cursor` is the id of the last one.
    async fn rebuild_load(&self, changes: Vec<Change>, cursor: i64) -> Result<(), EngineError>;

    /// Lets the fresh index serve and drops the old one.
    async fn rebuild_finish(&self) -> Result<(), EngineError>;

    /// Drops the fresh index; the old one serves on.
    async fn rebuild_abort(&self) -> Result<(), EngineError>;
}

/// Keeps the values with the most matches.
pub(crate) fn most_frequent<K: Ord + Copy>(
    counts: impl IntoIterator<Item = (K, u64)>,
    most: usize,
) -> BTreeMap<K, u64> {
    let mut counts: Vec<(K, u64)> = counts.into_iter().collect();
    if counts.len() > most {
        counts.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        counts.truncate(most);
    }
    counts.into_iter().collect()
}
