//! The gateway's configuration: every setting, its default and its accepted range.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use observability::LogConfig;
use serde::Deserialize;
use service_runtime::config::{Nats, TokenCheck};

use crate::routes::{Class, Group};

mod validate;

/// Prefix of the environment variables that overlay the file.
pub const ENV_PREFIX: &str = "FECHATTER_GATEWAY__";

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Public HTTPS address.
    pub listen: SocketAddr,
    /// Public HTTP address that only redirects to HTTPS.
    pub redirect_listen: SocketAddr,
    /// Port named in the redirect; 0 means that of `listen`. Another one is needed behind a port mapping.
    pub public_port: u16,
    /// `/live`, `/ready`, `/metrics`. Never expose it.
    pub admin_listen: SocketAddr,
    pub tls: Tls,
    pub upstreams: Upstreams,
    pub auth: TokenCheck,
    pub nats: Nats,
    pub log: LogConfig,
    pub limits: Limits,
    pub rate_limits: RateLimits,
    pub cors: Cors,
    pub compression: Compression,
    pub access_log: AccessLog,
    pub drain: Drain,
    /// Networks (CIDR) of proxies in front of us whose `x-forwarded-for`, `x-request-id` and `traceparent` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Networks (CIDR) of load balancers that pass TCP on and begin each connection with a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    /// Host names we answer to, exact or `*.name`; empty answers to any. Others: 421.
    pub hosts: Vec<String>,
    pub addresses: Addresses,
    /// Folder whose files are answered below `/.well-known/acme-challenge/` on the plain HTTP port.
    pub acme_challenges: Option<PathBuf>,
    /// How long a start waits to know which sessions have ended, 0 to 60 s; then it opens without, as when NATS is away.
    pub revocations_wait_seconds: u64,
    /// Unix socket at which a new process, started with `--upgrade`, takes over; none by default.
    pub upgrade_socket: Option<PathBuf>,
    /// Threads that serve connections, 1 to 1,024; 0 for one per processor that this process may use.
    pub threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: loopback(8443),
            redirect_listen: loopback(8080),
            public_port: 0,
            admin_listen: loopback(9443),
            tls: Tls::default(),
            upstreams: Upstreams::default(),
            auth: TokenCheck::default(),
            nats: Nats::default(),
            log: LogConfig::default(),
            limits: Limits::default(),
            rate_limits: RateLimits::default(),
            cors: Cors::default(),
            compression: Compression::default(),
            access_log: AccessLog::default(),
            drain: Drain::default(),
            trusted_proxies: Vec::new(),
            proxy_protocol: Vec::new(),
            hosts: Vec::new(),
            addresses: Addresses::default(),
            acme_challenges: None,
            revocations_wait_seconds: 5,
            upgrade_socket: None,
            threads: 0,
        }
    }
}

impl Config {
    /// How many threads serve connections.
    pub fn workers(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)
}

/// `[addresses]`: which clients are let in, by CIDR.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Addresses {
    /// When not empty, only these.
    pub allow: Vec<IpNet>,
    /// Never these, even when they are allowed.
    pub deny: Vec<IpNet>,
}

/// `[tls]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file: the certificate, then its intermediates.
    pub certificate: PathBuf,
    /// PEM file: the private key of `certificate`.
    pub key: PathBuf,
    /// Certificates for other names, chosen by SNI.
    pub additional: Vec<CertificateFiles>,
    /// How often the files are looked at for a change, 1 to 3,600 seconds.
    pub reload_seconds: u64,
    /// Longest TLS handshake, 100 to 60,000 ms.
    pub handshake_timeout_ms: u64,
    /// Sessions remembered for TLS 1.2 resumption without tickets, 0 to 1,000,000.
    pub sessions: usize,
    /// PEM file of authorities: every client must bring a certificate of one of them.
    pub client_ca: Option<PathBuf>,
    /// When not empty, only clients of these routes must, as the admin listener's `/routes` lists them; `*` at the end stands for any rest.
    pub client_routes: Vec<String>,
}

/// One certificate and its key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            additional: Vec::new(),
            reload_seconds: 5,
            handshake_timeout_ms: 10_000,
            sessions: 10_000,
            client_ca: None,
            client_routes: Vec::new(),
        }
    }
}

/// One upstream, or several behind one name: `"host:port"` or `{address = "host:port", weight = 1}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "UpstreamForm")]
pub struct Upstream {
    pub address: String,
    /// Its share of requests beside the others of its group, 1 to 1,000.
    pub weight: u32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum UpstreamForm {
    Address(String),
    Weighted { address: String, weight: u32 },
}

impl From<UpstreamForm> for Upstream {
    fn from(form: UpstreamForm) -> Self {
        match form {
            UpstreamForm::Address(address) => Self { address, weight: 1 },
            UpstreamForm::Weighted { address, weight } => Self { address, weight },
        }
    }
}

impl std::str::FromStr for Upstream {
    type Err = std::convert::Infallible;

    fn from_str(address: &str) -> Result<Self, Self::Err> {
        Ok(UpstreamForm::Address(address.to_owned()).into())
    }
}

/// `[upstreams]`: names are resolved again every few seconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstreams {
    pub chat: Vec<Upstream>,
    pub notify: Vec<Upstream>,
    pub indexer: Vec<Upstream>,
    /// Whoever serves the pages of a web client: `GET` of every path that is not ours. None by default: such paths are 404.
    pub web: Vec<Upstream>,
    /// Pause between two health checks of a healthy upstream, 100 to 60,000 ms.
    pub health_interval_ms: u64,
    /// Longest health check, 50 to 30,000 ms.
    pub health_timeout_ms: u64,
    /// Longest connection attempt, 50 to 30,000 ms.
    pub connect_timeout_ms: u64,
    /// Longest wait for the next bytes of an ordinary answer, 100 to 300,000 ms.
    pub read_timeout_ms: u64,
    /// The same on streams; longer than the heartbeat of notify_service (25 s), 1,000 to 3,600,000 ms.
    pub stream_read_timeout_ms: u64,
    /// Event streams that share a connection to an upstream, by HTTP/2, 1 to 200; 0: each has its own, by HTTP/1.1.
    pub streams_per_connection: u32,
    /// How long an unused connection is kept, 1 to 3,600 seconds.
    pub idle_seconds: u64,
    /// Unused connections kept in all, 0 to 100,000.
    pub idle_connections: usize,
    /// Requests one upstream is given at once, streams not counted, 1 to 1,000,000.
    pub requests_max: usize,
    /// Requests of a group that may wait for a place, 0 to 100,000; beyond: 503.
    pub queue_requests: usize,
    /// How long they may wait, 0 to 60,000 ms.
    pub queue_timeout_ms: u64,
    /// Retries as a part of a group's requests, 0 to 100 percent; ten a second are always allowed.
    pub retry_percent: u32,
    /// Failed answers in a row (broken off, too late) after which an upstream rests, 1 to 1,000.
    pub break_after: u32,
    /// How long it rests at first, 50 to 60,000 ms; twice as long after each failed trial, 32 times at most.
    pub break_ms: u64,
    /// Time over which an upstream that is back gets its full share, 0 to 600,000 ms.
    pub slow_start_ms: u64,
}

impl Upstreams {
    /// The upstreams of a group.
    pub fn of(&self, group: Group) -> &[Upstream] {
        match group {
            Group::Chat => &self.chat,
            Group::Notify => &self.notify,
            Group::Indexer => &self.indexer,
            Group::Web => &self.web,
        }
    }
}

impl Default for Upstreams {
    fn default() -> Self {
        Self {
            chat: vec![UpstreamForm::Address("127.0.0.1:6688".to_owned()).into()],
            notify: vec![UpstreamForm::Address("127.0.0.1:6687".to_owned()).into()],
            indexer: vec![UpstreamForm::Address("127.0.0.1:6689".to_owned()).into()],
            web: Vec::new(),
            health_interval_ms: 1_000,
            health_timeout_ms: 2_000,
            connect_timeout_ms: 1_000,
            read_timeout_ms: 30_000,
            stream_read_timeout_ms: 60_000,
            streams_per_connection: 100,
            idle_seconds: 50,
            idle_connections: 1_024,
            requests_max: 1_024,
            queue_requests: 512,
            queue_timeout_ms: 250,
            retry_percent: 20,
            break_after: 5,
            break_ms: 1_000,
            slow_start_ms: 5_000,
        }
    }
}

/// `[limits]`: what one connection or request may cost.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest path and query, 256 to 65,536 bytes; beyond: 414.
    pub uri_bytes: usize,
    /// Longest request line and header fields together, 1,024 to 262,144 bytes; beyond: 431.
    pub header_bytes: usize,
    /// Most header fields, 10 to 250; beyond: 431.
    pub header_fields: usize,
    /// Longest wait for a complete request head once it has begun, 100 to 120,000 ms; beyond: 408.
    pub header_timeout_ms: u64,
    /// Longest wait for a complete request body of up to 64 KiB, 100 to 600,000 ms; beyond: 408.
    pub body_timeout_ms: u64,
    /// How long an idle client connection is kept, 1 to 3,600 seconds.
    pub idle_seconds: u64,
    /// Longest wait for a client to take the next bytes of an answer, 1 to 3,600 seconds.
    pub write_seconds: u64,
    /// Client connections in all, 1 to 1,000,000.
    pub connections: usize,
    /// Client connections of one address (IPv6: one /64), 1 to 1,000,000.
    pub connections_per_address: usize,
    /// Concurrent requests of one HTTP/2 connection, 1 to 1,000.
    pub http2_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            uri_bytes: 8_192,
            header_bytes: 32_768,
            header_fields: 100,
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            idle_seconds: 60,
            write_seconds: 30,
            connections: 50_000,
            connections_per_address: 20_000,
            http2_streams: 100,
        }
    }
}

/// A number of requests in a window: so many at once, then evenly spread over the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// 1 to 100,000,000.
    pub requests: u32,
    /// 1 to 86,400.
    pub window_seconds: u32,
}

/// `[rate_limits]`: one limit per route class, for each user or, where there is none, each address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    pub auth: RateLimit,
    pub send: RateLimit,
    pub read: RateLimit,
    pub search: RateLimit,
    pub stream: RateLimit,
    /// All requests of one workspace together.
    pub workspace: RateLimit,
    /// Requests of one address that are answered 401.
    pub refused: RateLimit,
    /// Whether replicas tell each other what they let through, so that a limit is the platform's.
    pub shared: bool,
    /// What happens while they cannot, with NATS away: each counts for itself, or (`false`) requests with a limit are refused.
    pub fail_open: bool,
    /// Keys remembered per class, 100 to 10,000,000; beyond, new ones share a few buckets.
    pub keys: usize,
}

impl Default for RateLimits {
    fn default() -> Self {
        let per_minute = |requests| RateLimit {
            requests,
            window_seconds: 60,
        };
        Self {
            auth: per_minute(120),
            send: per_minute(600),
            read: per_minute(3_000),
            search: per_minute(300),
            stream: per_minute(120),
            workspace: per_minute(60_000),
            refused: per_minute(120),
            shared: true,
            fail_open: true,
            keys: 200_000,
        }
    }
}

impl RateLimits {
    /// The limit of a class.
    pub const fn of(&self, class: Class) -> RateLimit {
        match class {
            Class::Auth => self.auth,
            Class::Send => self.send,
            Class::Read => self.read,
            Class::Search => self.search,
            Class::Stream => self.stream,
        }
    }
}

/// `[cors]`: browsers' cross-origin requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// Exact origins, such as `https://chat.example.org`; none by default, and never `*`.
    pub origins: Vec<String>,
    /// How long a browser may remember a preflight, 0 to 86,400 seconds.
    pub max_age_seconds: u32,
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            origins: Vec::new(),
            max_age_seconds: 600,
        }
    }
}

/// `[compression]`: of answers to clients that take them so.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compression {
    /// 0 (none) to 9 (small and slow).
    pub level: u32,
    /// Shorter answers stay as they are, 20 to 1,000,000 bytes.
    pub bytes_min: u64,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            level: 3,
            bytes_min: 1_024,
        }
    }
}

/// `[access_log]`: which requests get a line. Answers from 500 on, broken ones and slow ones always do.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// How many of the answers below 400, 0 to 100 percent.
    pub sample_percent: f64,
    /// How many of the answers from 400 to 499, refusals among them, 0 to 100 percent.
    pub sample_refused_percent: f64,
    /// A request that takes so long is slow, 1 to 3,600,000 ms.
    pub slow_ms: u64,
    /// Routes, as the admin listener's `/routes` lists them, whose answers below 400 get no line.
    pub silent_routes: Vec<String>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            sample_percent: 100.0,
            sample_refused_percent: 100.0,
            slow_ms: 1_000,
            silent_routes: Vec::new(),
        }
    }
}

/// `[drain]`: what happens between SIGTERM and the end.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// `/ready` says 503 this long before connections are refused, 0 to 120,000 ms.
    pub delay_ms: u64,
    /// Requests in flight may go on this long, 0 to 3,600,000 ms.
    pub timeout_ms: u64,
    /// Streams still open when only they are left are closed spread over this time, 0 to 600,000 ms.
    pub stream_spread_ms: u64,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            delay_ms: 1_000,
            timeout_ms: 25_000,
            stream_spread_ms: 2_000,
        }
    }
}

impl Config {
    /// The port clients reach us at.
    pub fn public_port(&self) -> u16 {
        if self.public_port == 0 {
            self.listen.port()
        } else {
            self.public_port
        }
    }
}

/// A setting in milliseconds as a duration.
pub const fn millis(value: u64) -> Duration {
    Duration::from_millis(value)
}
