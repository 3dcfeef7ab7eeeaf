//! notify_service's configuration; environment prefix `FECHATTER_NOTIFY__`.

use std::net::SocketAddr;
use std::time::Duration;

use fechatter_core::config::{Faults, Validate};
use observability::LogConfig;
use serde::Deserialize;
use service_runtime::config::{Database, Nats, TokenCheck};

/// Prefix of the environment variables.
pub const ENV_PREFIX: &str = "FECHATTER_NOTIFY__";

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
    /// Seconds over which streams end after SIGTERM, 0 to 600.
    #[serde(default = "default_drain_seconds")]
    pub drain_seconds: u64,
    #[serde(default)]
    pub log: LogConfig,
    pub database: Database,
    #[serde(default)]
    pub nats: Nats,
    #[serde(default)]
    pub auth: TokenCheck,
    #[serde(default)]
    pub streams: Streams,
    #[serde(default)]
    pub window: Window,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 6687))
}

fn default_admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9687))
}

const fn default_drain_seconds() -> u64 {
    20
}

/// `[streams]`: the streams of clients.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streams {
    /// Bytes that may wait for a slow client, 4,096 to 16,777,216; over it its stream ends and it resumes by its cursor.
    pub queue_bytes: usize,
    /// Mean time between heartbeats, 1,000 to 25,000 ms; each stream takes its own within a quarter of it.
    pub heartbeat_ms: u64,
    /// Mean life of a stream, 1 to 86,400 s; each takes its own within a fifth of it.
    pub rotation_seconds: u64,
    /// A stream ends this long before its token expires, 0 to 600 s.
    pub reauth_seconds: u64,
    /// Longest time that one write may wait for a client that does not read, 1 to 600 s; then its connection is closed.
    pub write_seconds: u64,
    /// Most streams of this process, 1 to 10,000,000; further ones get 503.
    pub max: usize,
    /// Most streams of one user in this process, 1 to 10,000; a further one ends the oldest.
    pub max_of_user: usize,
    /// How long the membership of somebody without a stream is kept current, 0 to 3,600 s, for cheap reconnects.
    pub linger_seconds: u64,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            queue_bytes: 256 * 1024,
            heartbeat_ms: 20_000,
            rotation_seconds: 600,
            reauth_seconds: 10,
            write_seconds: 30,
            max: 100_000,
            max_of_user: 50,
            linger_seconds: 120,
        }
    }
}

impl Streams {
    /// Mean time between heartbeats.
    pub const fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }
}

/// `[window]`: the events kept in memory for those who reconnect.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Window {
    /// Most events, 1 to 10,000,000.
    pub max_events: usize,
    /// Most bytes of them, 1,024 to 17,179,869,184.
    pub max_bytes: usize,
    /// How far back a process that starts reads the stream, 0 to 3,600 s.
    pub start_seconds: i64,
    /// Most events that one client gets when it reconnects, 1 to 1,000,000; one that missed more reloads.
    pub replay_max: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            max_events: 200_000,
            max_bytes: 128 * 1024 * 1024,
            start_seconds: 600,
            replay_max: 10_000,
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        self.database.validate(faults);
        self.nats.validate(faults);
        self.auth.validate(faults);
        let (streams, window) = (&self.streams, &self.window);
        faults.range("drain_seconds", self.drain_seconds, 0, 600);
        faults.range("streams.queue_bytes", streams.queue_bytes, 4_096, 16 * 1024 * 1024);
        faults.range("streams.heartbeat_ms", streams.heartbeat_ms, 1_000, 25_000);
        faults.range("streams.rotation_seconds", streams.rotation_seconds, 1, 86_400);
        faults.range("streams.reauth_seconds", streams.reauth_seconds, 0, 600);
        faults.range("streams.write_seconds", streams.write_seconds, 1, 600);
        faults.range("streams.max", streams.max, 1, 10_000_000);
        faults.range("streams.max_of_user", streams.max_of_user, 1, 10_000);
        faults.range("streams.linger_seconds", streams.linger_seconds, 0, 3_600);
        faults.range("window.max_events", window.max_events, 1, 10_000_000);
        faults.range("window.max_bytes", window.max_bytes, 1_024, 16 * 1024 * 1024 * 1024);
        faults.range("window.start_seconds", window.start_seconds, 0, 3_600);
        faults.range("window.replay_max", window.replay_max, 1, 1_000_000);
        if self.listen == self.admin_listen {
            faults.add("admin_listen", "must differ from listen");
        }
    }
}
