//! One suite, two engines: every case runs on the embedded engine, and on a real Meilisearch when `MEILI_URL` (and
//! `MEILI_KEY`, if it has one) is set.

mod cases;
mod corpus;
mod durability;
mod hostile;
mod privacy;
mod random;
mod refusals;
mod relevance;
mod world;

use std::sync::Arc;

use fechatter_core::ChatId;
use indexer::engine::embedded::{EmbeddedEngine, Options};
use indexer::engine::meilisearch::{self, MeilisearchEngine};
use indexer::engine::{Change, EngineQuery, MessageDocument, SearchEngine, Sort};
use indexer::query;
use time::OffsetDateTime;
use time::macros::datetime;

pub const NOW: OffsetDateTime = datetime!(2026-06-01 12:00 UTC);
pub const WORKSPACE: i64 = 1;
pub const NOTHING: [i64; 0] = [];

/// Smallest writer that tantivy takes.
pub fn options(folder: &std::path::Path) -> Options {
    Options {
        folder: folder.to_owned(),
        writer_memory: 15_000_000,
        concurrent_searches: 4,
        min_free: 0,
    }
}

pub fn message(id: i64, chat: i64, sender: i64, content: &str) -> MessageDocument {
    MessageDocument {
        id: id.into(),
        workspace_id: WORKSPACE.into(),
        chat_id: chat.into(),
        sender_id: sender.into(),
        content: content.to_owned(),
        created_at: NOW - time::Duration::hours(id),
        version: 1,
    }
}

pub fn upserts(messages: impl IntoIterator<Item = MessageDocument>) -> Vec<Change> {
    messages.into_iter().map(Change::Upsert).collect()
}

pub fn chats(ids: impl IntoIterator<Item = i64>) -> Arc<[ChatId]> {
    let mut ids: Vec<ChatId> = ids.into_iter().map(ChatId).collect();
    ids.sort_unstable();
    ids.into()
}

/// A query of chat 1 and 2, as the service would make it from `q`.
pub fn ask(q: &str) -> EngineQuery {
    let parsed = query::parse(q).expect("a query that can be read");
    EngineQuery {
        workspace_id: WORKSPACE.into(),
        text: parsed.text,
        chats: chats([1, 2]),
        preferred_chats: chats([]),
        senders: None,
        created: parsed.created,
        has_link: parsed.has_link,
        sort: Sort::Relevance,
        offset: 0,
        limit: 50,
        now: NOW,
    }
}

pub async fn ids(engine: &dyn SearchEngine, query: EngineQuery) -> Vec<i64> {
    engine
        .search(query)
        .await
        .expect("an answer")
        .hits
        .iter()
        .map(|hit| hit.id.0)
        .collect()
}

pub async fn sorted(engine: &dyn SearchEngine, q: &str) -> Vec<i64> {
    let mut ids = ids(engine, ask(q)).await;
    ids.sort_unstable();
    ids
}

#[expect(
    clippy::disallowed_methods,
    reason = "whether a Meilisearch is at hand is the environment's to say"
)]
fn meilisearch_engine() -> Option<Arc<dyn SearchEngine>> {
    let url = std::env::var("MEILI_URL").ok()?;
    let options = meilisearch::Options {
        url,
        key: std::env::var("MEILI_KEY").ok().map(Into::into),
        index: format!("contract_{}", uuid::Uuid::now_v7().simple()),
    };
    Some(Arc::new(MeilisearchEngine::new(&options).expect("a usable MEILI_URL")))
}

fn embedded_engine() -> (tempfile::TempDir, Arc<dyn SearchEngine>) {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = EmbeddedEngine::open(options(folder.path())).expect("an engine");
    (folder, Arc::new(engine))
}

/// Said once, and past the capture of the test harness: a suite that did not run must not look as if it had.
fn say_skipped() {
    use std::io::Write;
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        let _ = writeln!(
            std::io::stderr(),
            "\nSKIPPED: the engine contract did not run on Meilisearch, because MEILI_URL is not set\n"
        );
    });
}

/// Runs each case on a fresh engine of either kind; those after the semicolon share it with a search service.
macro_rules! contract {
    ($($case:ident),+; $($shared:ident),+ $(,)?) => {
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let (_folder, engine) = super::embedded_engine();
                super::cases::$case(engine.as_ref()).await;
            })+
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $shared() {
                let (_folder, engine) = super::embedded_engine();
                super::cases::$shared(&engine).await;
            })+
        }

        mod on_meilisearch {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                match super::meilisearch_engine() {
                    Some(engine) => super::cases::$case(engine.as_ref()).await,
                    None => super::say_skipped(),
                }
            })+
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $shared() {
                match super::meilisearch_engine() {
                    Some(engine) => super::cases::$shared(&engine).await,
                    None => super::say_skipped(),
                }
            })+
        }
    };
}

contract!(
    finds_words_in_any_case_and_accent,
    the_last_word_is_a_prefix,
    tolerates_typos_by_length,
    finds_unspaced_scripts,
    any_part_of_an_unspaced_text_is_found,
    digits_must_be_right,
    phrases_are_exact,
    all_words_must_match,
    searches_only_the_given_chats_and_workspace,
    facets_and_total_stay_within_the_filter,
    filters_by_sender_time_and_link,
    orders_by_relevance_or_newest,
    exact_beats_prefix_beats_typo,
    pages_past_a_thousand_hits,
    an_older_version_never_overwrites,
    a_deleted_message_stays_deleted,
    a_deleted_chat_is_forgotten,
    a_deleted_chat_never_comes_back,
    counts_what_lies_beyond_the_last_page,
    hostile_text_is_only_text,
    many_chats_are_no_burden,
    a_rebuild_serves_the_old_and_swaps,
    an_interrupted_rebuild_is_taken_up,
    the_position_is_kept_and_never_goes_back,
    says_what_it_has,
    random_worlds_reveal_nothing_and_count_right;
    hits_and_facets_never_tell_of_a_foreign_chat,
    the_expected_comes_first,
    hostile_queries_are_answered_or_refused,
);
