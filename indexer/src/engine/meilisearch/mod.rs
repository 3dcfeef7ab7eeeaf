//! Meilisearch: one shared index, settings applied before the first document, ids as strings.
//!
//! A batch is at most one upsert task, one deletion task and behind them, since tasks run in the order they came, one
//! for the stream position; all are waited for and nothing else is in flight. Filters are made of numbers alone, so no
//! value of a request can become filter syntax. A document among the messages says that they are complete; a small
//! index beside them keeps the stream position, by which a restored snapshot is noticed, and how far a rebuild is. One
//! process writes at a time (`services::turn`): Meilisearch has no conditional writes.

mod documents;
mod errors;
mod http;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fechatter_core::MessageId;
use fechatter_core::ids::MAX_SAFE_INTEGER;
use meilisearch_sdk::client::SwapIndexes;
use meilisearch_sdk::documents::{DocumentDeletionQuery, DocumentsQuery};
use meilisearch_sdk::errors::{Error, ErrorCode};
use meilisearch_sdk::request::{HttpClient, Method};
use meilisearch_sdk::search::{MatchingStrategies, SearchQuery, SearchResults, Selectors};
use meilisearch_sdk::task_info::TaskInfo;
use meilisearch_sdk::tasks::Task;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::Date;
use time::macros::format_description;
use tokio::sync::Mutex;
use uuid::Uuid;

use self::documents::{
    Complete, Filter, Filtered, Kept, LOCALES, NEWEST_FIRST, POSITION, Rebuild, StoredId, StoredMessage, StoredState,
    StoredVersion, chat_mark, collapse, query_text, quoted, settings,
};
use self::errors::{bounded, engine_error, if_there};
use self::http::Http;
use super::{
    Applied, Change, EngineError, EngineQuery, FACET_VALUES_MAX, Facets, Found, Hit, SearchEngine, Sort, Stored,
    StreamPosition, most_frequent,
};
use crate::query::TextClause;
use crate::text::{self, Purpose};

/// Changes whenever documents or settings do so that an index written before must be rebuilt.
const FORMAT: u32 = 4;
/// Documents read at once.
const PAGE: usize = 1_000;
/// Longest wait for a task; a batch whose task takes longer is sent again, which changes nothing.
const TASK_TIMEOUT: Duration = Duration::from_mins(2);

type Client = meilisearch_sdk::client::Client<Http>;
type Index = meilisearch_sdk::indexes::Index<Http>;

/// How Meilisearch is reached.
#[derive(Debug, Clone)]
pub struct Options {
    pub url: String,
    /// A key with rights on documents, indexes, settings, tasks and search of our indexes; an empty one is none.
    pub key: Option<SecretString>,
    /// Name of the index of messages; others begin with it.
    pub index: String,
}

/// The Meilisearch engine.
#[derive(Debug)]
pub struct MeilisearchEngine {
    client: Client,
    http: Http,
    url: String,
    name: String,
    /// Whether the index and its settings are known to be there.
    prepared: Mutex<bool>,
    /// Held while changes are applied or indexes change places; the position that was written last.
    changing: Mutex<Option<StreamPosition>>,
    rebuilding: AtomicBool,
}

impl MeilisearchEngine {
    /// A client of the server; nothing is asked of it yet.
    pub fn new(options: &Options) -> Result<Self, EngineError> {
        let key = options.key.as_ref().filter(|key| !key.expose_secret().is_empty());
        let http = Http::new(key).map_err(|error| engine_error(&error))?;
        let url = options.url.trim_end_matches('/').to_owned();
        Ok(Self {
            client: Client::new_with_client(&url, None::<String>, http.clone()),
            http,
            url,
            name: options.index.clone(),
            prepared: Mutex::new(false),
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

    /// Makes the index and applies its settings, at the beginning and after each failure; takes up a rebuild that was
    /// interrupted, before the first change, which must not miss the fresh index.
    async fn prepare(&self) -> Result<(), EngineError> {
        let mut prepared = self.prepared.lock().await;
        if !*prepared {
            self.prepare_index(&self.name).await?;
            self.take_up().await?;
            *prepared = true;
        }
        Ok(())
    }

    /// After a failure nothing is taken for granted: somebody may have removed an index.
    async fn or_prepare_again<T>(&self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if result.is_err() {
            *self.prepared.lock().await = false;
        }
        result
    }

    async fn take_up(&self) -> Result<(), EngineError> {
        let resumable = match self.kept::<Rebuild>(Rebuild::ID).await? {
            // It ended between the change of places and the word of it.
            Some(rebuild) if self.serves(&rebuild).await? => {
                self.forget(&self.state(), Rebuild::ID).await?;
                self.drop_fresh().await?;
                false
            }
            Some(rebuild) if rebuild.format == FORMAT => {
                bounded(async { if_there(self.client.get_raw_index(self.fresh_name()).await) })
                    .await?
                    .is_some()
            }
            _ => false,
        };
        self.rebuilding.store(resumable, Ordering::Release);
        Ok(())
    }

    /// Reads what is kept beside the messages.
    async fn kept<T: DeserializeOwned + Send + Sync + 'static>(&self, id: &str) -> Result<Option<T>, EngineError> {
        bounded(async { if_there(self.state().get_document::<T>(id).await) }).await
    }

    async fn keep<T: Serialize + Send + Sync>(
        &self,
        index: &Index,
        id: &'static str,
        what: T,
    ) -> Result<TaskInfo, EngineError> {
        bounded(index.add_or_replace(&[Kept { id, what }], Some("id"))).await
    }

    async fn forget(&self, index: &Index, id: &str) -> Result<(), EngineError> {
        let task = bounded(index.delete_document(id)).await?;
        self.finish_tolerating(task, &[ErrorCode::IndexNotFound]).await
    }

    /// What says that the messages are complete.
    async fn complete(&self) -> Result<Option<Complete>, EngineError> {
        let index = self.messages();
        bounded(async { if_there(index.get_document::<Complete>(Complete::ID).await) }).await
    }

    /// Whether the index that this rebuild made serves already.
    async fn serves(&self, rebuild: &Rebuild) -> Result<bool, EngineError> {
        Ok(self
            .complete()
            .await?
            .is_some_and(|complete| complete.build == rebuild.build))
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
            self.forget(&self.messages(), Complete::ID).await?;
        }
        Ok(StreamPosition::reached(kept, next))
    }

    async fn prepare_index(&self, name: &str) -> Result<(), EngineError> {
        let there = bounded(async { if_there(self.client.get_raw_index(name).await) }).await?;
        if there.is_none() {
            let task = bounded(self.client.create_index(name, Some("id"))).await?;
            self.finish_tolerating(task, &[ErrorCode::IndexAlreadyExists]).await?;
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
        mark: Option<(&'static str, M)>,
    ) -> Result<Applied, EngineError> {
        let (documents, chats) = collapse(changes);
        let marks: HashSet<String> = documents
            .values()
            .filter_map(|(_, message)| Some(chat_mark(message.as_ref()?.chat_id)))
            .collect();
        let ids = documents.keys().map(ToString::to_string).chain(marks).collect();
        let versions = versions(index, ids).await?;
        let mut applied = Applied {
            deleted: chats.len(),
            ..Applied::default()
        };
        let mut stored: Vec<StoredMessage> = chats.iter().map(|chat| StoredMessage::of_deleted_chat(*chat)).collect();
        for (id, (version, message)) in &documents {
            let is_known = versions.get(&id.to_string()).is_some_and(|known| known >= version);
            let is_forgotten = message.is_some_and(|message| versions.contains_key(&chat_mark(message.chat_id)));
            if is_known || is_forgotten {
                applied.stale += 1;
                continue;
            }
            match message {
                Some(_) => applied.written += 1,
                None => applied.deleted += 1,
            }
            stored.push(StoredMessage::of(*id, *version, *message));
        }
        let mut tasks = Vec::with_capacity(3);
        if !stored.is_empty() {
            tasks.push(bounded(index.add_or_replace(&stored, Some("id"))).await?);
        }
        if !chats.is_empty() {
            let filter = format!("chat_id IN [{}]", quoted(chats.iter()));
            let mut query = DocumentDeletionQuery::new(index);
            query.with_filter(&filter);
            tasks.push(bounded(index.delete_documents_with(&query)).await?);
        }
        if let Some((id, mark)) = mark {
            tasks.push(self.keep(&self.state(), id, mark).await?);
        }
        for task in tasks {
            self.finish(task).await?;
        }
        Ok(applied)
    }

    /// Searches; the SDK's queries know no list of alternatives as a filter.
    async fn find(
        &self,
        query: &SearchQuery<'_, Http>,
        filter: Filter,
    ) -> Result<Option<SearchResults<StoredId>>, EngineError> {
        let method = Method::Post {
            query: (),
            body: Filtered { query, filter },
        };
        let url = format!("{}/indexes/{}/search", self.url, self.name);
        bounded(async { if_there(self.http.request(&url, method, 200).await) }).await
    }

    async fn rebuild_under_way(&self) -> Result<Rebuild, EngineError> {
        let rebuild = self.kept(Rebuild::ID).await?;
        rebuild.ok_or_else(|| EngineError::Rejected("no rebuild is under way".to_owned()))
    }

    async fn drop_fresh(&self) -> Result<(), EngineError> {
        let task = bounded(self.client.delete_index(self.fresh_name())).await?;
        self.finish_tolerating(task, &[ErrorCode::IndexNotFound]).await
    }

    /// Lets the fresh index change places with the serving one, unless it has done so already.
    ///
    /// The task that swaps cannot be looked at with a key that is limited to some indexes: Meilisearch shows such a key
    /// only tasks of one index. What is queued behind it can, and tasks run in the order they came.
    async fn change_places(&self, rebuild: Rebuild) -> Result<(), EngineError> {
        let passed = async || {
            let task = self.keep(&self.state(), Rebuild::ID, rebuild).await?;
            self.finish(task).await
        };
        // A swap that was asked for before and not heard of is over now.
        passed().await?;
        if self.serves(&rebuild).await? {
            return Ok(());
        }
        let complete = Complete {
            format: FORMAT,
            build: rebuild.build,
        };
        let task = self.keep(&self.fresh(), Complete::ID, complete).await?;
        self.finish(task).await?;
        let swap = SwapIndexes {
            indexes: (self.name.clone(), self.fresh_name()),
            rename: None,
        };
        bounded(self.client.swap_indexes([&swap])).await?;
        passed().await?;
        if self.serves(&rebuild).await? {
            Ok(())
        } else {
            Err(EngineError::Rejected("the indexes did not change places".to_owned()))
        }
    }
}

/// The versions of those of these documents that there are.
async fn versions(index: &Index, ids: Vec<String>) -> Result<HashMap<String, i64>, EngineError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = DocumentsQuery::new(index);
    query.with_limit(ids.len()).with_fields(["id", "version"]);
    query.ids = Some(ids.iter().map(String::as_str).collect());
    let known = bounded(index.get_documents_with::<StoredVersion>(&query)).await?;
    Ok(known
        .results
        .into_iter()
        .map(|stored| (stored.id, stored.version))
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

    fn is_shared(&self) -> bool {
        true
    }

    async fn apply(&self, changes: Vec<Change>, position: Option<StreamPosition>) -> Result<Applied, EngineError> {
        self.prepare().await?;
        let mut written = self.changing.lock().await;
        let applied = async {
            if self.rebuilding.load(Ordering::Acquire) {
                self.apply_to(&self.fresh(), &changes, None::<(_, Rebuild)>).await?;
            }
            let position = self.next_position(*written, position).await?;
            let mark = position.map(|position| (POSITION, position));
            let applied = self.apply_to(&self.messages(), &changes, mark).await?;
            *written = position;
            Ok(applied)
        };
        let applied = applied.await;
        self.or_prepare_again(applied).await
    }

    async fn search(&self, query: EngineQuery) -> Result<Found, EngineError> {
        let wordless = |clause: &TextClause| text::tokens(clause.text(), Purpose::Query).is_empty();
        if query.chats.is_empty() || query.text.iter().any(wordless) {
            return Ok(Found::default());
        }
        let index = self.messages();
        let (text, filter) = (query_text(&query.text), Filter::of(&query));
        let mut search = SearchQuery::new(&index);
        search
            .with_query(&text)
            .with_locales(LOCALES)
            .with_offset(query.offset)
            .with_limit(query.limit)
            .with_attributes_to_retrieve(Selectors::Some(&["id"]))
            .with_facets(Selectors::Some(&["sender_id", "chat_id", "day"]))
            .with_matching_strategy(MatchingStrategies::ALL);
        if query.sort == Sort::Newest || query.text.is_empty() {
            search.with_sort(&NEWEST_FIRST);
        }
        // Before the first message is indexed there is no index.
        let Some(results) = self.find(&search, filter).await? else {
            return Ok(Found::default());
        };
        let facets = results.facet_distribution.unwrap_or_default();
        let chats = ids_of(facets.get("chat_id"));
        // Each message is in one chat, and counts are not cut off where pages are.
        let counted = chats.values().sum();
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
                chats,
                days: most_frequent(
                    facets
                        .get("day")
                        .into_iter()
                        .flatten()
                        .filter_map(|(text, count)| Some((day(text)?, *count as u64))),
                    FACET_VALUES_MAX,
                ),
            },
            total: (results.estimated_total_hits.unwrap_or_default() as u64).max(counted),
        })
    }

    async fn check(&self) -> Result<String, EngineError> {
        let health = bounded(self.client.health()).await?;
        // Whoever asks for its health needs no key.
        let there = bounded(async { if_there(self.client.get_raw_index(&self.name).await) }).await?;
        let note = if there.is_some() { "" } else { ", no index yet" };
        Ok(format!("meilisearch {}{note}", health.status))
    }

    async fn writable(&self) -> Result<(), EngineError> {
        self.check().await.map(drop)
    }

    async fn documents(&self) -> Result<u64, EngineError> {
        let index = self.messages();
        // Each message has a link or has none, and a mark says neither. Totals would be cut off where pages are.
        let mut search = SearchQuery::new(&index);
        search.with_limit(0).with_facets(Selectors::Some(&["has_link"]));
        let results = bounded(async { if_there(search.execute::<StoredId>().await) }).await?;
        let facets = results
            .and_then(|results| results.facet_distribution)
            .unwrap_or_default();
        let counts = facets.get("has_link").into_iter().flat_map(HashMap::values);
        Ok(counts.map(|count| *count as u64).sum())
    }

    async fn stored(&self, after: MessageId, until: MessageId) -> Result<Vec<Stored>, EngineError> {
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
        self.kept(POSITION).await
    }

    async fn incomplete(&self) -> Result<Option<String>, EngineError> {
        self.prepare().await?;
        Ok(match self.complete().await? {
            None => Some("the index is new, or was restored from a snapshot".to_owned()),
            Some(complete) if complete.format != FORMAT => {
                Some(format!("it has format {}, this build needs {FORMAT}", complete.format))
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
        self.forget(&self.state(), Rebuild::ID).await?;
        self.drop_fresh().await?;
        self.prepare_index(&self.fresh_name()).await?;
        let rebuild = Rebuild {
            format: FORMAT,
            build: Uuid::now_v7(),
            cursor: 0,
        };
        let task = self.keep(&self.state(), Rebuild::ID, rebuild).await?;
        self.finish(task).await?;
        self.rebuilding.store(true, Ordering::Release);
        Ok(0)
    }

    async fn rebuild_load(&self, changes: Vec<Change>, cursor: i64) -> Result<(), EngineError> {
        let _changing = self.changing.lock().await;
        let rebuild = self.rebuild_under_way().await?;
        let mark = (Rebuild::ID, Rebuild { cursor, ..rebuild });
        self.apply_to(&self.fresh(), &changes, Some(mark)).await.map(drop)
    }

    async fn rebuild_finish(&self) -> Result<(), EngineError> {
        let _changing = self.changing.lock().await;
        let rebuild = self.rebuild_under_way().await?;
        self.change_places(rebuild).await?;
        self.rebuilding.store(false, Ordering::Release);
        self.forget(&self.state(), Rebuild::ID).await?;
        self.drop_fresh().await
    }

    async fn rebuild_abort(&self) -> Result<(), EngineError> {
        let _changing = self.changing.lock().await;
        self.rebuilding.store(false, Ordering::Release);
        self.forget(&self.state(), Rebuild::ID).await?;
        self.drop_fresh().await
    }
}
