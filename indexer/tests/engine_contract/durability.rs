//! What the embedded engine alone promises: its folder survives whatever happens to the process.

use std::path::{Path, PathBuf};

use indexer::engine::embedded::{EmbeddedEngine, OpenError};
use indexer::engine::{EngineError, EngineQuery, MessageDocument, SearchEngine, StreamPosition};

use crate::{NOTHING, ask, chats, ids, message, options, sorted, upserts};

fn open(folder: &Path) -> EmbeddedEngine {
    EmbeddedEngine::open(options(folder)).expect("an engine")
}

fn entries(folder: &Path, part: &str) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .expect("a folder")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains(part))
        })
        .collect()
}

/// A copy of the folder as it is on disk while the process still runs: what a killed process leaves behind.
fn snapshot(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            snapshot(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a copy");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_left_opens_with_its_last_commit() {
    let (folder, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = open(folder.path());
    let position = StreamPosition {
        epoch: uuid::Uuid::now_v7(),
        sequence: 41,
    };
    engine
        .apply(upserts([message(1, 1, 7, "committed")]), Some(position))
        .await
        .unwrap();
    snapshot(folder.path(), left.path());
    engine
        .apply(upserts([message(2, 1, 7, "committed later")]), None)
        .await
        .unwrap();

    let reopened = open(left.path());
    assert_eq!(sorted(&reopened, "committed").await, [1]);
    assert_eq!(reopened.position().await.unwrap(), Some(position));
    reopened
        .apply(upserts([message(3, 1, 7, "committed after")]), None)
        .await
        .unwrap();
    assert_eq!(sorted(&reopened, "committed").await, [1, 3]);
    // A batch without a position keeps the last one.
    assert_eq!(reopened.position().await.unwrap(), Some(position));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(folder.path());
    assert!(matches!(
        EmbeddedEngine::open(options(folder.path())),
        Err(OpenError::Busy)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_index_is_moved_aside_and_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    engine
        .apply(upserts([message(1, 1, 7, "lost words")]), None)
        .await
        .unwrap();
    engine.rebuild_begin().await.unwrap();
    engine
        .rebuild_load(upserts([message(1, 1, 7, "lost words")]), 1)
        .await
        .unwrap();
    engine.rebuild_finish().await.unwrap();
    drop(engine);
    assert!(open(folder.path()).incomplete().await.unwrap().is_none());

    let generation = entries(folder.path(), "generation-").remove(0);
    for file in entries(&generation, ".idx") {
        std::fs::write(file, b"not an index").unwrap();
    }
    let engine = open(folder.path());
    assert_eq!(entries(folder.path(), ".damaged-").len(), 1);
    assert!(engine.incomplete().await.unwrap().is_some());
    assert_eq!(sorted(&engine, "lost").await, NOTHING);
    engine
        .apply(upserts([message(1, 1, 7, "lost words")]), None)
        .await
        .unwrap();
    assert_eq!(sorted(&engine, "lost").await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_rebuild_goes_on_where_it_was() {
    let (folder, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = open(folder.path());
    engine
        .apply(upserts([message(9, 1, 7, "old words")]), None)
        .await
        .unwrap();
    engine.rebuild_begin().await.unwrap();
    engine
        .rebuild_load(upserts([message(1, 1, 7, "new words")]), 1)
        .await
        .unwrap();
    snapshot(folder.path(), left.path());

    let engine = open(left.path());
    assert_eq!(sorted(&engine, "words").await, [9]);
    assert_eq!(engine.rebuild_begin().await.unwrap(), 1);
    engine.rebuild_finish().await.unwrap();
    assert_eq!(sorted(&engine, "words").await, [1]);
    drop(engine);
    let engine = open(left.path());
    assert_eq!(sorted(&engine, "words").await, [1]);
    assert_eq!(entries(left.path(), "generation-").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recency_and_the_searchers_own_chats_decide_among_equals() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    // The higher the id, the older; all within minutes of each other, and one of last year.
    let mut messages: Vec<_> = (1..=4).map(|id| message(id, id, 7, "the harvest")).collect();
    messages[3].created_at -= time::Duration::days(365);
    engine.apply(upserts(messages), None).await.unwrap();
    let query = |preferred: &[i64]| EngineQuery {
        chats: chats(1..=4),
        preferred_chats: chats(preferred.iter().copied()),
        ..ask("harvest")
    };
    assert_eq!(ids(&engine, query(&[])).await, [1, 2, 3, 4]);
    assert_eq!(ids(&engine, query(&[3])).await, [3, 1, 2, 4]);
    // Not enough to lift what is a year old, nor to let anybody in.
    assert_eq!(ids(&engine, query(&[4])).await, [1, 2, 3, 4]);
    let not_theirs = EngineQuery {
        chats: chats([1, 2]),
        ..query(&[3])
    };
    assert_eq!(ids(&engine, not_theirs).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_segments_answer_as_small_ones_do() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    // One segment that is counted by arrays, and one by a map since its chats lie too far apart.
    let near = (1..=6_000).map(|id| {
        let mut message = message(id, id % 50 + 1, id % 7 + 1, "weekly numbers");
        message.workspace_id = (message.chat_id.0 % 2 + 1).into();
        message.created_at = crate::NOW - time::Duration::hours(id % 1_000);
        message
    });
    let far = (6_001..=9_000).map(|id| message(id, (id % 3) * 1_000_000_000 + 1, 7, "weekly numbers"));
    let (near, far): (Vec<_>, Vec<_>) = (near.collect(), far.collect());
    engine.apply(upserts(near.clone()), None).await.unwrap();
    engine.apply(upserts(far.clone()), None).await.unwrap();
    let allowed = [1, 2, 3, 10, 17, 1_000_000_001];
    let expected: Vec<_> = near
        .iter()
        .chain(&far)
        .filter(|message| message.workspace_id.0 == 1 && allowed.contains(&message.chat_id.0))
        .collect();
    let query = EngineQuery {
        chats: chats(allowed),
        limit: 10,
        ..ask("weekly")
    };
    let found = engine.search(query).await.unwrap();
    let count = |key: &dyn Fn(&MessageDocument) -> i64| {
        let mut counts = std::collections::BTreeMap::new();
        for message in &expected {
            *counts.entry(key(message)).or_insert(0_u64) += 1;
        }
        counts
    };
    assert_eq!(found.total, expected.len() as u64);
    let chats: std::collections::BTreeMap<i64, u64> = found.facets.chats.iter().map(|(id, n)| (id.0, *n)).collect();
    assert_eq!(chats, count(&|message| message.chat_id.0));
    let senders: std::collections::BTreeMap<i64, u64> = found.facets.senders.iter().map(|(id, n)| (id.0, *n)).collect();
    assert_eq!(senders, count(&|message| message.sender_id.0));
    let mut days: Vec<u64> = count(&|message| message.created_at.date().to_julian_day().into())
        .into_values()
        .collect();
    days.sort_unstable_by(|a, b| b.cmp(a));
    days.truncate(indexer::engine::FACET_VALUES_MAX);
    let mut counted: Vec<u64> = found.facets.days.into_values().collect();
    counted.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(counted, days);
    // Newer first among equals, and of the same moment the one that was written later.
    let mut first = expected.clone();
    first.sort_unstable_by_key(|message| std::cmp::Reverse((message.created_at, message.id)));
    let first: Vec<i64> = first.iter().take(10).map(|message| message.id.0).collect();
    assert_eq!(found.hits.iter().map(|hit| hit.id.0).collect::<Vec<_>>(), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_cannot_be_written_to_blames_no_batch() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    engine.writable().await.unwrap();
    // Gone from under it: as when a disk is detached.
    std::fs::remove_dir_all(folder.path()).unwrap();
    let refusal = engine.writable().await.unwrap_err();
    assert!(matches!(refusal, EngineError::Unavailable(_)), "{refusal}");
    std::fs::create_dir_all(folder.path()).unwrap();
}
