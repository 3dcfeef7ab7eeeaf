//! Meilisearch: one shared index, settings applied before the first document, ids as strings.
//!
//! A batch is at most one upsert task, one deletion task and behind them, since tasks run in the order they came, one
//! for the stream position; all are waited for and nothing else is in flight. Filters are made of numbers alone, so no
//! value of a request can become filter syntax. A small index beside it keeps whether the messages are complete, the
//! stream position, by which a restored snapshot is noticed, and how far a rebuild is. One process indexes at a time:
//! Meilisearch has no conditional writes.

mod documents;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fechatter_core::MessageId;
use fechatter_core::ids::MAX_SAFE_INTEGER;
use meilisearch_sdk::client::{Client, SwapIndexes};
use meilisearch_sdk::documents::{DocumentDeletionQuery, DocumentsQuery};
use meilisearch_sdk::errors::{Error, ErrorCode, ErrorType};
use meilisearch_sdk::indexes::Index;
use meilisearch_sdk::search::{MatchingStrategies, SearchQuery, Selectors};
use meilisearch_sdk::task_info::TaskInfo;
use meilisearch_sdk::tasks::Task;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::Date;
use time::macros::format_description;
use tokio::sync::{Mutex, OnceCell};

use self::documents::{
    Position, Rebuild, State, StoredContent, StoredId, StoredMessage, StoredState, StoredVersion, collapse, filter,
    query_text, quoted, settings,
};
use super::{
    Applied, Change, EngineError, EngineQuery, FACET_VALUES_MAX, Facets, Found, Hit, SearchEngine, Sort, Stored,
    StreamPosition, most_frequent,
};
use crate::query::TextClause;
use crate::text::{self, Purpose};

/// Changes whenever documents or settings do so that an index written before must be rebuilt.
const FORMAT: u32 = 2;
/// Documents read at once.
const PAGE: usize = 1_000;
/// Longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a task; a batch whose task takes longer is sent again, which changes nothing.
const TASK_TIMEOUT: Duration = Duration::from_mins(2);

/// How Meilisearch is reached.
#[derive(Debug, Clone)]
pub struct Options {
    pub url: String,
    /// A key with rights on documents, indexes, settings, tasks and search of our indexes.
    pub key: Option<SecretString>,
    /// Name of the index of messages; others begin with it.
    pub index: String,
}

/// The Meilisearch engine.
#[derive(Debug)]
pub struct MeilisearchEngine {
    client: Client,
    name: String,
    prepared: OnceCell<()>,
    /// Held while changes are applied or indexes change places; the position that was written last.
    changing: Mutex<Option<StreamPosition>>,
    rebuilding: AtomicBool,
}

fn engine_error(error: &Error) -> EngineError {
    match error {
        Error::Meilisearch(refused) if refused.error_code == ErrorCode::NoSpaceLeftOnDevice => {
            EngineError::Full(error.to_string())
        }
        Error::Meilisearch(refused) if refused.error_type == ErrorType::InvalidRequest => {
            EngineError::Rejected(error.to_string())
        }
        // These carry the address, which is not ours to show.
        Error::MeilisearchCommunication(failed) => EngineError::Unavailable(format!("HTTP {}", failed.status_code)),
        Error::HttpError(_) => EngineError::Unavailable("Meilisearch cannot be reached".to_owned()),
        _ => EngineError::Unavailable(error.to_string()),
    }
}

/// Waits for an answer within the bound.
async fn bounded<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, EngineError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(result) => result.map_err(|error| engine_error(&error)),
        Err(_) => Err(EngineError::Unavailable(
            "Meilisearch did not answer in time".to_owned(),
        )),
    }
}

impl MeilisearchEngine {
    /// A client of the server; nothing is asked of it yet.
    pub fn new(options: &Options) -> Result<Self, EngineError> {
        let key = options.key.as_ref().map(|key| key.expose_secret().to_owned());
        let client = Client::new(&options.url, key).map_err(|error| engine_error(&error))?;
        Ok(Self {
            client,
            name: options.index.clone(),
            prepared: OnceCell::new(),
            changing: Mutex::new(None),
            rebuilding: AtomicBool::new(false),
        })
    }

    fn messages(&self) -> Index {
        self.client.index(&self.name)
    }

    fn fresh_name(&self) -> String {
        format!("{}_rebuild", self.name)
    }

    fn fresh(&self) -> Index {
        self.client.index(self.fresh_name())
    }

    fn state(&self) -> Index {
        self.client.index(format!("{}_state", self.name))
    }

    /// Makes the index and applies its settings, once per process; takes up a rebuild that was interrupted, before the
    /// first change, which must not miss the fresh index.
    async fn prepare(&self) -> Result<(), EngineError> {
        self.prepared.get_or_try_init(|| self.prepare_once()).await.copied()
    }

    async fn prepare_once(&self) -> Result<(), EngineError> {
        self.prepare_index(&self.name).await?;
        let interrupted = self.kept::<Rebuild>(Rebuild::ID).await?;
        let resumable = match bounded(self.client.get_raw_index(self.fresh_name())).await {
            Ok(_) => interrupted.is_some_and(|rebuild| rebuild.format == FORMAT),
            Err(EngineError::Rejected(_)) => false,
            Err(error) => return Err(error),
        };
        self.rebuilding.store(resumable, Ordering::Release);
        Ok(())
    }

    /// Reads what is kept beside the messages.
    async fn kept<T: DeserializeOwned + Send + Sync + 'static>(&self, id: &str) -> Result<Option<T>, EngineError> {
        match bounded(self.state().get_document::<T>(id)).await {
            Ok(kept) => Ok(Some(kept)),
            Err(EngineError::Rejected(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn keep<T: Serialize + Send + Sync>(&self, kept: T) -> Result<TaskInfo, EngineError> {
        bounded(self.state().add_or_replace(&[kept], Some("id"))).await
    }

    async fn forget(&self, id: &str) -> Result<(), EngineError> {
        let task = bounded(self.state().delete_document(id)).await?;
        self.finish_tolerating(task, &[ErrorCode::IndexNotFound]).await
    }

    /// The position to write with the next batch. A server that has an older one than we wrote was restored from a
    /// snapshot: its index is marked incomplete before a newer position hides that.
    async fn next_position(
        &self,
        written: Option<StreamPosition>,
        next: Option<StreamPosition>,
    ) -> Result<Option<StreamPosition>, EngineError> {
        let kept = self.position().await?;
        if written.is_some() && StreamPosition::reached(kept, written) != kept {
            tracing::error!(
                ?written,
                ?kept,
                "Meilisearch has an older index than before; it will be rebuilt"
            );
            self.forget(State::ID).await?;
        }
        Ok(StreamPosition::reached(kept, next))
    }

    async fn prepare_index(&self, name: &str) -> Result<(), EngineError> {
        match bounded(self.client.get_raw_index(name)).await {
            Ok(_) => {}
            Err(EngineError::Rejected(_)) => {
                let task = bounded(self.client.create_index(name, Some("id"))).await?;
                self.finish_tolerating(task, &[ErrorCode::IndexAlreadyExists]).await?;
            }
            Err(error) => return Err(error),
        }
        let settings = settings();
        let task = bounded(self.client.index(name).set_settings(&settings)).await?;
        self.finish(task).await
    }

    async fn finish(&self, task: TaskInfo) -> Result<(), EngineError> {
        self.finish_tolerating(task, &[]).await
    }

    /// Waits until a task has succeeded, looking often at first.
    async fn finish_tolerating(&self, task: TaskInfo, tolerated: &[ErrorCode]) -> Result<(), EngineError> {
        let deadline = tokio::time::Instant::now() + TASK_TIMEOUT;
        let mut pause = Duration::from_millis(5);
        loop {
            match bounded(self.client.get_task(&task)).await? {
                Task::Succeeded { .. } => return Ok(()),
                Task::Failed { content } if tolerated.contains(&content.error.error_code) => return Ok(()),
                Task::Failed { content } => return Err(engine_error(&Error::Meilisearch(content.error))),
                Task::Enqueued { .. } | Task::Processing { .. } => {}
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(EngineError::Unavailable("a Meilisearch task takes too long".to_owned()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Applies changes to one index and, once they are queued, keeps `mark`.
    async fn apply_to<M: Serialize + Send + Sync>(
        &self,
        index: &Index,
        changes: &[Change],
        mark: Option<M>,
    ) -> Result<Applied, EngineError> {
        let (documents, chats) = collapse(changes);
        let versions = versions(index, documents.keys().copied()).await?;
        let mut applied = Applied {
            deleted: chats.len(),
            ..Applied::default()
        };
        let mut stored = Vec::with_capacity(documents.len());
        for (id, (version, message)) in &documents {
            if versions.get(id).is_some_and(|known| known >= version) {
                applied.stale += 1;
                continue;
            }
            match message {
                Some(_) => applied.written += 1,
                None => applied.deleted += 1,
            }
            stored.push(StoredMessage {
                id: id.to_string(),
                number: *id,
                version: *version,
                message: message.map(StoredContent::of),
            });
        }
        let mut tasks = Vec::with_capacity(3);
        if !stored.is_empty() {
            tasks.push(bounded(index.add_or_replace(&stored, Some("id"))).await?);
        }
        if !chats.is_empty() {
            let filter = format!("chat_id IN [{}]", quoted(chats.iter().map(|chat| chat.0)));
            let mut query = DocumentDeletionQuery::new(index);
            query.with_filter(&filter);
            tasks.push(bounded(index.delete_documents_with(&query)).await?);
        }
        if let Some(mark) = mark {
            tasks.push(self.keep(mark).await?);
        }
        for task in tasks {
            self.finish(task).await?;
        }
        Ok(applied)
    }

    async fn drop_fresh(&self) -> Result<(), EngineError> {
        let task = bounded(self.client.delete_index(self.fresh_name())).await?;
        self.finish_tolerating(task, &[ErrorCode::IndexNotFound]).await
    }
}

async fn versions(index: &Index, ids: impl Iterator<Item = i64>) -> Result<HashMap<i64, i64>, EngineError> {
    let ids: Vec<i64> = ids.collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let filter = format!("id IN [{}]", quoted(ids.iter().copied()));
    let mut query = DocumentsQuery::new(index);
    query
        .with_filter(&filter)
        .with_limit(ids.len())
        .with_fields(["id", "version"]);
    let known = bounded(index.get_documents_with::<StoredVersion>(&query)).await?;
    Ok(known
        .results
        .into_iter()
        .filter_map(|stored| Some((stored.id.parse().ok()?, stored.version)))
        .collect())
}

fn ids_of<K: From<i64> + Ord>(counts: Option<&HashMap<String, usize>>) -> BTreeMap<K, u64> {
    counts
        .into_iter()
        .flatten()
        .filter_map(|(id, count)| Some((id.parse::<i64>().ok()?.into(), *count as u64)))
        .collect()
}

#[async_trait]
impl SearchEngine for MeilisearchEngine {
    fn name(&self) -> &'static str {
        "meilisearch"
    }

    async fn apply(&self, changes: Vec<Change>, position: Option<StreamPosition>) -> Result<Applied, EngineError> {
        self.prepare().await?;
        let mut written = self.changing.lock().await;
        if self.rebuilding.load(Ordering::Acquire) {
            self.apply_to(&self.fresh(), &changes, None::<Position>).await?;
        }
        let position = self.next_position(*written, position).await?;
        let applied = self
            .apply_to(&self.messages(), &changes, position.map(Position::of))
            .await?;
        *written = position;
        Ok(applied)
    }

    async fn search(&self, query: EngineQuery) -> Result<Found, EngineError> {
        let wordless = |clause: &TextClause| text::tokens(clause.text(), Purpose::Query).is_empty();
        if query.chats.is_empty() || query.text.iter().any(wordless) {
            return Ok(Found::default());
        }
        self.prepare().await?;
        let index = self.messages();
        let (text, filter) = (query_text(&query.text), filter(&query));
        let mut search = SearchQuery::new(&index);
        search
            .with_query(&text)
            .with_filter(&filter)
            .with_offset(query.offset)
            .with_limit(query.limit)
            .with_attributes_to_retrieve(Selectors::Some(&["id"]))
            .with_facets(Selectors::Some(&["sender_id", "chat_id", "day"]))
            .with_matching_strategy(MatchingStrategies::ALL);
        if query.sort == Sort::Newest || query.text.is_empty() {
            search.with_sort(&["created_micros:desc"]);
        }
        let results = bounded(search.execute::<StoredId>()).await?;
        let facets = results.facet_distribution.unwrap_or_default();
        let day = |text: &str| Date::parse(text, format_description!("[year]-[month]-[day]")).ok();
        Ok(Found {
            hits: results
                .hits
                .iter()
                .filter_map(|hit| {
                    Some(Hit {
                        id: hit.result.id.parse().ok()?,
                    })
                })
                .collect(),
            facets: Facets {
                senders: most_frequent(ids_of(facets.get("sender_id")), FACET_VALUES_MAX),
                chats: ids_of(facets.get("chat_id")),
                days: most_frequent(
                    facets
                        .get("day")
                        .into_iter()
                        .flatten()
                        .filter_map(|(text, count)| Some((day(text)?, *count as u64))),
                    FACET_VALUES_MAX,
                ),
            },
            total: results.estimated_total_hits.unwrap_or_default() as u64,
        })
    }

    async fn check(&self) -> Result<String, EngineError> {
        let health = bounded(self.client.health()).await?;
        Ok(format!("meilisearch {}", health.status))
    }

    async fn documents(&self) -> Result<u64, EngineError> {
        self.prepare().await?;
        let index = self.messages();
        // Marks of deleted messages have no day, so they are in no facet and match no such filter.
        let mut search = SearchQuery::new(&index);
        search
            .with_filter("created_micros >= 0")
            .with_page(1)
            .with_hits_per_page(1);
        let results = bounded(search.execute::<StoredId>()).await?;
        Ok(results.total_hits.unwrap_or_default() as u64)
    }

    async fn stored(&self, after: MessageId, until: MessageId) -> Result<Vec<Stored>, EngineError> {
        self.prepare().await?;
        let index = self.messages();
        let filter = format!("number > {} AND number <= {}", after.0, until.0.min(MAX_SAFE_INTEGER));
        let mut stored = Vec::new();
        loop {
            let mut query = DocumentsQuery::new(&index);
            query
                .with_filter(&filter)
                .with_offset(stored.len())
                .with_limit(PAGE)
                .with_fields(["number", "version", "workspace_id"]);
            let page = bounded(index.get_documents_with::<StoredState>(&query)).await?.results;
            let is_last = page.len() < PAGE;
            stored.extend(page.into_iter().map(|document| Stored {
                id: document.number.into(),
                version: document.version,
                is_findable: document.workspace_id.is_some(),
            }));
            if is_last {
                break;
            }
        }
        stored.sort_unstable_by_key(|stored| stored.id);
        Ok(stored)
    }

    async fn position(&self) -> Result<Option<StreamPosition>, EngineError> {
        Ok(self.kept::<Position>(Position::ID).await?.map(|kept| kept.position))
    }

    async fn incomplete(&self) -> Result<Option<String>, EngineError> {
        self.prepare().await?;
        Ok(match self.kept::<State>(State::ID).await? {
            None => Some("the index is new, or was restored from a snapshot".to_owned()),
            Some(state) if state.format != FORMAT => {
                Some(format!("it has format {}, this build needs {FORMAT}", state.format))
            }
            Some(_) if self.rebuilding.load(Ordering::Acquire) => Some("a rebuild was interrupted".to_owned()),
            Some(_) => None,
        })
    }

    async fn rebuild_begin(&self) -> Result<i64, EngineError> {
        self.prepare().await?;
        let _changing = self.changing.lock().await;
        if self.rebuilding.load(Ordering::Acquire)
            && let Some(interrupted) = self.kept::<Rebuild>(Rebuild::ID).await?
        {
            return Ok(interrupted.cursor);
        }
        self.forget(Rebuild::ID).await?;
        self.drop_fresh().await?;
        self.prepare_index(&self.fresh_name()).await?;
        let task = self.keep(Rebuild::at(FORMAT, 0)).await?;
        self.finish(task).await?;
        self.rebuilding.store(true, Ordering::Release);
        Ok(0)
    }

    async fn rebuild_load(&self, changes: Vec<Change>, cursor: i64) -> Result<(), EngineError> {
        let _changing = self.changing.lock().await;
        let mark = Rebuild::at(FORMAT, cursor);
        self.apply_to(&self.fresh(), &changes, Some(mark)).await.map(drop)
    }

    async fn rebuild_finish(&self) -> Result<(), EngineError> {
        let _changing = self.changing.lock().await;
        // First of all: a rebuild that were taken up after the swap would bring the old index back.
        self.forget(Rebuild::ID).await?;
        let swap = SwapIndexes {
            indexes: (self.name.clone(), self.fresh_name()),
            rename: None,
        };
        let task = bounded(self.client.swap_indexes([&swap])).await?;
        self.finish(task).await?;
        self.rebuilding.store(false, Ordering::Release);
        let task = self.keep(State::complete(FORMAT)).await?;
        self.finish(task).await?;
        self.drop_fresh().await
    }

    async fn rebuild_abort(&self) -> Result<(), EngineError> {
        let _changing = self.changing.lock().await;
        self.rebuilding.store(false, Ordering::Release);
        self.forget(Rebuild::ID).await?;
        self.drop_fresh().await
    }
}
