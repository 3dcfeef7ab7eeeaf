//! What the embedded engine alone promises: its folder survives whatever happens to the process.

use std::path::{Path, PathBuf};

use indexer::engine::embedded::{EmbeddedEngine, OpenError};
use indexer::engine::{SearchEngine, StreamPosition};

use crate::{NOTHING, message, options, sorted, upserts};

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
