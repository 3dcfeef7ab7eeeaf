//! `GET /api/search/messages`.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::extract::State;
use fechatter_core::chat::ChatKind;
use fechatter_core::ids::MAX_SAFE_INTEGER;
use fechatter_core::problem::{FieldError, Problem};
use fechatter_core::wire::{ChatRef, MessageView};
use fechatter_core::{ChatId, UserId};
use serde::{Deserialize, Serialize};
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::{Json, Query};
use utoipa::{IntoParams, ToSchema};

use crate::engine::Sort;
use crate::query::{QUERY_CHARS_MAX, TimeRange, parse_from, parse_to};
use crate::services::search::{LIMIT_MAX, OFFSET_MAX, SearchAnswer, SearchRequest, SearchService};

/// Hits of a page unless `limit` says otherwise.
const LIMIT_DEFAULT: usize = 50;

/// What to search for. An empty value is the same as none.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct SearchParams {
    /// Words, `"quoted phrases"` and the operators `from:name in:chat before:2026-01-31 after:… on:… has:link`; at most
    /// 1,000 characters. Every word must match; typos are tolerated; the last word may be the beginning of one.
    #[param(max_length = 1000, example = "release plan in:general")]
    q: String,
    /// Only this chat.
    #[param(value_type = Option<ChatId>)]
    chat_id: String,
    /// Only messages of this user.
    #[param(value_type = Option<UserId>)]
    sender_id: String,
    /// Only chats of this kind.
    #[param(value_type = Option<ChatKind>)]
    kind: String,
    /// Not before this date or RFC 3339 time (UTC).
    #[param(example = "2026-01-01")]
    from: String,
    /// Until the end of this date, or before this RFC 3339 time.
    #[param(example = "2026-01-31")]
    to: String,
    /// `relevance` (the default) or `newest`.
    #[param(value_type = Option<SortName>, inline)]
    sort: String,
    #[param(value_type = Option<i64>, minimum = 1, maximum = 100, default = 50)]
    limit: String,
    /// Hits to pass over; further ones are reached by narrowing with `to`.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 10000, default = 0)]
    offset: String,
}

/// The order of hits.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SortName {
    Relevance,
    Newest,
}

/// A page of hits, with counts over all matches.
#[derive(Debug, Serialize, ToSchema)]
pub struct SearchResponse {
    pub hits: Vec<SearchHit>,
    pub facets: SearchFacets,
    /// How many messages match.
    #[schema(minimum = 0)]
    pub estimated_total: u64,
    #[schema(minimum = 0)]
    pub took_ms: f64,
}

/// A message that matches.
#[derive(Debug, Serialize, ToSchema)]
pub struct SearchHit {
    pub message: MessageView,
    pub chat: ChatRef,
    /// A part of the message as HTML: escaped text with `<mark>` around what matches, no other markup.
    #[schema(example = "the <mark>release</mark> plan is ready")]
    pub highlight: String,
}

/// How many matches there are by value; at most the 100 most frequent values of each.
#[derive(Debug, Serialize, ToSchema)]
pub struct SearchFacets {
    /// By the sender's id.
    pub sender_id: BTreeMap<String, u64>,
    /// By the chat's id.
    pub chat_id: BTreeMap<String, u64>,
    /// By the kind of chat.
    pub kind: BTreeMap<String, u64>,
    /// By calendar day (UTC).
    pub day: BTreeMap<String, u64>,
}

fn named<K: ToString>(counts: BTreeMap<K, u64>) -> BTreeMap<String, u64> {
    counts
        .into_iter()
        .map(|(value, count)| (value.to_string(), count))
        .collect()
}

impl SearchResponse {
    fn of(answer: SearchAnswer, started: Instant) -> Self {
        Self {
            hits: answer
                .hits
                .into_iter()
                .map(|hit| SearchHit {
                    message: hit.message,
                    chat: hit.chat,
                    highlight: hit.highlight,
                })
                .collect(),
            facets: SearchFacets {
                sender_id: named(answer.senders),
                chat_id: named(answer.chats),
                kind: named(answer.kinds),
                day: named(answer.days),
            },
            estimated_total: answer.estimated_total,
            took_ms: (started.elapsed().as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}

/// Collects what is wrong with the parameters.
#[derive(Default)]
struct Checker(Vec<FieldError>);

impl Checker {
    fn fault(&mut self, field: &str, code: &str, detail: impl Into<String>) {
        self.0.push(FieldError {
            field: field.to_owned(),
            code: code.to_owned(),
            detail: detail.into(),
        });
    }

    /// Reads a value unless it is empty.
    fn read<T>(&mut self, field: &str, text: &str, detail: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        if text.is_empty() {
            return None;
        }
        let value = parse(text);
        if value.is_none() {
            self.fault(field, "invalid", detail);
        }
        value
    }

    fn id<T: From<i64>>(&mut self, field: &str, text: &str) -> Option<T> {
        self.read(field, text, "a positive integer below 2^53", |text| {
            let id: i64 = text.parse().ok()?;
            (1..=MAX_SAFE_INTEGER).contains(&id).then(|| id.into())
        })
    }

    fn number(&mut self, field: &str, text: &str, low: usize, high: usize) -> Option<usize> {
        self.read(field, text, &format!("an integer from {low} to {high}"), |text| {
            text.parse().ok().filter(|number| (low..=high).contains(number))
        })
    }
}

impl SearchParams {
    fn check(self) -> Result<SearchRequest, Problem> {
        const DATE: &str = "a date such as 2026-01-31 or an RFC 3339 time such as 2026-01-31T08:00:00Z";
        let mut checker = Checker::default();
        if self.q.chars().count() > QUERY_CHARS_MAX {
            checker.fault(
                "q",
                "too_long",
                format!("a query has at most {QUERY_CHARS_MAX} characters"),
            );
        }
        let request = SearchRequest {
            chat_id: checker.id("chat_id", &self.chat_id),
            sender_id: checker.id("sender_id", &self.sender_id),
            kind: checker.read(
                "kind",
                &self.kind,
                "single, group, private_channel or public_channel",
                |text| text.parse().ok(),
            ),
            created: TimeRange {
                from: checker.read("from", &self.from, DATE, parse_from),
                until: checker.read("to", &self.to, DATE, parse_to),
            },
            sort: checker
                .read("sort", &self.sort, "relevance or newest", |text| match text {
                    "relevance" => Some(Sort::Relevance),
                    "newest" => Some(Sort::Newest),
                    _ => None,
                })
                .unwrap_or_default(),
            limit: checker
                .number("limit", &self.limit, 1, LIMIT_MAX)
                .unwrap_or(LIMIT_DEFAULT),
            offset: checker.number("offset", &self.offset, 0, OFFSET_MAX).unwrap_or(0),
            q: self.q,
        };
        if let (Some(from), Some(until)) = (request.created.from, request.created.until)
            && from >= until
        {
            checker.fault("to", "invalid", "`to` lies before `from`");
        }
        if checker.0.is_empty() {
            Ok(request)
        } else {
            Err(Problem::fields(checker.0))
        }
    }
}

/// Searches the messages of the chats the caller is a member of.
#[utoipa::path(
    get,
    path = "/api/search/messages",
    tag = "search",
    params(SearchParams),
    extensions(("x-problem-codes" = json!(["forbidden", "not_found"]))),
    security(("bearer" = [])),
    responses((status = 200, description = "The matches", body = SearchResponse))
)]
pub async fn search_messages(
    State(service): State<SearchService>,
    caller: Caller,
    Query(params): Query<SearchParams>,
) -> ApiResult<Json<SearchResponse>> {
    let started = Instant::now();
    let request = params.check()?;
    let answer = service
        .search(caller.user_id(), caller.workspace_id(), &request)
        .await?;
    Ok(Json(SearchResponse::of(answer, started)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(params: SearchParams) -> Vec<String> {
        params
            .check()
            .err()
            .map(|problem| problem.errors.into_iter().map(|error| error.field).collect())
            .unwrap_or_default()
    }

    #[test]
    fn every_wrong_parameter_is_named_at_once() {
        let params = SearchParams {
            q: "x".repeat(10_000),
            chat_id: "0".to_owned(),
            sender_id: "9007199254740992".to_owned(),
            kind: "dm".to_owned(),
            from: "2026-02-30".to_owned(),
            to: "later".to_owned(),
            sort: "best".to_owned(),
            limit: "101".to_owned(),
            offset: "-1".to_owned(),
        };
        assert_eq!(
            fields(params),
            [
                "q",
                "chat_id",
                "sender_id",
                "kind",
                "from",
                "to",
                "sort",
                "limit",
                "offset"
            ]
        );
    }

    #[test]
    fn empty_values_are_defaults() {
        let request = SearchParams::default().check().unwrap();
        assert_eq!((request.limit, request.offset, request.chat_id), (50, 0, None));
    }

    #[test]
    fn a_range_must_not_be_backwards() {
        let range = |from: &str, to: &str| SearchParams {
            from: from.to_owned(),
            to: to.to_owned(),
            ..SearchParams::default()
        };
        assert_eq!(fields(range("2026-01-02", "2026-01-01")), ["to"]);
        assert!(fields(range("2026-01-01", "2026-01-01")).is_empty());
    }
}
