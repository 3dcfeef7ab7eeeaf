//! The rules in force: everything a configuration decides about requests, replaced as a whole when it is reloaded.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::access_lists::{Addresses, Hosts};
use crate::config::{Config, millis};
use crate::cors::Cors;
use crate::framing::HeadLimits;
use crate::head::Patience;
use crate::identity::Identifier;
use crate::listener::ConnectionLimits;
use crate::rate_limit::Limits;
use crate::routes::RoutePatterns;

/// The rules of one configuration. A request keeps those it began with.
#[derive(Debug)]
pub struct Policy {
    pub config: Config,
    pub identifier: Identifier,
    pub limits: Arc<Limits>,
    pub cors: Cors,
    pub hosts: Hosts,
    pub addresses: Addresses,
    /// Routes whose clients must bring a certificate.
    pub certified: RoutePatterns,
    /// Routes whose good answers are not logged.
    pub silent: RoutePatterns,
    pub connections: ConnectionLimits,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
}

/// The policy in force, shared by all who heed it.
pub type Current = Arc<ArcSwap<Policy>>;

impl Policy {
    /// The policy of a validated configuration. Quotas go on when their limits have not changed.
    pub fn new(config: Config, former: Option<&Self>) -> Self {
        let unchanged = former.filter(|former| former.config.rate_limits == config.rate_limits);
        let limits = unchanged.map_or_else(
            || {
                let limits = Limits::new(&config.rate_limits);
                limits
                    .usage
                    .share(former.is_some_and(|former| former.limits.usage.is_shared()));
                Arc::new(limits)
            },
            |former| Arc::clone(&former.limits),
        );
        Self {
            identifier: Identifier::new(config.trusted_proxies.clone()),
            limits,
            cors: Cors::new(&config.cors),
            hosts: Hosts::new(&config.hosts),
            addresses: Addresses::new(&config.addresses),
            certified: RoutePatterns::new(&config.tls.client_routes),
            silent: RoutePatterns::new(&config.access_log.silent_routes),
            connections: connection_limits(&config),
            body_timeout: millis(config.limits.body_timeout_ms),
            write_timeout: Duration::from_secs(config.limits.write_seconds),
            config,
        }
    }

    /// Whether pages of a web client are served.
    pub const fn has_web(&self) -> bool {
        !self.config.upstreams.web.is_empty()
    }

    /// Bounds of a request head.
    pub const fn head(&self) -> &HeadLimits {
        &self.connections.head
    }
}

fn connection_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        connections: config.limits.connections,
        connections_per_address: config.limits.connections_per_address,
        handshake: millis(config.tls.handshake_timeout_ms),
        stall: Duration::from_secs(config.limits.write_seconds),
        patience: Patience {
            idle: Duration::from_secs(config.limits.idle_seconds),
            head: millis(config.limits.header_timeout_ms),
        },
        head: HeadLimits {
            uri_bytes: config.limits.uri_bytes,
            header_bytes: config.limits.header_bytes,
            header_fields: config.limits.header_fields,
        },
    }
}
