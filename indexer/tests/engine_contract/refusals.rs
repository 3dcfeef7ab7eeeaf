//! What becomes of a batch that an engine refuses or fails at. The embedded engine refuses none, so one that is told
//! what to refuse stands before it; everything else is real.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use fechatter_core::MessageId;
use fechatter_core::chat::ChatKind;
use fechatter_core::events::{Event, EventType};
use indexer::config;
use indexer::engine::{Applied, Change, EngineError, EngineQuery, Found, SearchEngine, Stored, StreamPosition};
use indexer::metrics::Metrics;
use indexer::services::effects::Incoming;
use indexer::services::indexing::Indexing;
use indexer::services::reindex::{Reindex, State};
use indexer::services::turn::Turn;
use migrations::rows;
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::world::World;
use crate::{ask, chats, embedded_engine, ids};

/// How the engine takes a batch in which a message says "poison".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Refuses,
    Fails,
}

/// The embedded engine with something in front of it that does not take everything.
#[derive(Debug)]
struct Picky {
    engine: Arc<dyn SearchEngine>,
    manner: Manner,
    /// Calls that find the engine away before one finds it there.
    away: AtomicU32,
    /// The cursor of each load that was taken.
    cursors: Mutex<Vec<i64>>,
}

impl Picky {
    fn new(engine: Arc<dyn SearchEngine>, manner: Manner, away: u32) -> Arc<Self> {
        Arc::new(Self {
            engine,
            manner,
            away: AtomicU32::new(away),
            cursors: Mutex::default(),
        })
    }

    fn take(&self, changes: &[Change]) -> Result<(), EngineError> {
        let left = |left: u32| left.checked_sub(1);
        if self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            return Err(EngineError::Unavailable("away for now".to_owned()));
        }
        let is_poison =
            |change: &Change| matches!(change, Change::Upsert(message) if message.content.contains("poison"));
        match self.manner {
            _ if !changes.iter().any(is_poison) => Ok(()),
            Manner::Refuses => Err(EngineError::Rejected("a poisoned document".to_owned())),
            Manner::Fails => Err(EngineError::Failed("a bug met a document".to_owned())),
        }
    }
}

#[async_trait]
impl SearchEngine for Picky {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn is_shared(&self) -> bool {
        self.engine.is_shared()
    }

    async fn apply(&self, changes: Vec<Change>, position: Option<StreamPosition>) -> Result<Applied, EngineError> {
        self.take(&changes)?;
        self.engine.apply(changes, position).await
    }

    async fn search(&self, query: EngineQuery) -> Result<Found, EngineError> {
        self.engine.search(query).await
    }

    async fn check(&self) -> Result<String, EngineError> {
        self.engine.check().await
    }

    async fn writable(&self) -> Result<(), EngineError> {
        self.engine.writable().await
    }

    async fn documents(&self) -> Result<u64, EngineError> {
        self.engine.documents().await
    }

    async fn stored(&self, after: MessageId, until: MessageId) -> Result<Vec<Stored>, EngineError> {
        self.engine.stored(after, until).await
    }

    async fn position(&self) -> Result<Option<StreamPosition>, EngineError> {
        self.engine.position().await
    }

    async fn incomplete(&self) -> Result<Option<String>, EngineError> {
        self.engine.incomplete().await
    }

    async fn rebuild_begin(&self) -> Result<i64, EngineError> {
        self.engine.rebuild_begin().await
    }

    async fn rebuild_load(&self, changes: Vec<Change>, cursor: i64) -> Result<(), EngineError> {
        self.take(&changes)?;
        self.engine.rebuild_load(changes, cursor).await?;
        self.cursors.lock().expect("no panic").push(cursor);
        Ok(())
    }

    async fn rebuild_finish(&self) -> Result<(), EngineError> {
        self.engine.rebuild_finish().await
    }

    async fn rebuild_abort(&self) -> Result<(), EngineError> {
        self.engine.rebuild_abort().await
    }
}

/// The event that tells of a new message.
fn created(id: i64, content: &str) -> Incoming {
    let now = time::OffsetDateTime::now_utc();
    let at = now.format(&Rfc3339).expect("a time");
    let data = json!({
        "message": {"id": id, "chat_id": 1, "seq": id, "sender_id": 7, "content": content,
                    "created_at": at, "edited_at": null, "deleted_at": null},
        "version": 1,
        "chat": {"id": 1, "name": null, "kind": "group"},
    });
    let event = Event::new(EventType::MessageCreated, 1.into(), 1, now, data);
    Incoming {
        position: StreamPosition {
            epoch: uuid::Uuid::from_u128(1),
            sequence: id.unsigned_abs(),
        },
        subject: EventType::MessageCreated.subject(1.into(), 1),
        deliveries: 1,
        body: serde_json::to_vec(&event).expect("JSON").into(),
    }
}

fn indexing(world: &World, engine: &Arc<Picky>) -> Indexing {
    Indexing::new(
        world.pool.clone(),
        Arc::clone(engine) as Arc<dyn SearchEngine>,
        Metrics::default(),
        8,
        CancellationToken::new(),
    )
}

async fn letters(world: &World) -> Vec<(i64, String)> {
    sqlx::query_as("SELECT stream_sequence, reason FROM dead_letters ORDER BY stream_sequence")
        .fetch_all(&world.pool)
        .await
        .expect("dead letters")
}

async fn found(engine: &dyn SearchEngine) -> Vec<i64> {
    let query = EngineQuery {
        chats: chats([1]),
        ..ask("words")
    };
    let mut found = ids(engine, query).await;
    found.sort_unstable();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_batch_is_halved_until_the_culprit_is_alone() {
    let (_folder, engine) = embedded_engine();
    let world = World::new(Arc::clone(&engine)).await;
    let picky = Picky::new(engine, Manner::Refuses, 0);
    let poisoned = [4, 11];
    let events: Vec<Incoming> = (1..=16)
        .map(|id| {
            created(
                id,
                if poisoned.contains(&id) {
                    "poison words"
                } else {
                    "good words"
                },
            )
        })
        .collect();
    indexing(&world, &picky).process(&events).await.expect("processed");
    let good: Vec<i64> = (1..=16).filter(|id| !poisoned.contains(id)).collect();
    assert_eq!(found(picky.as_ref()).await, good);
    let letters = letters(&world).await;
    assert_eq!(letters.iter().map(|letter| letter.0).collect::<Vec<_>>(), poisoned);
    assert!(
        letters.iter().all(|letter| letter.1 == "a poisoned document"),
        "{letters:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_at_which_an_engine_fails_time_and_again_is_suspected() {
    let (_folder, engine) = embedded_engine();
    let world = World::new(Arc::clone(&engine)).await;
    let picky = Picky::new(engine, Manner::Fails, 0);
    let events = [created(1, "good words"), created(2, "poison words")];
    indexing(&world, &picky).process(&events).await.expect("processed");
    assert_eq!(found(picky.as_ref()).await, [1]);
    assert_eq!(letters(&world).await, [(2, "a bug met a document".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_away_blames_no_batch_however_long_it_takes() {
    let (_folder, engine) = embedded_engine();
    let world = World::new(Arc::clone(&engine)).await;
    // Longer than a batch is trusted at which an engine fails.
    let picky = Picky::new(engine, Manner::Refuses, indexer::services::indexing::SUSPECT_AFTER + 1);
    indexing(&world, &picky)
        .process(&[created(1, "good words"), created(2, "more words")])
        .await
        .expect("processed");
    assert_eq!(found(picky.as_ref()).await, [1, 2]);
    assert!(letters(&world).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_leaves_out_what_is_refused_and_no_more() {
    let (_folder, engine) = embedded_engine();
    let world = World::new(Arc::clone(&engine)).await;
    let (workspace, owner) = rows::workspace(&world.pool, "picky").await;
    let chat = world
        .chat(workspace, ChatKind::PublicChannel, "general", &[owner])
        .await;
    let now = time::OffsetDateTime::now_utc();
    let mut written = Vec::new();
    for n in 0..20 {
        let content = if n == 3 { "poison words" } else { "good words" };
        written.push(world.write(chat, owner, content, now).await);
    }
    let picky = Picky::new(Arc::clone(&engine), Manner::Refuses, 0);
    let settings = config::Reindex { chunk: 8, pause_ms: 0 };
    let reindex = Reindex::new(
        world.pool.clone(),
        Arc::clone(&picky) as Arc<dyn SearchEngine>,
        settings,
        CancellationToken::new(),
    );
    assert!(reindex.start("a test"));
    tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while reindex.progress().state == State::Running {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("an end");
    let progress = reindex.progress();
    assert_eq!(
        (progress.state, progress.loaded, progress.refused),
        (State::Done, 20, 1)
    );
    assert_eq!(engine.documents().await.expect("a count"), 19);
    // Whoever takes the rebuild up must not pass over the rest of a chunk that was loaded in parts.
    let cursors = picky.cursors.lock().expect("no panic").clone();
    let ends = [0, written[7], written[15], written[19]];
    assert!(cursors.len() > 4, "the first chunk came in parts: {cursors:?}");
    let in_parts = cursors.len() - 3;
    assert!(
        cursors[..in_parts].iter().all(|&cursor| cursor == ends[0]),
        "{cursors:?}"
    );
    assert_eq!(cursors[in_parts..], ends[1..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_at_a_time_writes_to_a_shared_engine() {
    let (_folder, engine) = embedded_engine();
    let world = World::new(engine).await;
    let patience = std::time::Duration::from_secs(20);
    let (first, second) = (Turn::new(world.pool.clone(), true), Turn::new(world.pool.clone(), true));
    assert!(!first.is_ours().await, "nobody has it before it is taken");
    assert!(first.take().await.expect("PostgreSQL"));
    assert!(first.take().await.expect("PostgreSQL"), "it stays with whoever has it");
    assert!(!second.take().await.expect("PostgreSQL") && !second.is_ours().await);
    // An engine of one process alone knows no turns.
    assert!(Turn::new(world.pool.clone(), false).take().await.expect("PostgreSQL"));

    // The process ends, in whatever way.
    drop(first);
    let taken = async {
        while !second.take().await.expect("PostgreSQL") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(patience, taken).await.expect("its turn");
    assert!(second.is_ours().await);

    // PostgreSQL ends the connection: whoever had it must know before another batch.
    let ended: i64 = sqlx::query_scalar(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_locks
         WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .fetch_one(&world.pool)
    .await
    .expect("ended");
    assert_eq!(ended, 1);
    let lost = async {
        while second.is_ours().await {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(patience, lost).await.expect("the loss is noticed");
    // PostgreSQL gives the lock back a moment after its client has seen the end; then it can be taken again.
    let taken = async {
        while !second.take().await.expect("PostgreSQL") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(patience, taken).await.expect("its turn");
}
