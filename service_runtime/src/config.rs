//! Configuration sections that several processes have.

use std::net::SocketAddr;

use fechatter_core::config::{Faults, Validate};
use secrecy::SecretString;
use serde::Deserialize;

/// Default of `drain_delay_ms`: twice the pause between the gateway's health checks.
pub const DRAIN_DELAY_MS: u64 = 2_000;

/// [`DRAIN_DELAY_MS`], for serde.
pub const fn default_drain_delay_ms() -> u64 {
    DRAIN_DELAY_MS
}

/// The rule of `drain_delay_ms`.
pub fn validate_drain_delay(faults: &mut Faults, drain_delay_ms: u64) {
    faults.range("drain_delay_ms", drain_delay_ms, 0, 120_000);
}

/// The rules of `listen`, `admin_listen` and `drain_seconds`, which every process has.
pub fn validate_serving(faults: &mut Faults, listen: SocketAddr, admin_listen: SocketAddr, drain_seconds: u64) {
    // Port 0 stands for any free port, a different one each time.
    if listen == admin_listen && listen.port() != 0 {
        faults.add("admin_listen", "must differ from listen");
    }
    faults.range("drain_seconds", drain_seconds, 0, 600);
}

/// `[database]`: PostgreSQL.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `postgres://user:password@host:port/database`. A secret: it holds the password.
    pub url: SecretString,
    /// Connections of this process, 1 to 500.
    #[serde(default = "default_max_connections")]
    pub max_connections: u32,
}

const fn default_max_connections() -> u32 {
    16
}

impl Validate for Database {
    fn validate(&self, faults: &mut Faults) {
        faults.range("database.max_connections", self.max_connections, 1, 500);
    }
}

/// `[nats]`: the event bus.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    /// `nats://host:port`, several separated by commas.
    pub url: String,
    /// User name; none when the server asks for none.
    pub user: Option<String>,
    /// Password of `user`.
    pub password: Option<SecretString>,
    /// Replicas of the stream, 1 to 5; only chat_service, which makes the stream, heeds it.
    pub stream_replicas: usize,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            user: None,
            password: None,
            stream_replicas: 1,
        }
    }
}

impl Validate for Nats {
    fn validate(&self, faults: &mut Faults) {
        faults.required("nats.url", &self.url);
        faults.range("nats.stream_replicas", self.stream_replicas, 1, 5);
        if self.user.is_some() != self.password.is_some() {
            faults.add("nats.password", "nats.user and nats.password go together");
        }
        for url in self.url.split(',') {
            if let Err(error) = url.trim().parse::<async_nats::ServerAddr>() {
                faults.add(
                    "nats.url",
                    format_args!("not a NATS URL such as nats://127.0.0.1:4222: {error}"),
                );
            }
        }
    }
}

/// `[auth]` of a process that verifies access tokens by another's JWKS.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenCheck {
    /// `iss` of our tokens.
    pub issuer: String,
    /// `aud` of our tokens.
    pub audience: String,
    /// Where the public keys are.
    pub jwks_url: String,
    /// Verified tokens that are remembered, 1 to 10,000,000 (about 400 bytes each).
    pub remembered_tokens: usize,
}

impl Default for TokenCheck {
    fn default() -> Self {
        Self {
            issuer: "fechatter".to_owned(),
            audience: "fechatter".to_owned(),
            jwks_url: "http://127.0.0.1:6688/.well-known/jwks.json".to_owned(),
            remembered_tokens: 100_000,
        }
    }
}

impl Validate for TokenCheck {
    fn validate(&self, faults: &mut Faults) {
        faults.required("auth.issuer", &self.issuer);
        faults.required("auth.audience", &self.audience);
        faults.range("auth.remembered_tokens", self.remembered_tokens, 1, 10_000_000);
        if reqwest::Url::parse(&self.jwks_url).is_err() {
            faults.add("auth.jwks_url", "not a URL");
        }
    }
}
