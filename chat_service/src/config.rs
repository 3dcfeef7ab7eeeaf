//! chat_service's configuration; environment prefix `FECHATTER_CHAT__`.

use std::net::SocketAddr;
use std::path::PathBuf;

use fechatter_core::config::{Faults, Validate};
use fechatter_core::token::ACCESS_SECONDS_MAX;
use observability::LogConfig;
use serde::Deserialize;
use service_runtime::config::{Database, Nats, default_drain_delay_ms, validate_drain_delay, validate_serving};

use crate::outbox_relay;

/// Prefix of the environment variables.
pub const ENV_PREFIX: &str = "FECHATTER_CHAT__";

/// Everything that can be configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the gateway reaches this service.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// `/live`, `/ready`, `/metrics`; never public.
    #[serde(default = "default_admin_listen")]
    pub admin_listen: SocketAddr,
    /// Seconds that requests in flight may go on after SIGTERM, 0 to 600.
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
    pub auth: Auth,
    #[serde(default)]
    pub passwords: Passwords,
    #[serde(default)]
    pub outbox: outbox_relay::Config,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 6688))
}

fn default_admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9688))
}

const fn default_drain_seconds() -> u64 {
    20
}

/// `[auth]`: tokens and sessions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Folder of the signing keys, one PKCS#8 Ed25519 PEM file each; `chat_service keys new` makes one.
    pub keys_dir: PathBuf,
    #[serde(default = "default_name")]
    pub issuer: String,
    #[serde(default = "default_name")]
    pub audience: String,
    /// Life of an access token, 60 to 3,600 s.
    #[serde(default = "default_access_seconds")]
    pub access_seconds: i64,
    /// Life of an unused refresh token, 1 hour to 90 days, in seconds.
    #[serde(default = "default_refresh_seconds")]
    pub refresh_seconds: i64,
    /// Seconds that replicas have to publish a new signing key before it signs, 0 to 3,600; more than a mounted secret takes
    /// to reach all of them.
    #[serde(default = "default_key_activation_seconds")]
    pub key_activation_seconds: i64,
    /// Longest life of a session however often it is refreshed, 1 hour to 366 days, in seconds.
    #[serde(default = "default_session_seconds")]
    pub session_seconds: i64,
}

fn default_name() -> String {
    "fechatter".to_owned()
}

const fn default_access_seconds() -> i64 {
    15 * 60
}

const fn default_refresh_seconds() -> i64 {
    14 * 24 * 3_600
}

const fn default_key_activation_seconds() -> i64 {
    120
}

const fn default_session_seconds() -> i64 {
    90 * 24 * 3_600
}

/// `[passwords]`: argon2id parameters (OWASP's first choice for 19 MiB by default) and how much of the machine hashing may take.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Passwords {
    /// Memory of one hash, 19,456 to 1,048,576 KiB.
    pub memory_kib: u32,
    /// Passes over it, 2 to 20.
    pub iterations: u32,
    /// Hashes computed at once, 1 to 64.
    pub workers: usize,
    /// Requests that may wait for a worker, 1 to 100,000; further ones get 503.
    pub queue: usize,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            memory_kib: 19_456,
            iterations: 2,
            workers: std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
            queue: 256,
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        validate_serving(faults, self.listen, self.admin_listen, self.drain_seconds);
        validate_drain_delay(faults, self.drain_delay_ms);
        self.database.validate(faults);
        self.nats.validate(faults);
        self.outbox.validate(faults);
        faults.required("auth.issuer", &self.auth.issuer);
        faults.required("auth.audience", &self.auth.audience);
        faults.range("auth.access_seconds", self.auth.access_seconds, 60, ACCESS_SECONDS_MAX);
        faults.range("auth.refresh_seconds", self.auth.refresh_seconds, 3_600, 90 * 86_400);
        faults.range(
            "auth.key_activation_seconds",
            self.auth.key_activation_seconds,
            0,
            3_600,
        );
        faults.range("auth.session_seconds", self.auth.session_seconds, 3_600, 366 * 86_400);
        faults.range("passwords.memory_kib", self.passwords.memory_kib, 19_456, 1_048_576);
        faults.range("passwords.iterations", self.passwords.iterations, 2, 20);
        faults.range("passwords.workers", self.passwords.workers, 1, 64);
        faults.range("passwords.queue", self.passwords.queue, 1, 100_000);
    }
}
