//! A whole small world for one test: PostgreSQL, NATS with the users and the stream of a real platform, a JWKS endpoint,
//! and notify_service as real processes.

mod client;
mod writes;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use dev::child::{Process, Program};
use dev::postgres::TestDatabase;
use fechatter_core::events::{METADATA_EPOCH, STREAM, SUBJECTS};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

pub use client::{Frame, Sse, contents};
pub use writes::{Chat, Publisher, User};

/// Longest wait for a state that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running world.
pub struct World {
    pub pool: PgPool,
    database: TestDatabase,
    nats: Mutex<dev::nats::Server>,
    pub publisher: Publisher,
    signing: Vec<u8>,
    jwks_url: String,
    folder: tempfile::TempDir,
    pub http: reqwest::Client,
}

/// A running notify_service.
pub struct Notify {
    pub port: u16,
    pub admin_port: u16,
    program: Program,
    process: Mutex<Process>,
}

impl Notify {
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn log(&self) -> String {
        dev::child::log_tail(&self.program.log)
    }

    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.process.lock().expect("a process").id()
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.process.lock().expect("a process").kill();
    }

    /// Starts it again, on the same ports.
    pub fn restart(&self) {
        *self.process.lock().expect("a process") = Process::start(&self.program).expect("notify_service");
    }

    /// Runs an operator's command with its configuration: exit code and standard output.
    pub fn operate(&self, args: &[&str]) -> (i32, String) {
        let mut command = std::process::Command::new(&self.program.path);
        command
            .args(args)
            .envs(self.program.env.iter().cloned())
            .current_dir(&self.program.dir);
        let output = tokio::task::block_in_place(|| command.output()).expect("the command");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        (output.status.code().expect("an exit code"), text)
    }

    /// SIGTERM; gives back when it has ended.
    pub fn stop(&self) {
        let mut process = self.process.lock().expect("a process");
        tokio::task::block_in_place(|| process.stop(dev::child::Signal::SIGTERM, PATIENCE));
    }
}

impl World {
    pub async fn new() -> Self {
        Self::on(dev::postgres::Server::shared()).await
    }

    /// A world on a PostgreSQL server of the test's own.
    pub async fn on(server: &dev::postgres::Server) -> Self {
        let database = server.database().expect("a database");
        let pool = PgPool::connect(&database.owner_url()).await.expect("a connection");
        migrations::MIGRATOR.run(&pool).await.expect("the schema");
        let folder = dev::scratch::folder().expect("a folder");
        let nats = dev::nats::Server::start(dev::nats::Options {
            data: folder.path().join("nats"),
            port: dev::ports::free().expect("a port"),
            log: folder.path().join("nats.log"),
            users: dev::nats::USERS
                .map(|user| (user.to_owned(), format!("{user}-password")))
                .to_vec(),
            sync_always: false,
        })
        .expect("a NATS server");
        let pair = Ed25519KeyPair::generate().expect("a key");
        let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let jwks =
            json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "k1", "x": x}]});
        let mut world = Self {
            publisher: Publisher::new(connect(nats.url(), "chat").await),
            pool,
            database,
            nats: Mutex::new(nats),
            signing: pair.to_pkcs8().expect("a key").as_ref().to_vec(),
            jwks_url: serve_jwks(jwks).await,
            folder,
            http: reqwest::Client::new(),
        };
        world.make_stream().await;
        world
    }

    /// The NATS server.
    pub fn nats(&self) -> MutexGuard<'_, dev::nats::Server> {
        self.nats.lock().expect("a server")
    }

    /// Makes the stream, with a history of its own.
    pub async fn make_stream(&mut self) {
        let epoch = Uuid::now_v7();
        self.publisher.begin(epoch);
        self.publisher
            .context
            .create_stream(stream::Config {
                name: STREAM.to_owned(),
                subjects: vec![SUBJECTS.to_owned()],
                metadata: HashMap::from([(METADATA_EPOCH.to_owned(), epoch.to_string())]),
                allow_direct: true,
                ..stream::Config::default()
            })
            .await
            .expect("the stream");
    }

    /// Starts a notify_service and waits until it is ready.
    pub async fn notify(&self, settings: &[(&str, &str)]) -> Notify {
        let notify = self.launch(settings);
        self.ready(&notify).await;
        notify
    }

    /// Starts a notify_service.
    pub fn launch(&self, settings: &[(&str, &str)]) -> Notify {
        let (port, admin_port) = (dev::ports::free().expect("a port"), dev::ports::free().expect("a port"));
        let log = self.folder.path().join(format!("notify-{port}.log"));
        let own = [
            ("LISTEN", format!("127.0.0.1:{port}")),
            ("ADMIN_LISTEN", format!("127.0.0.1:{admin_port}")),
            ("DATABASE__URL", self.database.url("notify")),
            ("NATS__URL", self.nats().url()),
            ("NATS__USER", "notify".to_owned()),
            ("NATS__PASSWORD", "notify-password".to_owned()),
            ("AUTH__JWKS_URL", self.jwks_url.clone()),
            ("DRAIN_SECONDS", "3".to_owned()),
            ("DRAIN_DELAY_MS", "0".to_owned()),
        ];
        let given = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let program = Program {
            name: "notify_service".to_owned(),
            path: PathBuf::from(env!("CARGO_BIN_EXE_notify_service")),
            args: Vec::new(),
            env: own
                .into_iter()
                .chain(given)
                .map(|(name, value)| (format!("FECHATTER_NOTIFY__{name}"), value))
                .collect(),
            log,
            user: None,
            dir: self.folder.path().to_owned(),
        };
        let process = Process::start(&program).expect("notify_service");
        Notify {
            port,
            admin_port,
            program,
            process: Mutex::new(process),
        }
    }

    /// Waits until it is ready.
    pub async fn ready(&self, notify: &Notify) {
        let url = format!("http://127.0.0.1:{}/ready", notify.admin_port);
        eventually(&format!("{url}\n{}", notify.log()), async || {
            let answer = self.http.get(&url).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// Cuts everybody off the database.
    pub async fn close_database(&self) {
        let name: String = sqlx::query_scalar("SELECT current_database()")
            .fetch_one(&self.pool)
            .await
            .expect("a name");
        dev::postgres::Server::shared()
            .psql(
                "postgres",
                &format!(
                    "ALTER DATABASE {name} ALLOW_CONNECTIONS false;
                     SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
                ),
            )
            .expect("the end of the connections");
    }

    /// JetStream as notify_service sees it.
    pub async fn jetstream(&self) -> jetstream::Context {
        let url = self.nats().url();
        connect(url, "notify").await
    }

    /// `/health` of a process.
    pub async fn health(&self, notify: &Notify) -> Value {
        let answer = self.http.get(notify.url("/health")).send().await.expect("an answer");
        answer.json().await.expect("JSON")
    }

    /// `/metrics` of a process.
    pub async fn metrics(&self, notify: &Notify) -> String {
        let url = format!("http://127.0.0.1:{}/metrics", notify.admin_port);
        let answer = self.http.get(url).send().await.expect("an answer");
        answer.text().await.expect("text")
    }
}

/// Connects as one of the services.
async fn connect(url: String, user: &'static str) -> jetstream::Context {
    let config = service_runtime::config::Nats {
        url,
        user: Some(user.to_owned()),
        password: Some(format!("{user}-password").into()),
        stream_replicas: 1,
    };
    jetstream::new(service_runtime::nats::connect(&config, user).await.expect("NATS"))
}

async fn serve_jwks(document: Value) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/jwks", listener.local_addr().expect("an address"));
    let router = axum::Router::new().route("/jwks", axum::routing::get(async move || axum::Json(document)));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// Waits for a state that must come, with a bound.
pub async fn eventually(what: &str, state: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !state().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
