//! Servers, relays, senders, and a consumer that keeps the contract.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer};
use chat_service::outbox_relay::{self, Config, Status, Wake};
use dev::{nats, ports, postgres};
use fechatter_core::events::{
    Event, EventType, HEADER_EPOCH, HEADER_MESSAGE_ID, HEADER_POSITION, HEADER_SHARD, METADATA_EPOCH, STREAM, shard_of,
};
use futures::StreamExt;
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longest wait for any state in these tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
pub async fn until<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A migrated database of this test's own.
pub struct Database(postgres::TestDatabase);

impl Database {
    pub async fn start() -> Self {
        Self::on(postgres::Server::shared()).await
    }

    pub async fn on(server: &postgres::Server) -> Self {
        let database = Self(server.database().unwrap());
        migrations::MIGRATOR.run(&database.pool().await).await.unwrap();
        database
    }

    /// As the owner of the schema.
    pub async fn pool(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(12)
            .connect(&self.0.owner_url())
            .await
            .unwrap()
    }

    /// As the owner, on a single connection.
    pub async fn single(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(1)
            .connect(&self.0.owner_url())
            .await
            .unwrap()
    }

    /// As chat_service, with no more rights than it has.
    async fn service_pool(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(12)
            .connect(&self.0.url("chat"))
            .await
            .unwrap()
    }
}

/// A NATS server of this test's own, with the users and permissions of a real one.
pub struct Nats {
    pub server: nats::Server,
    folder: tempfile::TempDir,
}

impl Nats {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = nats::Server::start(nats::Options {
            data: folder.path().join("data"),
            port: ports::free().unwrap(),
            log: folder.path().join("nats.log"),
            users: nats::USERS
                .map(|user| (user.to_owned(), format!("{user}-password")))
                .to_vec(),
            sync_always: false,
        })
        .unwrap();
        Self { server, folder }
    }

    /// As chat_service connects.
    pub async fn client(&self) -> async_nats::Client {
        let config = service_runtime::config::Nats {
            url: self.server.url(),
            user: Some("chat".to_owned()),
            password: Some("chat-password".into()),
            stream_replicas: 1,
        };
        service_runtime::nats::connect(&config, "chat").await.unwrap()
    }

    /// Keeps a copy of a stopped server's data.
    pub fn copy_data(&self) -> PathBuf {
        let copy = self.folder.path().join("older");
        copy_folder(&self.folder.path().join("data"), &copy);
        copy
    }

    /// Puts an older disk into a stopped server.
    pub fn replace_data(&self, older: &Path) {
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        copy_folder(older, &data);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

/// A running relay, as a process of its own would have it.
pub struct Relay {
    pub task: JoinHandle<()>,
    pub status: Status,
    pub wake: Arc<Wake>,
    pub shutdown: CancellationToken,
}

impl Relay {
    pub async fn start(database: &Database, nats: &Nats) -> Self {
        Self::with(database, nats, Config::default()).await
    }

    pub async fn with(database: &Database, nats: &Nats, config: Config) -> Self {
        let (wake, shutdown) = (Arc::new(Wake::default()), CancellationToken::new());
        let pool = database.service_pool().await;
        let client = nats.client().await;
        let (task, status) = outbox_relay::spawn(pool, client, config, 1, Arc::clone(&wake), shutdown.clone());
        Self {
            task,
            status,
            wake,
            shutdown,
        }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(8), self.task)
            .await
            .expect("the relay stops in time")
            .unwrap();
    }
}

/// Appends `count` events of a chat in one transaction, as the schema asks: position first, then the rows.
pub async fn append(pool: &PgPool, chat: i64, count: i64, commit: bool) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let shard = shard_of(chat);
    let last: i64 = sqlx::query_scalar(
        "UPDATE outbox_shards SET last_position = last_position + $2 WHERE shard = $1 RETURNING last_position",
    )
    .bind(shard)
    .bind(count)
    .fetch_one(&mut *transaction)
    .await?;
    for position in last - count + 1..=last {
        sqlx::query(
            "INSERT INTO outbox (shard, position, event_id, event_type, workspace_id, scope_id, data, traceparent)
             VALUES ($1, $2, $3, 'message.created', 7, $4, $5,
                     '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01')",
        )
        .bind(shard)
        .bind(position)
        .bind(Uuid::now_v7())
        .bind(chat)
        .bind(json!({ "position": position }))
        .execute(&mut *transaction)
        .await?;
    }
    if commit {
        transaction.commit().await
    } else {
        transaction.rollback().await
    }
}

/// Senders at work in the background until told to stop.
pub struct Load {
    pub stop: CancellationToken,
    pub tasks: Vec<JoinHandle<()>>,
    pub appended: Arc<AtomicU64>,
}

impl Load {
    pub async fn start(database: &Database, senders: i64, wake: Option<Arc<Wake>>) -> Self {
        let stop = CancellationToken::new();
        let appended = Arc::new(AtomicU64::new(0));
        let pool = database.pool().await;
        let tasks = (0..senders)
            .map(|sender| {
                let (pool, stop, wake, appended) = (pool.clone(), stop.clone(), wake.clone(), Arc::clone(&appended));
                tokio::spawn(async move {
                    for round in 0_i64.. {
                        if stop.is_cancelled() {
                            return;
                        }
                        let chat = (sender * 31 + round * 7) % 48 + 1;
                        // Every ninth transaction changes its mind: its positions go to the next one.
                        let commit = round % 9 != 8;
                        let count = round % 3 + 1;
                        if append(&pool, chat, count, commit).await.is_ok() && commit {
                            appended.fetch_add(count.unsigned_abs(), Ordering::Relaxed);
                            if let Some(wake) = &wake {
                                wake.notify(shard_of(chat));
                            }
                        }
                    }
                })
            })
            .collect();
        Self { stop, tasks, appended }
    }

    /// Waits until so many events more were appended.
    pub async fn run_for(&self, events: u64) {
        let goal = self.appended.load(Ordering::Relaxed) + events;
        until("enough was appended", async || {
            self.appended.load(Ordering::Relaxed) >= goal
        })
        .await;
    }

    pub async fn finish(self) -> u64 {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.appended.load(Ordering::Relaxed)
    }
}

/// What a consumer that keeps the contract saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub events: BTreeMap<i16, Vec<(i64, Uuid)>>,
    /// Copies that it dropped, by their position.
    pub copies: usize,
    /// Events of earlier histories that it dropped.
    pub foreign: usize,
}

/// Reads the whole stream as a consumer has to.
pub async fn read_stream(nats: &Nats) -> (Uuid, Seen) {
    let context = jetstream::new(nats.client().await);
    let stream = context.get_stream(STREAM).await.unwrap();
    let epoch: Uuid = stream.cached_info().config.metadata[METADATA_EPOCH].parse().unwrap();
    let mut seen = Seen::default();
    let state = &stream.cached_info().state;
    if state.messages == 0 {
        return (epoch, seen);
    }
    let consumer = stream
        .create_consumer(consumer::pull::OrderedConfig::default())
        .await
        .unwrap();
    let mut messages = consumer.messages().await.unwrap();
    loop {
        let message = tokio::time::timeout(PATIENCE, messages.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let headers = message.headers.as_ref().unwrap();
        let header = |name: &str| headers.get(name).unwrap().as_str().to_owned();
        if header(HEADER_EPOCH) == epoch.to_string() {
            let shard: i16 = header(HEADER_SHARD).parse().unwrap();
            let position: i64 = header(HEADER_POSITION).parse().unwrap();
            let (event_type, event) = Event::parse(&message.payload).unwrap();
            let chat: i64 = event.subject.strip_prefix("chat/").unwrap().parse().unwrap();
            assert_eq!(event_type, EventType::MessageCreated);
            assert_eq!(shard_of(chat), shard);
            assert_eq!(
                message.subject.as_str(),
                format!("fechatter.7.chat.{chat}.message.created")
            );
            assert_eq!(
                event.payload::<serde_json::Value>().unwrap(),
                json!({ "position": position })
            );
            assert!(header(HEADER_MESSAGE_ID).starts_with(&event.id.simple().to_string()));
            assert_eq!(
                header("traceparent"),
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            );
            let of_shard = seen.events.entry(shard).or_default();
            match of_shard.last() {
                Some((last, _)) if position <= *last => seen.copies += 1,
                Some((last, _)) => {
                    assert_eq!(position, last + 1, "a hole or a reordering in shard {shard}");
                    of_shard.push((position, event.id));
                }
                None => of_shard.push((position, event.id)),
            }
        } else {
            seen.foreign += 1;
        }
        if message.info().unwrap().stream_sequence == state.last_sequence {
            return (epoch, seen);
        }
    }
}

async fn expected(pool: &PgPool) -> BTreeMap<i16, Vec<(i64, Uuid)>> {
    let rows: Vec<(i16, i64, Uuid)> =
        sqlx::query_as("SELECT shard, position, event_id FROM outbox ORDER BY shard, position")
            .fetch_all(pool)
            .await
            .unwrap();
    let mut events: BTreeMap<i16, Vec<(i64, Uuid)>> = BTreeMap::new();
    for (shard, position, id) in rows {
        events.entry(shard).or_default().push((position, id));
    }
    events
}

pub async fn unpublished(pool: &PgPool) -> i64 {
    sqlx::query_scalar(
        "SELECT sum(last_position - published_position)::bigint FROM outbox_shards JOIN outbox_progress USING (shard)",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

/// Waits until all is published, then compares the stream with the outbox.
pub async fn assert_complete(database: &Database, nats: &Nats) -> (Uuid, Seen) {
    let pool = database.pool().await;
    until("everything is published", async || unpublished(&pool).await == 0).await;
    let (epoch, seen) = read_stream(nats).await;
    let expected = expected(&pool).await;
    for (shard, events) in &expected {
        assert_eq!(seen.events.get(shard), Some(events), "shard {shard}");
    }
    let epochs: Vec<Option<Uuid>> = sqlx::query_scalar("SELECT DISTINCT stream_epoch FROM outbox_progress")
        .fetch_all(&pool)
        .await
        .unwrap();
    assert_eq!(epochs, [Some(epoch)]);
    (epoch, seen)
}
