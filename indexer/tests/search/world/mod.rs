//! A whole small world for one test: PostgreSQL, NATS with the stream as chat_service makes it, a JWKS endpoint, and the
//! indexer as the real process.

mod client;
mod writes;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use dev::child::{Process, Program};
use dev::postgres::TestDatabase;
use fechatter_core::chat::ChatKind;
use fechatter_core::events::{METADATA_EPOCH, STREAM, SUBJECTS};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

pub use writes::envelope;

/// Longest wait for a state that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A user of the world.
#[derive(Debug, Clone, Copy)]
pub struct User {
    pub id: i64,
    pub workspace: i64,
}

/// A chat of the world.
#[derive(Debug, Clone, Copy)]
pub struct Chat {
    pub id: i64,
    pub workspace: i64,
    pub kind: ChatKind,
}

/// A running world.
pub struct World {
    pub pool: PgPool,
    database: TestDatabase,
    pub nats: dev::nats::Server,
    context: jetstream::Context,
    pub epoch: Uuid,
    positions: HashMap<i16, i64>,
    signing: Vec<u8>,
    jwks_url: String,
    pub folder: tempfile::TempDir,
    port: u16,
    pub admin_port: u16,
    pub indexer: Option<Process>,
    pub http: reqwest::Client,
    settings: Vec<(String, String)>,
}

impl World {
    /// A world with an indexer that runs.
    pub async fn new() -> Self {
        let mut world = Self::without_indexer().await;
        world.start().await;
        world
    }

    /// A world whose indexer is not started yet.
    pub async fn without_indexer() -> Self {
        Self::on(dev::postgres::Server::shared()).await
    }

    /// Such a world on a PostgreSQL server of the test's own.
    pub async fn on(server: &dev::postgres::Server) -> Self {
        let database = server.database().expect("a database");
        let pool = PgPool::connect(&database.owner_url()).await.expect("a connection");
        migrations::MIGRATOR.run(&pool).await.expect("the schema");
        let nats = dev::nats::Server::temporary().expect("a NATS server");
        let client = async_nats::connect(nats.url()).await.expect("a NATS connection");
        let pair = Ed25519KeyPair::generate().expect("a key");
        let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let jwks =
            json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "k1", "x": x}]});
        let mut world = Self {
            pool,
            database,
            nats,
            context: jetstream::new(client),
            epoch: Uuid::now_v7(),
            positions: HashMap::new(),
            signing: pair.to_pkcs8().expect("a key").as_ref().to_vec(),
            jwks_url: serve_jwks(jwks).await,
            folder: dev::scratch::folder().expect("a folder"),
            port: dev::ports::free().expect("a port"),
            admin_port: dev::ports::free().expect("a port"),
            indexer: None,
            http: reqwest::Client::new(),
            settings: Vec::new(),
        };
        world.make_stream().await;
        world
    }

    /// Sets a variable of the indexer, without its prefix.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings
            .push((format!("FECHATTER_INDEXER__{name}"), value.to_owned()));
    }

    /// Makes the stream, with a history of its own.
    pub async fn make_stream(&mut self) {
        self.epoch = Uuid::now_v7();
        self.positions.clear();
        self.context
            .create_stream(stream::Config {
                name: STREAM.to_owned(),
                subjects: vec![SUBJECTS.to_owned()],
                metadata: HashMap::from([(METADATA_EPOCH.to_owned(), self.epoch.to_string())]),
                ..stream::Config::default()
            })
            .await
            .expect("the stream");
    }

    /// Destroys the stream with everything in it, consumers included.
    pub async fn destroy_stream(&self) {
        self.context.delete_stream(STREAM).await.expect("the stream is gone");
    }

    pub fn index_folder(&self) -> PathBuf {
        self.folder.path().join("index")
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut environment: Vec<(String, String)> = [
            ("LISTEN", format!("127.0.0.1:{}", self.port)),
            ("ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin_port)),
            ("DATABASE__URL", self.database.url("indexer")),
            ("NATS__URL", self.nats.url()),
            ("AUTH__JWKS_URL", self.jwks_url.clone()),
            ("ENGINE__PATH", self.index_folder().display().to_string()),
            ("ENGINE__WRITER_MEMORY_MB", "15".to_owned()),
            ("DRAIN_SECONDS", "2".to_owned()),
            ("DRAIN_DELAY_MS", "0".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (format!("FECHATTER_INDEXER__{name}"), value))
        .collect();
        environment.extend(self.settings.clone());
        environment
    }

    fn program(&self, args: &[&str], log: &str) -> Program {
        Program {
            name: "indexer".to_owned(),
            path: PathBuf::from(env!("CARGO_BIN_EXE_indexer")),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: self.environment(),
            log: self.folder.path().join(log),
            user: None,
            dir: self.folder.path().to_owned(),
        }
    }

    /// Starts the indexer and waits until it is ready.
    pub async fn start(&mut self) {
        self.indexer = Some(Process::start(&self.program(&[], "indexer.log")).expect("the indexer"));
        let url = format!("http://127.0.0.1:{}/ready", self.admin_port);
        self.eventually("the indexer to be ready", async || {
            self.http
                .get(&url)
                .send()
                .await
                .is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.indexer.take().expect("a running indexer").kill();
    }

    /// Runs a command of the indexer to its good end and returns its output.
    pub async fn command(&self, args: &[&str]) -> String {
        let (succeeded, output) = self.try_command(args).await;
        assert!(succeeded, "{output}");
        output
    }

    /// Runs a command of the indexer to its end; whether it succeeded, and its output.
    pub async fn try_command(&self, args: &[&str]) -> (bool, String) {
        let mut process = Process::start(&self.program(args, "command.log")).expect("the command");
        tokio::task::spawn_blocking(move || {
            let status = dev::wait::until(PATIENCE, "the command to end", || process.ended()).expect("an end");
            (status.success(), process.log_tail())
        })
        .await
        .expect("a result")
    }

    /// Runs an operator's command to its end: exit code, standard output and standard error.
    pub async fn operate(&self, args: &[&str]) -> (i32, String, String) {
        let program = self.program(args, "unused.log");
        tokio::task::spawn_blocking(move || {
            let output = std::process::Command::new(&program.path)
                .args(&program.args)
                .envs(program.env)
                .current_dir(&program.dir)
                .output()
                .expect("the command");
            let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
            (
                output.status.code().expect("an exit code"),
                text(output.stdout),
                text(output.stderr),
            )
        })
        .await
        .expect("a result")
    }

    /// The end of the indexer's log.
    pub fn log(&self) -> String {
        dev::child::log_tail(&self.folder.path().join("indexer.log"))
    }

    /// Waits for a state that must come, with a bound.
    pub async fn eventually(&self, what: &str, state: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !state().await {
            assert!(
                tokio::time::Instant::now() < deadline,
                "waited in vain for {what}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Events that were delivered or wait, and are not acknowledged yet.
    pub async fn unacknowledged(&self) -> u64 {
        match self
            .context
            .get_stream(STREAM)
            .await
            .expect("the stream")
            .consumer_info("indexer")
            .await
        {
            Ok(info) => info.num_pending + info.num_ack_pending as u64,
            Err(_) => u64::MAX,
        }
    }

    /// Takes every waiting event as the indexer would, and gives it back at once.
    pub async fn take_and_give_back(&self) {
        let taken = self.take(100).await;
        assert!(!taken.is_empty(), "no event was waiting");
        for message in taken {
            message
                .ack_with(jetstream::AckKind::Nak(None))
                .await
                .expect("given back");
        }
        self.context.client().flush().await.expect("a flush");
    }

    /// Takes events and never acknowledges them, as a hung process would.
    pub async fn take_and_hold(&self, events: usize) {
        assert_eq!(self.take(events).await.len(), events);
    }

    async fn take(&self, most: usize) -> Vec<jetstream::Message> {
        use futures::TryStreamExt;
        let stream = self.context.get_stream(STREAM).await.expect("the stream");
        let consumer: jetstream::consumer::PullConsumer = stream.get_consumer("indexer").await.expect("the consumer");
        let messages = consumer.fetch().max_messages(most).messages().await.expect("messages");
        messages.try_collect().await.expect("messages")
    }

    /// Waits until everything published is acknowledged.
    pub async fn settled(&self) {
        self.eventually("all events to be acknowledged", async || {
            self.unacknowledged().await == 0
        })
        .await;
    }

    /// What the indexer says of its rebuild.
    pub async fn rebuild(&self) -> Value {
        let url = format!("http://127.0.0.1:{}/reindex", self.admin_port);
        let answer = self.http.get(url).send().await.expect("an answer");
        answer.json().await.expect("JSON")
    }

    /// Waits until the indexer has its consumer and its first rebuild is over.
    pub async fn settled_after_start(&self) {
        self.settled().await;
        self.eventually("the first rebuild", async || self.rebuild().await["state"] == "done")
            .await;
    }
}

async fn serve_jwks(jwks: Value) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/jwks.json", listener.local_addr().expect("an address"));
    let router = axum::Router::new().route(
        "/jwks.json",
        axum::routing::get(move || {
            let jwks = jwks.clone();
            async move { axum::Json(jwks) }
        }),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}
