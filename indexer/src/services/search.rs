//! Searching: who asks, what they may see, what the engine finds, what PostgreSQL confirms.
//!
//! The index is never trusted. The searcher's chats are read from PostgreSQL for every search and bound the engine's
//! answer, facets included; then each hit is read again together with the searcher's membership, in one query.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fechatter_core::chat::ChatKind;
use fechatter_core::problem::{Code, FieldError, Problem};
use fechatter_core::wire::{ChatRef, MessageView};
use fechatter_core::{ChatId, UserId, WorkspaceId};
use service_runtime::ApiError;
use service_runtime::error::Chain;
use sqlx::{PgConnection, PgPool};
use time::{Date, OffsetDateTime};

use crate::engine::{EngineError, EngineQuery, FACET_VALUES_MAX, Facets, Found, SearchEngine, Sort, most_frequent};
use crate::highlight;
use crate::metrics::Metrics;
use crate::names::Name;
use crate::query::{self, ParsedQuery, TimeRange};
use crate::repositories::access::{self, ChatFilter, MemberChat};
use crate::repositories::messages;

/// Most hits of one page.
pub const LIMIT_MAX: usize = 100;
/// Where the last page may begin; older messages are reached by narrowing with `to`.
pub const OFFSET_MAX: usize = 10_000;
/// Most people that the `from:` of one query may mean.
const NAMESAKES_MAX: usize = 1_000;

/// A search as it was asked for.
#[derive(Debug, Clone, Default)]
pub struct SearchRequest {
    pub q: String,
    pub chat_id: Option<ChatId>,
    pub sender_id: Option<UserId>,
    pub kind: Option<ChatKind>,
    /// From the parameters `from` and `to`.
    pub created: TimeRange,
    pub sort: Sort,
    pub limit: usize,
    pub offset: usize,
}

/// A message that the searcher may see and that matches.
#[derive(Debug, Clone)]
pub struct Hit {
    pub message: MessageView,
    pub chat: ChatRef,
    /// Escaped text with `<mark>` around what matches.
    pub highlight: String,
}

/// The answer to a search.
#[derive(Debug, Clone, Default)]
pub struct SearchAnswer {
    pub hits: Vec<Hit>,
    pub senders: BTreeMap<UserId, u64>,
    pub chats: BTreeMap<ChatId, u64>,
    pub kinds: BTreeMap<&'static str, u64>,
    pub days: BTreeMap<Date, u64>,
    pub estimated_total: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("invalid {field}: {detail}")]
    Invalid {
        field: &'static str,
        code: &'static str,
        detail: String,
    },
    /// The account was deactivated or is gone.
    #[error("the account is not active")]
    Inactive,
    #[error("no such chat")]
    UnknownChat,
    /// The chat may be known of, but not searched, before joining it.
    #[error("not a member of the chat")]
    NotMember,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the search engine did not answer in time")]
    Timeout,
    #[error("database")]
    Database(#[from] sqlx::Error),
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> Self {
        let away = "Search is not available at the moment; messages are not affected. Try again soon.";
        match error {
            SearchError::Invalid { field, code, detail } => Problem::fields(vec![FieldError {
                field: field.to_owned(),
                code: code.to_owned(),
                detail,
            }])
            .into(),
            SearchError::Inactive => Self::new(Code::InvalidToken, "This account is not active any more."),
            SearchError::UnknownChat => Self::new(Code::NotFound, "There is no such chat, or you may not see it."),
            SearchError::NotMember => Self::new(Code::Forbidden, "Join the channel to search in it."),
            SearchError::Engine(_) | SearchError::Timeout => {
                tracing::error!(error = %Chain(&error), "search failed");
                Self::unavailable(away, 5)
            }
            SearchError::Database(error) if migrations::is_away(&error) => {
                tracing::error!(error = %Chain(&error), "database away");
                Self::unavailable(away, 2)
            }
            SearchError::Database(_) => Self::internal(&error),
        }
    }
}

/// What a search may look into.
struct Scope {
    chats: Vec<MemberChat>,
    senders: Option<Vec<UserId>>,
}

/// Searches.
#[derive(Debug, Clone)]
pub struct SearchService {
    pool: PgPool,
    engine: Arc<dyn SearchEngine>,
    metrics: Metrics,
    timeout: Duration,
}

impl SearchService {
    /// A service that asks `engine`, and `pool` about who may see what.
    pub fn new(pool: PgPool, engine: Arc<dyn SearchEngine>, metrics: Metrics, timeout: Duration) -> Self {
        Self {
            pool,
            engine,
            metrics,
            timeout,
        }
    }

    /// Finds messages in the chats that `user` is a member of now.
    pub async fn search(
        &self,
        user: UserId,
        workspace: WorkspaceId,
        request: &SearchRequest,
    ) -> Result<SearchAnswer, SearchError> {
        let parsed = query::parse(&request.q).map_err(|fault| SearchError::Invalid {
            field: "q",
            code: fault.code,
            detail: fault.detail,
        })?;
        let started = Instant::now();
        let scope = {
            let mut connection = self.pool.acquire().await?;
            scope(&mut connection, user, workspace, request, &parsed).await?
        };
        self.metrics.search_part("scope", started.elapsed());

        let found = self.ask_engine(workspace, request, &parsed, &scope).await?;
        let started = Instant::now();
        let hits = self.confirm(user, workspace, &parsed, &found).await?;
        self.metrics.search_part("check", started.elapsed());
        Ok(answer(hits, found, &scope))
    }

    async fn ask_engine(
        &self,
        workspace: WorkspaceId,
        request: &SearchRequest,
        parsed: &ParsedQuery,
        scope: &Scope,
    ) -> Result<Found, SearchError> {
        if scope.chats.is_empty() || scope.senders.as_ref().is_some_and(Vec::is_empty) {
            return Ok(Found::default());
        }
        let started = Instant::now();
        let query = EngineQuery {
            workspace_id: workspace,
            text: parsed.text.clone(),
            chats: scope.chats.iter().map(|chat| chat.id).collect(),
            preferred_chats: scope
                .chats
                .iter()
                .filter(|chat| chat.is_own)
                .map(|chat| chat.id)
                .collect(),
            senders: scope.senders.clone(),
            created: parsed.created.and(request.created),
            has_link: parsed.has_link,
            sort: request.sort,
            offset: request.offset,
            limit: request.limit,
            now: OffsetDateTime::now_utc(),
        };
        let found = tokio::time::timeout(self.timeout, self.engine.search(query))
            .await
            .map_err(|_| SearchError::Timeout)??;
        self.metrics.search_part("engine", started.elapsed());
        Ok(found)
    }

    /// Reads the hits again as they are now, for this searcher, in the engine's order.
    async fn confirm(
        &self,
        user: UserId,
        workspace: WorkspaceId,
        parsed: &ParsedQuery,
        found: &Found,
    ) -> Result<Vec<Hit>, SearchError> {
        if found.hits.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<i64> = found.hits.iter().map(|hit| hit.id.0).collect();
        let mut connection = self.pool.acquire().await?;
        let mut visible: HashMap<i64, _> = messages::visible(&mut connection, &ids, user, workspace)
            .await?
            .into_iter()
            .map(|(message, chat)| (message.id.0, (message, chat)))
            .collect();
        drop(connection);
        let hits: Vec<Hit> = ids
            .iter()
            .filter_map(|id| visible.remove(id))
            .map(|(message, chat)| Hit {
                highlight: highlight::snippet(message.content.as_deref().unwrap_or_default(), &parsed.text),
                message,
                chat,
            })
            .collect();
        self.metrics.hits_dropped((ids.len() - hits.len()) as u64);
        Ok(hits)
    }
}

/// Decides what this searcher may look into, and resolves names to ids.
async fn scope(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
    request: &SearchRequest,
    parsed: &ParsedQuery,
) -> Result<Scope, SearchError> {
    if !access::is_active(connection, user, workspace).await? {
        return Err(SearchError::Inactive);
    }
    let filter = ChatFilter {
        id: request.chat_id,
        kind: request.kind,
        with_names: !parsed.chats.is_empty(),
    };
    let mut chats = access::member_chats(connection, user, workspace, &filter).await?;
    if filter.with_names {
        let wanted: Vec<Name> = parsed.chats.iter().map(|name| Name::new(name)).collect();
        let is_wanted = |name: &str| wanted.iter().any(|asked| asked.is(name));
        chats.retain(|chat| chat.name.as_deref().is_some_and(is_wanted));
    }
    if let (Some(chat), true) = (request.chat_id, chats.is_empty()) {
        refuse_chat(connection, user, workspace, chat).await?;
    }
    Ok(Scope {
        chats,
        senders: senders(connection, user, workspace, request, parsed).await?,
    })
}

/// Says why a chat that was asked for is not searched; nothing when only the other filters leave it out.
async fn refuse_chat(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
    chat: ChatId,
) -> Result<(), SearchError> {
    let by_id = ChatFilter {
        id: Some(chat),
        ..ChatFilter::default()
    };
    if !access::member_chats(connection, user, workspace, &by_id)
        .await?
        .is_empty()
    {
        return Ok(());
    }
    match access::chat_kind(connection, chat, workspace).await? {
        Some(kind) if kind.is_discoverable() => Err(SearchError::NotMember),
        _ => Err(SearchError::UnknownChat),
    }
}

/// The senders asked for; `None` when anybody's messages will do.
async fn senders(
    connection: &mut PgConnection,
    user: UserId,
    workspace: WorkspaceId,
    request: &SearchRequest,
    parsed: &ParsedQuery,
) -> Result<Option<Vec<UserId>>, SearchError> {
    if parsed.from.is_empty() {
        return Ok(request.sender_id.map(|sender| vec![sender]));
    }
    let names: Vec<Name> = parsed.from.iter().map(|name| Name::new(name)).collect();
    let mut wanted: Vec<UserId> = access::fullnames(connection, workspace)
        .await?
        .into_iter()
        .filter(|(_, fullname)| names.iter().any(|asked| asked.is_in(fullname)))
        .take(NAMESAKES_MAX)
        .map(|(id, _)| id)
        .collect();
    if names.iter().any(|asked| asked.is("me")) {
        wanted.push(user);
    }
    if let Some(sender) = request.sender_id {
        wanted.retain(|id| *id == sender);
    }
    wanted.sort_unstable();
    wanted.dedup();
    Ok(Some(wanted))
}

fn answer(hits: Vec<Hit>, found: Found, scope: &Scope) -> SearchAnswer {
    let Found {
        facets: Facets { senders, chats, days },
        total,
        ..
    } = found;
    let mut kinds: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (chat, count) in &chats {
        if let Ok(at) = scope.chats.binary_search_by_key(chat, |chat| chat.id) {
            *kinds.entry(scope.chats[at].kind.as_str()).or_default() += count;
        }
    }
    SearchAnswer {
        hits,
        senders,
        chats: most_frequent(chats, FACET_VALUES_MAX),
        kinds,
        days,
        estimated_total: total,
    }
}
