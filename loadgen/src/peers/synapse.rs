//! Matrix Synapse on a PostgreSQL of its own: another chat server that promises to keep what it accepted.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use dev::child::{Process, Program};
use dev::postgres::{self, Server};
use dev::tools::{self, PythonProgram};
use dev::{ports, scratch};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::client::{Address, Call, Connection};
use crate::ledger::Ledger;
use crate::machine;
use crate::outcome::Fault;
use crate::processes::Watched;
use crate::progress::{Counters, is_stopped, say};
use crate::report::Report;
use crate::screens;
use crate::talk::Talk;
use crate::workers::{Work, Workers};

/// How long a client lets the server hold an empty answer, in milliseconds: what common clients ask for.
const POLL_MS: u64 = 30_000;
/// Longest wait for a long poll.
const PATIENCE: Duration = Duration::from_millis(POLL_MS + 30_000);
/// Connections to PostgreSQL.
const POOL: u32 = 10;
/// How long it may take to make its tables and listen.
const READY: Duration = Duration::from_mins(2);

/// What a client asks for that looks at messages and at nothing else: the least work.
const FILTER: &str = r#"{"presence":{"types":[]},"account_data":{"types":[]},"room":{"state":{"types":[]},"ephemeral":{"types":[]},"account_data":{"types":[]},"timeline":{"limit":100,"types":["m.room.message"]}}}"#;

/// A running server.
pub struct Synapse {
    port: u16,
    process: Process,
    database: Server,
    // After both, so that it is removed after they stopped.
    _folder: tempfile::TempDir,
}

/// Rooms and who is in them.
pub struct Rooms {
    /// Path to send to, and the sender's token.
    pub chats: Vec<(Arc<str>, Arc<str>)>,
    pub receivers: Vec<Arc<str>>,
}

/// A message: `PUT`, with a transaction id that no other message has.
pub fn wording(room: &Arc<str>, number: u64) -> (Method, Arc<str>, Bytes) {
    let body = json!({"msgtype": "m.text", "body": screens::content(number)}).to_string();
    (Method::PUT, format!("{room}/{number}").into(), body.into())
}

impl Synapse {
    /// Starts one process and its database, durable and without rate limits.
    pub fn start() -> anyhow::Result<Self> {
        let program = tools::synapse(&say)?;
        say("starting Synapse");
        let folder = scratch::folder()?;
        let path = folder.path();
        postgres::open_for_all(path)?;
        let password = secret()?;
        let database = Server::start(postgres::Options {
            data: path.join("postgres"),
            port: ports::free()?,
            log: path.join("postgres.log"),
            password: Some(password.clone()),
            fsync: true,
        })?;
        // What Synapse demands: an order that no update of the C library changes.
        database.psql(
            "postgres",
            "CREATE DATABASE synapse TEMPLATE template0 ENCODING UTF8 LC_COLLATE 'C' LC_CTYPE 'C'",
        )?;
        let port = ports::free()?;
        let config = configuration(path, port, database.port(), &password)?;
        let file = path.join("homeserver.json");
        // Holds secrets.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut file| file.write_all(config.to_string().as_bytes()))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let process = launch(&program, &file, path, port)?;
        Ok(Self {
            port,
            process,
            database,
            _folder: folder,
        })
    }

    /// Says in a report what was measured and how it was set up.
    pub fn describe(&self, report: &mut Report) {
        report.set(
            "synapse",
            format!(
                "{}: one process, HTTP without TLS, rate limits off, presence and federation off, no encryption, \
                 long polls of /sync that ask for messages alone",
                tools::SYNAPSE
            ),
        );
        let settings = machine::durability_of(&self.database);
        report
            .durability
            .extend(settings.into_iter().map(|setting| format!("synapse.{setting}")));
    }

    /// Where clients connect.
    pub fn address(&self) -> Address {
        Address::plain(SocketAddr::from(([127, 0, 0, 1], self.port)))
    }

    /// It and its database.
    pub fn watched(&self) -> Watched {
        let mut watched = Watched::default();
        watched.add("synapse", self.process.id());
        watched.add("postgres", self.database.process_id());
        watched
    }

    /// Makes people and private rooms of two, as clients would.
    pub async fn settle(&self, rooms: usize) -> anyhow::Result<Rooms> {
        let mut api = Api {
            connection: self
                .address()
                .connect()
                .await
                .map_err(|fault| anyhow::anyhow!("cannot reach Synapse ({fault:?})"))?,
        };
        api.connection.set_patience(PATIENCE);
        let mut made = Rooms {
            chats: Vec::with_capacity(rooms),
            receivers: Vec::with_capacity(rooms),
        };
        for number in 0..rooms {
            if number % 10 == 0 {
                say(&format!("making people and rooms in Synapse: {number} of {rooms}"));
            }
            if is_stopped() {
                bail!("interrupted");
            }
            let (_, sender) = api.register(&format!("sender{number}")).await?;
            let (name, receiver) = api.register(&format!("receiver{number}")).await?;
            let room = json!({"preset": "private_chat", "name": format!("load {number}"), "invite": [name]});
            let room = api.post("/_matrix/client/v3/createRoom", Some(&sender), &room).await?;
            let id = room["room_id"].as_str().context("a room without an id")?;
            // The one sign of an id that a path may not hold as it is would be `/`; ids are base64url or `!local:host`.
            let path = format!("/_matrix/client/v3/rooms/{id}");
            api.post(&format!("{path}/join"), Some(&receiver), &json!({})).await?;
            made.chats
                .push((format!("{path}/send/m.room.message").into(), sender.into()));
            made.receivers.push(receiver.into());
        }
        Ok(made)
    }

    /// Somebody who talks in the rooms, on this many connections.
    pub async fn talk(&self, rooms: &Rooms, connections: usize) -> anyhow::Result<Talk> {
        let first = Work {
            method: Method::GET,
            path: "/_matrix/client/v3/account/whoami".into(),
            token: Arc::clone(&rooms.chats.first().context("no rooms")?.1),
            body: None,
        };
        Ok(Talk {
            chats: rooms.chats.clone(),
            wording,
            workers: Workers::open(&self.address(), connections, &first).await?,
            watched: self.watched(),
            next: 0,
        })
    }
}

/// The configuration; JSON is YAML.
fn configuration(folder: &Path, port: u16, database: u16, password: &str) -> anyhow::Result<Value> {
    let many = json!({"per_second": 1_000_000, "burst_count": 1_000_000});
    let log = folder.join("log.json");
    let logging = json!({
        "version": 1,
        "root": {"level": "WARNING", "handlers": ["console"]},
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "disable_existing_loggers": false,
    });
    std::fs::write(&log, logging.to_string()).with_context(|| format!("cannot write {}", log.display()))?;
    Ok(json!({
        "server_name": "load.example",
        "listeners": [{
            "port": port, "bind_addresses": ["127.0.0.1"], "type": "http", "tls": false,
            "resources": [{"names": ["client"], "compress": false}],
        }],
        "database": {"name": "psycopg2", "args": {
            "host": "127.0.0.1", "port": database, "user": "postgres", "password": password, "dbname": "synapse",
            "cp_min": POOL, "cp_max": POOL,
        }},
        "log_config": log,
        "media_store_path": folder.join("media"),
        "signing_key_path": folder.join("signing.key"),
        "registration_shared_secret": secret()?,
        "macaroon_secret_key": secret()?,
        "form_secret": secret()?,
        "report_stats": false,
        "trusted_key_servers": [],
        "federation_domain_whitelist": [],
        "presence": {"enabled": false},
        "user_directory": {"enabled": false},
        "enable_registration": true,
        "enable_registration_without_verification": true,
        // Making people is not what is measured.
        "bcrypt_rounds": 4,
        "rc_message": many,
        "rc_registration": many,
        "rc_login": {"address": many, "account": many, "failed_attempts": many},
        "rc_joins": {"local": many, "remote": many},
        "rc_joins_per_room": many,
        "rc_invites": {"per_room": many, "per_user": many, "per_issuer": many},
        "rc_room_creation": many,
    }))
}

fn launch(program: &PythonProgram, config: &Path, folder: &Path, port: u16) -> anyhow::Result<Process> {
    let generate = |command: &mut Command| tools::run(command.arg("--generate-keys").arg("-c").arg(config));
    generate(&mut program.command()).context("Synapse cannot make its keys")?;
    let mut process = Process::start(&Program {
        name: "synapse".to_owned(),
        path: program.path(),
        args: vec!["-c".to_owned(), config.display().to_string()],
        env: vec![program.env()],
        log: folder.join("synapse.log"),
        user: None,
        dir: folder.to_owned(),
    })?;
    dev::wait::until_ready(READY, "Synapse to listen", || {
        if let Some(status) = process.ended() {
            return Some(Err(anyhow::anyhow!("Synapse ended ({status}): {}", process.log_tail())));
        }
        ports::is_open(port).then_some(Ok(()))
    })??;
    Ok(process)
}

/// 128 bits.
fn secret() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).context("no random numbers")?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// What clients ask of it besides messages.
struct Api {
    connection: Connection,
}

impl Api {
    async fn post(&mut self, path: &str, token: Option<&str>, body: &Value) -> anyhow::Result<Value> {
        let answer = self
            .connection
            .call(&Call::post(path, token, body.to_string().into_bytes()))
            .await
            .map_err(|fault| anyhow::anyhow!("POST {path} failed ({fault:?})"))?;
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status != 200 {
            bail!("POST {path} was answered {} {text}", answer.status);
        }
        serde_json::from_str(&text).with_context(|| format!("POST {path} was answered {text}"))
    }

    /// Makes a person and returns the name and the token.
    async fn register(&mut self, name: &str) -> anyhow::Result<(String, String)> {
        let body = json!({"username": name, "password": secret()?, "auth": {"type": "m.login.dummy"}});
        let person = self.post("/_matrix/client/v3/register", None, &body).await?;
        let field = |name: &str| {
            person[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {name}"))
        };
        Ok((field("user_id")?, field("access_token")?))
    }
}

/// Clients that look at rooms by long polls.
pub struct Syncs {
    readers: Vec<JoinHandle<()>>,
    failed: Arc<AtomicU64>,
}

impl Syncs {
    /// Each client looks once at what there is, and from then on for what is new.
    pub async fn open(
        address: &Address,
        receivers: &[Arc<str>],
        ledger: &Arc<Ledger>,
        counters: &Arc<Counters>,
    ) -> anyhow::Result<Self> {
        say(&format!("opening {} long polls", receivers.len()));
        let mut all = Self {
            readers: Vec::with_capacity(receivers.len()),
            failed: Arc::default(),
        };
        for (screen, token) in receivers.iter().enumerate() {
            let mut sync = Sync {
                address: address.clone(),
                connection: None,
                token: Arc::clone(token),
                since: String::new(),
                filter: percent_encoded(FILTER),
            };
            sync.step()
                .await
                .map_err(|fault| anyhow::anyhow!("a first /sync failed ({fault:?}): {}", fault.advice()))?;
            let (ledger, counters, failed) = (Arc::clone(ledger), Arc::clone(counters), Arc::clone(&all.failed));
            all.readers.push(tokio::spawn(async move {
                loop {
                    let Ok(body) = sync.step().await else {
                        failed.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    let at = Instant::now();
                    for number in screens::numbers_in(&body) {
                        if ledger.is_seen(number, screen, at) {
                            counters.delivered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }));
        }
        Ok(all)
    }

    /// Polls that failed and were sent again.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Syncs {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

struct Sync {
    address: Address,
    connection: Option<Connection>,
    token: Arc<str>,
    /// Where the last answer ended; empty before the first.
    since: String,
    filter: String,
}

impl Sync {
    /// One poll; returns the answer's body.
    async fn step(&mut self) -> Result<Bytes, Fault> {
        let mut connection = match self.connection.take() {
            Some(connection) if connection.is_open() => connection,
            _ => self.address.connect().await?,
        };
        connection.set_patience(PATIENCE);
        let path = if self.since.is_empty() {
            format!("/_matrix/client/v3/sync?timeout=0&filter={}", self.filter)
        } else {
            format!(
                "/_matrix/client/v3/sync?timeout={POLL_MS}&since={}&filter={}",
                self.since, self.filter
            )
        };
        let answer = connection.call(&Call::get(&path, &self.token)).await?;
        if let Some(fault) = Fault::of_status(answer.status) {
            return Err(fault);
        }
        // Only the cursor is looked at: a generator that takes everything apart would compete with the server.
        let next: Next = serde_json::from_slice(&answer.body).map_err(|_| Fault::Status)?;
        self.since = percent_encoded(&next.next_batch);
        self.connection = Some(connection);
        Ok(answer.body)
    }
}

#[derive(serde::Deserialize)]
struct Next {
    next_batch: String,
}

fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_survives_in_a_query() {
        assert_eq!(percent_encoded(r#"{"a":[1]}_~"#), "%7B%22a%22%3A%5B1%5D%7D_~");
        let parsed: Value = serde_json::from_str(FILTER).unwrap();
        assert_eq!(parsed["room"]["timeline"]["limit"], 100);
    }
}
