//! Upstream groups: who is in them, how they are spoken to, and what they are given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fechatter_core::WorkspaceId;
use futures::future::join_all;
use http::StatusCode;
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::admission::{Admission, Capacity, Place};
use crate::balance;
use crate::config::{self, millis};
use crate::endpoint::{Endpoint, Resilience};
use crate::retry_budget::RetryBudget;
use crate::routes::{Class, Group};

/// Bytes of one event stream that an upstream may send ahead of the client.
const STREAM_WINDOW: u32 = 64 * 1_024;

/// Probes of connections on which nothing happens.
pub const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    #[cfg(target_os = "linux")]
    user_timeout: Duration::from_mins(1),
};

/// How long is waited for an upstream: for a connection, and for progress on it; and how long a connection may wait.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    pub connect: Duration,
    pub progress: Duration,
    pub idle: Duration,
}

/// Whether `text` is `host:port`.
pub fn is_authority(text: &str) -> bool {
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    port.is_some_and(|port| port > 0) && crate::framing::is_host(text.as_bytes())
}

#[derive(Debug)]
struct Pool {
    group: Group,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    admission: Arc<Admission>,
    retries: RetryBudget,
}

/// All groups.
#[derive(Debug)]
pub struct Upstreams {
    pools: [Pool; Group::ALL.len()],
    settings: ArcSwap<config::Upstreams>,
    /// Told when an upstream turns out to be away, so that it is looked after at once.
    pub look: Notify,
}

impl Upstreams {
    /// The groups of validated settings; addresses are in use at once, names after the first [`Upstreams::resolve`].
    pub fn new(settings: &config::Upstreams) -> Self {
        let upstreams = Self {
            pools: Group::ALL.map(|group| Pool {
                group,
                endpoints: ArcSwap::default(),
                admission: Arc::default(),
                retries: RetryBudget::default(),
            }),
            settings: ArcSwap::from_pointee(settings.clone()),
            look: Notify::new(),
        };
        for pool in &upstreams.pools {
            let addresses = settings.of(pool.group).iter();
            pool.replace(addresses.filter_map(|one| Some((one.address.parse().ok()?, one.weight))));
        }
        upstreams
    }

    /// Takes new settings; what is known of upstreams that stay is kept.
    pub async fn reconfigure(&self, settings: &config::Upstreams) {
        self.settings.store(Arc::new(settings.clone()));
        self.resolve().await;
        self.look.notify_one();
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<config::Upstreams> {
        self.settings.load_full()
    }

    fn pool(&self, group: Group) -> &Pool {
        &self.pools[group as usize]
    }

    /// The upstream for the next attempt, not the one `tried` if there is another: that of the workspace for a stream, else
    /// one with little to do.
    pub fn pick(
        &self,
        group: Group,
        stream_of: Option<WorkspaceId>,
        tried: Option<SocketAddr>,
    ) -> Option<Arc<Endpoint>> {
        let endpoints = self.pool(group).endpoints.load();
        match stream_of {
            Some(workspace) => balance::of_workspace(&endpoints, tried, workspace),
            None => balance::least_loaded(&endpoints, tried, millis(self.settings.load().slow_start_ms)),
        }
    }

    /// A place for a request among those the group works on; none when there are too many.
    pub async fn admit(&self, group: Group, class: Class) -> Option<Place> {
        let pool = self.pool(group);
        let capacity = {
            let settings = self.settings.load();
            let healthy = pool.endpoints.load().iter().filter(|one| one.is_healthy()).count();
            pool.retries.earn(settings.retry_percent);
            Capacity {
                requests: settings.requests_max * healthy.max(1),
                queue: settings.queue_requests,
                patience: millis(settings.queue_timeout_ms),
            }
        };
        pool.admission.enter(class, capacity).await
    }

    /// Whether a group has a healthy upstream besides this one.
    pub fn has_other(&self, endpoint: &Endpoint) -> bool {
        let endpoints = self.pool(endpoint.group).endpoints.load();
        endpoints
            .iter()
            .any(|other| other.address != endpoint.address && other.is_healthy())
    }

    /// Whether the group's budget pays for another attempt.
    pub fn may_retry(&self, group: Group) -> bool {
        self.pool(group).retries.spend()
    }

    /// To be called each second.
    pub fn refill_retries(&self) {
        for pool in &self.pools {
            pool.retries.refill();
        }
    }

    /// No connection could be made: nobody listens there.
    pub fn unreachable(&self, endpoint: &Endpoint, reason: &str) {
        if endpoint.unreachable(reason) {
            self.look.notify_one();
        }
    }

    /// The upstream broke off or took too long.
    pub fn failed(&self, endpoint: &Endpoint) -> bool {
        let settings = self.settings.load();
        endpoint.failed(&Resilience {
            break_after: settings.break_after,
            break_for: millis(settings.break_ms),
            slow_start: millis(settings.slow_start_ms),
        })
    }

    /// It answered. From 502 to 504 it says that it cannot do its work: as long as another one can, that counts as a failure, or the one
    /// that fails fastest would get the most. Returns whether its breaker opens now.
    pub fn answered(&self, endpoint: &Endpoint, status: StatusCode) -> bool {
        if matches!(status.as_u16(), 502..=504) && self.has_other(endpoint) {
            return self.failed(endpoint);
        }
        endpoint.answered();
        false
    }

    /// How long is waited for upstreams by the settings in force, streams apart.
    pub fn waits(&self) -> Waits {
        let settings = self.settings.load();
        Waits {
            connect: millis(settings.connect_timeout_ms),
            progress: millis(settings.read_timeout_ms),
            idle: Duration::from_secs(settings.idle_seconds),
        }
    }

    /// How Pingora speaks to an endpoint.
    pub fn peer(&self, endpoint: &Endpoint, is_stream: bool) -> Box<HttpPeer> {
        let settings = self.settings.load();
        let mut peer = Box::new(HttpPeer::new(endpoint.address, false, String::new()));
        let options = &mut peer.options;
        options.connection_timeout = Some(millis(settings.connect_timeout_ms));
        options.total_connection_timeout = options.connection_timeout;
        let read = if is_stream {
            settings.stream_read_timeout_ms
        } else {
            settings.read_timeout_ms
        };
        options.read_timeout = Some(millis(read));
        options.write_timeout = Some(millis(settings.read_timeout_ms));
        options.idle_timeout = Some(Duration::from_secs(settings.idle_seconds));
        options.tcp_keepalive = Some(KEEPALIVE);
        options.http_upstream_request_policy = if is_stream {
            HttpUpstreamRequestPolicy::standard()
        } else {
            HttpUpstreamRequestPolicy::deny_upgrades()
        };
        let shared_by = settings.streams_per_connection;
        if is_stream && shared_by > 0 {
            options.set_http_version(2, 2);
            options.max_h2_streams = usize::try_from(shared_by).unwrap_or(usize::MAX);
            // Clients that do not read fill their own windows; all of them together do not fill the connection's, or they would hold up
            // those who do.
            options.h2_stream_window_size = Some(STREAM_WINDOW);
            options.h2_connection_window_size = Some(STREAM_WINDOW.saturating_mul(shared_by));
        }
        peer
    }

    /// Healthy and all endpoints of each group that there is; a web client need not be.
    pub fn states(&self) -> Vec<(Group, usize, usize)> {
        let state = |group| {
            let endpoints = self.pool(group).endpoints.load();
            let healthy = endpoints.iter().filter(|endpoint| endpoint.is_healthy()).count();
            (group, healthy, endpoints.len())
        };
        let all = Group::ALL.into_iter().map(state);
        all.filter(|(group, _, all)| *group != Group::Web || *all > 0).collect()
    }

    /// Every endpoint.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.pools
            .iter()
            .flat_map(|pool| pool.endpoints.load().iter().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// For the admin listener.
    pub fn describe(&self) -> Value {
        let slow_start = millis(self.settings.load().slow_start_ms);
        let group = |pool: &Pool| {
            let (admitted, waiting) = pool.admission.counts();
            let endpoints = pool.endpoints.load();
            let endpoint = |endpoint: &Arc<Endpoint>| {
                json!({
                    "address": endpoint.address.to_string(),
                    "health": endpoint.health().as_str(),
                    "weight": endpoint.weight(),
                    "share_percent": endpoint.share(slow_start) / u64::from(endpoint.weight().max(1)),
                    "in_flight": endpoint.in_flight(),
                })
            };
            let upstreams: Vec<Value> = endpoints.iter().map(endpoint).collect();
            let state = json!({"requests": admitted, "waiting": waiting, "upstreams": upstreams});
            (pool.group.as_str().to_owned(), state)
        };
        Value::Object(self.pools.iter().map(group).collect())
    }

    /// Whether a name has to be resolved.
    pub fn has_names(&self) -> bool {
        let settings = self.settings.load();
        let mut all = Group::ALL.into_iter().flat_map(|group| settings.of(group));
        all.any(|one| one.address.parse::<SocketAddr>().is_err())
    }

    /// Resolves every name once.
    pub async fn resolve(&self) {
        let settings = self.settings();
        join_all(self.pools.iter().map(|pool| pool.resolve(settings.of(pool.group)))).await;
    }
}

impl Pool {
    /// Takes new addresses, keeping what is known of those that stay.
    fn replace(&self, addresses: impl Iterator<Item = (SocketAddr, u32)>) {
        let known = self.endpoints.load_full();
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for (address, weight) in addresses {
            if endpoints.iter().any(|endpoint| endpoint.address == address) {
                continue;
            }
            let kept = known.iter().find(|endpoint| endpoint.address == address).cloned();
            let endpoint = kept.unwrap_or_else(|| Arc::new(Endpoint::new(self.group, address, weight)));
            endpoint.set_weight(weight);
            endpoints.push(endpoint);
        }
        self.endpoints.store(Arc::new(endpoints));
    }

    async fn resolve(&self, upstreams: &[config::Upstream]) {
        let mut addresses = Vec::new();
        for upstream in upstreams {
            let authority = upstream.address.as_str();
            let found = tokio::time::timeout(Duration::from_secs(2), tokio::net::lookup_host(authority)).await;
            match found {
                Ok(Ok(found)) => addresses.extend(found.map(|address| (address, upstream.weight))),
                Ok(Err(error)) => tracing::warn!(authority, %error, "upstream cannot be resolved"),
                Err(_) => tracing::warn!(authority, "upstream is not resolved in time"),
            }
        }
        // A name server that is away must not empty a group; a configuration may.
        if !addresses.is_empty() || upstreams.is_empty() {
            self.replace(addresses.into_iter());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Upstreams {
        Upstreams::new(&config::Upstreams {
            chat: vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()],
            ..config::Upstreams::default()
        })
    }

    #[test]
    fn authorities_have_a_host_and_a_port() {
        for good in ["127.0.0.1:80", "chat.svc:6688", "[::1]:80"] {
            assert!(is_authority(good), "{good}");
        }
        for bad in [
            "",
            "chat",
            "chat:",
            "chat:0",
            "chat:99999",
            "http://chat:80",
            "a b:80",
            ":80",
        ] {
            assert!(!is_authority(bad), "{bad}");
        }
    }

    #[test]
    fn new_addresses_keep_what_is_known_of_old_ones() {
        let upstreams = two();
        upstreams.endpoints()[0].unhealthy("test");
        assert_eq!(upstreams.states()[0], (Group::Chat, 1, 2));
        let addresses = ["127.0.0.1:1", "127.0.0.1:3", "127.0.0.1:3"].map(|text| (text.parse().unwrap(), 7));
        upstreams.pools[0].replace(addresses.into_iter());
        assert_eq!(upstreams.states()[0], (Group::Chat, 1, 2));
        assert_eq!(upstreams.endpoints()[0].weight(), 7);
    }
}
