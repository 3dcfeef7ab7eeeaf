//! The indexer's configuration; environment prefix `FECHATTER_INDEXER__`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use fechatter_core::config::{Faults, Validate};
use observability::LogConfig;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use service_runtime::config::{
    Database, Nats, TokenCheck, default_drain_delay_ms, validate_drain_delay, validate_serving,
};

/// Prefix of the environment variables.
pub const ENV_PREFIX: &str = "FECHATTER_INDEXER__";

/// Everything that can be configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the gateway reaches the search API.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// `/live`, `/ready`, `/metrics`, `/reindex`; never public.
    #[serde(default = "default_admin_listen")]
    pub admin_listen: SocketAddr,
    /// Seconds that requests and the batch in flight may go on after SIGTERM, 0 to 600.
    #[serde(default = "default_drain_seconds")]
    pub drain_seconds: u64,
    /// Milliseconds that it goes on serving after SIGTERM and before it drains, while `/ready` and `/health/simple` say
    /// that it is about to end, 0 to 120,000; longer than the gateway's pause between health checks.
    #[serde(default = "default_drain_delay_ms")]
    pub drain_delay_ms: u64,
    #[serde(default)]
    pub log: LogConfig,
    pub database: Database,
    #[serde(default)]
    pub nats: Nats,
    #[serde(default)]
    pub auth: TokenCheck,
    #[serde(default)]
    pub engine: Engine,
    #[serde(default)]
    pub batch: Batch,
    #[serde(default)]
    pub reindex: Reindex,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 6689))
}

fn default_admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9689))
}

const fn default_drain_seconds() -> u64 {
    20
}

/// Which engine searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// In this process, in a folder; one process only.
    Embedded,
    /// A Meilisearch server.
    Meilisearch,
}

/// `[engine]`: the search engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    pub kind: EngineKind,
    /// Folder of the embedded index.
    pub path: PathBuf,
    /// Memory of the embedded engine's indexing buffer, 15 to 4,000 MB.
    pub writer_memory_mb: usize,
    /// Searches that the embedded engine runs at once, 1 to 256.
    pub concurrent_searches: usize,
    /// Free disk space below which the embedded engine stops writing, 0 to 1,000,000,000 MB.
    pub min_free_mb: u64,
    pub meili_url: String,
    pub meili_key: Option<SecretString>,
    /// Name of the Meilisearch index.
    pub meili_index: String,
    /// Longest wait for an answer of the engine to a search, 100 to 60,000 ms.
    pub search_timeout_ms: u64,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            kind: EngineKind::Embedded,
            path: PathBuf::from("data/search"),
            writer_memory_mb: 64,
            concurrent_searches: 8,
            min_free_mb: 512,
            meili_url: "http://127.0.0.1:7700".to_owned(),
            meili_key: None,
            meili_index: "messages".to_owned(),
            search_timeout_ms: 5_000,
        }
    }
}

/// `[batch]`: how events are gathered before they are indexed together.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Events of one batch while the flow is calm, 1 to 1,000.
    pub max_events: usize,
    /// Longest time the first event of a batch waits for others, 1 to 10,000 ms.
    pub max_wait_ms: u64,
    /// When nothing more arrives for so long, the batch goes at once, 0 to 1,000 ms.
    pub linger_ms: u64,
    /// Events of one batch while there is a backlog, `max_events` to 10,000.
    pub backlog_max_events: usize,
    /// Deliveries after which an event that still could not be processed goes to the dead letters, 2 to 100.
    pub max_deliveries: i64,
    /// Pending events and none delivered for so long make the consumer be made anew, 5 to 3,600 s.
    pub watchdog_seconds: u64,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_events: 10,
            max_wait_ms: 1_000,
            linger_ms: 50,
            backlog_max_events: 1_000,
            max_deliveries: 8,
            watchdog_seconds: 30,
        }
    }
}

impl Batch {
    /// Longest time the first event waits.
    pub const fn max_wait(&self) -> Duration {
        Duration::from_millis(self.max_wait_ms)
    }

    /// Longest pause between two events of a batch.
    pub const fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }
}

/// `[reindex]`: rebuilding from PostgreSQL.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reindex {
    /// Messages read at once, 1 to 10,000.
    pub chunk: i64,
    /// Pause between two reads, so that searching and live indexing go on undisturbed, 0 to 60,000 ms.
    pub pause_ms: u64,
}

impl Default for Reindex {
    fn default() -> Self {
        Self {
            chunk: 1_000,
            pause_ms: 10,
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        validate_serving(faults, self.listen, self.admin_listen, self.drain_seconds);
        validate_drain_delay(faults, self.drain_delay_ms);
        self.database.validate(faults);
        self.nats.validate(faults);
        self.auth.validate(faults);
        self.engine.validate(faults);
        self.batch.validate(faults);
        faults.range("reindex.chunk", self.reindex.chunk, 1, 10_000);
        faults.range("reindex.pause_ms", self.reindex.pause_ms, 0, 60_000);
    }
}

impl Validate for Engine {
    fn validate(&self, faults: &mut Faults) {
        faults.range("engine.writer_memory_mb", self.writer_memory_mb, 15, 4_000);
        faults.range("engine.concurrent_searches", self.concurrent_searches, 1, 256);
        faults.range("engine.min_free_mb", self.min_free_mb, 0, 1_000_000_000);
        faults.range("engine.search_timeout_ms", self.search_timeout_ms, 100, 60_000);
        match self.kind {
            EngineKind::Embedded if self.path.as_os_str().is_empty() => faults.add("engine.path", "must be set"),
            EngineKind::Embedded => {}
            EngineKind::Meilisearch => {
                if !reqwest::Url::parse(&self.meili_url).is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
                    faults.add("engine.meili_url", "not an http or https URL");
                }
                let is_name = |name: &str| {
                    (1..=400).contains(&name.len())
                        && name
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
                };
                // It becomes a header, and what no header can hold would end the process.
                let is_key = |key: &SecretString| key.expose_secret().bytes().all(|b| b.is_ascii_graphic());
                if !self.meili_key.as_ref().is_none_or(is_key) {
                    faults.add(
                        "engine.meili_key",
                        "letters, digits and marks of ASCII are accepted, no space and no line break",
                    );
                }
                if !is_name(&self.meili_index) {
                    faults.add("engine.meili_index", "1 to 400 letters, digits, _ and - are accepted");
                }
            }
        }
    }
}

impl Validate for Batch {
    fn validate(&self, faults: &mut Faults) {
        faults.range("batch.max_events", self.max_events, 1, 1_000);
        faults.range("batch.max_wait_ms", self.max_wait_ms, 1, 10_000);
        faults.range("batch.linger_ms", self.linger_ms, 0, 1_000);
        faults.range(
            "batch.backlog_max_events",
            self.backlog_max_events,
            self.max_events,
            10_000,
        );
        faults.range("batch.max_deliveries", self.max_deliveries, 2, 100);
        faults.range("batch.watchdog_seconds", self.watchdog_seconds, 5, 3_600);
    }
}
