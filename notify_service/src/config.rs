//! The configuration of notify_service; environment prefix `FECHATTER_NOTIFY__`.

use std::net::SocketAddr;
use std::time::Duration;

use fechatter_core::config::{Faults, Validate};
use observability::LogConfig;
use serde::Deserialize;
use service_runtime::config::{
    Database, Nats, TokenCheck, default_drain_delay_ms, validate_drain_delay, validate_serving,
};

/// Prefix of the environment variables.
pub const ENV_PREFIX: &str = "FECHATTER_NOTIFY__";

/// Everything that can be configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the gateway reaches the streams.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// `/live`, `/ready`, `/metrics`; never public.
    #[serde(default = "default_admin_listen")]
    pub admin_listen: SocketAddr,
    /// Seconds over which streams are closed after SIGTERM, so that clients do not return all at once, 0 to 600.
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
    pub ring: RingConfig,
    #[serde(default)]
    pub replay: ReplayConfig,
    #[serde(default)]
    pub stream: StreamConfig,
    #[serde(default)]
    pub presence: PresenceConfig,
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

/// `[ring]`: the newest events, in memory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RingConfig {
    /// Most events, 1 to 10,000,000. As many are read back at start.
    pub max_events: usize,
    /// Most bytes, 64 KiB to 64 GiB.
    pub max_bytes: usize,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            max_events: 65_536,
            max_bytes: 64 << 20,
        }
    }
}

/// `[replay]`: what a returning client gets before it is told to reload.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayConfig {
    /// Most events of a backlog, 1 to 1,000,000.
    pub max_events: usize,
    /// Most bytes of a backlog, 1 KiB to 1 GiB.
    pub max_bytes: usize,
    /// Most events of the stream that are looked through for a backlog that the ring no longer holds, 1 to 10,000,000.
    pub max_scanned: u64,
    /// Backlogs read from the stream at the same time, 1 to 1,000.
    pub concurrent: usize,
    /// Memory for parts of the stream that were read, shared by all readers, 64 KiB to 64 GiB.
    pub cache_bytes: u64,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self {
            max_events: 10_000,
            max_bytes: 8 << 20,
            max_scanned: 200_000,
            concurrent: 8,
            cache_bytes: 64 << 20,
        }
    }
}

/// `[stream]`: the streams to clients.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamConfig {
    /// Bytes of live events that may wait for one client, 4 KiB to 64 MiB; over it the stream is closed.
    pub queue_bytes: usize,
    /// Least and most seconds between two heartbeats, 1 to 600.
    pub heartbeat_min_seconds: u64,
    pub heartbeat_max_seconds: u64,
    /// About how many seconds a stream lives before the client is made to return, 5 to 86,400.
    pub rotate_seconds: u64,
    /// Seconds before its token's expiry that a stream ends, 1 to 300; less when the token has less to live.
    pub reauth_lead_seconds: u64,
    /// Seconds that one write may take before the connection is given up, 1 to 600.
    pub write_seconds: u64,
    /// Milliseconds after which a client is to return, 100 to 60,000 (`retry:`).
    pub retry_ms: u64,
    /// Streams of this process, 1 to 1,000,000.
    pub max_streams: usize,
    /// Streams of one user, 1 to 1,000; over it the oldest ends.
    pub max_streams_per_user: usize,
    /// Seconds that the chats of a user without a stream are kept current, 0 to 86,400.
    pub linger_seconds: u64,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            queue_bytes: 1 << 20,
            heartbeat_min_seconds: 15,
            heartbeat_max_seconds: 25,
            rotate_seconds: 600,
            reauth_lead_seconds: 15,
            write_seconds: 30,
            retry_ms: 1_000,
            max_streams: 100_000,
            max_streams_per_user: 32,
            linger_seconds: 300,
        }
    }
}

impl StreamConfig {
    /// How long a user without a stream is remembered.
    pub const fn linger(&self) -> Duration {
        Duration::from_secs(self.linger_seconds)
    }
}

/// `[presence]`: who is here.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PresenceConfig {
    /// Seconds after the end of the last stream before a user is offline, 1 to 600.
    pub linger_seconds: u64,
    /// Seconds after which a replica that has fallen silent is forgotten, 3 to 600; it speaks three times as often.
    pub patience_seconds: u64,
}

impl Default for PresenceConfig {
    fn default() -> Self {
        Self {
            linger_seconds: 15,
            patience_seconds: 60,
        }
    }
}

impl PresenceConfig {
    /// How long a user without a stream is not yet offline.
    pub const fn linger(&self) -> Duration {
        Duration::from_secs(self.linger_seconds)
    }

    /// How long a replica may be silent.
    pub const fn patience(&self) -> Duration {
        Duration::from_secs(self.patience_seconds)
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        validate_serving(faults, self.listen, self.admin_listen, self.drain_seconds);
        validate_drain_delay(faults, self.drain_delay_ms);
        self.database.validate(faults);
        self.nats.validate(faults);
        self.auth.validate(faults);
        faults.range("ring.max_events", self.ring.max_events, 1, 10_000_000);
        faults.range("ring.max_bytes", self.ring.max_bytes, 64 << 10, 64 << 30);
        let replay = &self.replay;
        faults.range("replay.max_events", replay.max_events, 1, 1_000_000);
        faults.range("replay.max_bytes", replay.max_bytes, 1 << 10, 1 << 30);
        faults.range("replay.max_scanned", replay.max_scanned, 1, 10_000_000);
        faults.range("replay.concurrent", replay.concurrent, 1, 1_000);
        faults.range("replay.cache_bytes", replay.cache_bytes, 64 << 10, 64 << 30);
        self.stream.validate(faults);
        faults.range("presence.linger_seconds", self.presence.linger_seconds, 1, 600);
        faults.range("presence.patience_seconds", self.presence.patience_seconds, 3, 600);
    }
}

impl Validate for StreamConfig {
    fn validate(&self, faults: &mut Faults) {
        faults.range("stream.queue_bytes", self.queue_bytes, 4 << 10, 64 << 20);
        faults.range("stream.heartbeat_min_seconds", self.heartbeat_min_seconds, 1, 600);
        faults.range(
            "stream.heartbeat_max_seconds",
            self.heartbeat_max_seconds,
            self.heartbeat_min_seconds,
            600,
        );
        faults.range("stream.rotate_seconds", self.rotate_seconds, 5, 86_400);
        faults.range("stream.reauth_lead_seconds", self.reauth_lead_seconds, 1, 300);
        faults.range("stream.write_seconds", self.write_seconds, 1, 600);
        faults.range("stream.retry_ms", self.retry_ms, 100, 60_000);
        faults.range("stream.max_streams", self.max_streams, 1, 1_000_000);
        faults.range("stream.max_streams_per_user", self.max_streams_per_user, 1, 1_000);
        faults.range("stream.linger_seconds", self.linger_seconds, 0, 86_400);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_faults_name_key_and_range() {
        let parse = |stream: &str| -> Config {
            serde_json::from_str(&format!(
                r#"{{"database": {{"url": "postgres://x"}}, "stream": {stream}}}"#
            ))
            .expect("a configuration")
        };
        let lines = |config: &Config| {
            let mut faults = Faults::default();
            config.validate(&mut faults);
            faults.into_lines()
        };
        assert_eq!(lines(&parse("{}")), Vec::<String>::new());
        let wrong = lines(&parse(
            r#"{"heartbeat_min_seconds": 20, "heartbeat_max_seconds": 10, "queue_bytes": 1}"#,
        ));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(
            wrong[0].starts_with("stream.queue_bytes: 1 is out of range, 4096 to"),
            "{wrong:?}"
        );
        assert!(
            wrong[1].starts_with("stream.heartbeat_max_seconds: 10 is out of range, 20 to"),
            "{wrong:?}"
        );
    }
}
