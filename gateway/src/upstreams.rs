//! Upstream groups: who is in them, who is healthy, whose turn it is, and how they are spoken to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::future::join_all;
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use tokio_util::sync::CancellationToken;

use crate::config::{self, millis};
use crate::metrics::Metrics;
use crate::routes::Group;

/// How often names are resolved again.
const RESOLVE: Duration = Duration::from_secs(5);
/// Pause between two checks of an unhealthy upstream: it should come back soon after it is back.
const UNHEALTHY_INTERVAL: Duration = Duration::from_millis(250);

/// Whether `text` is `host:port`.
pub fn is_authority(text: &str) -> bool {
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    port.is_some_and(|port| port > 0) && crate::framing::is_host(text.as_bytes())
}

/// One upstream process.
#[derive(Debug)]
pub struct Endpoint {
    pub group: Group,
    pub address: SocketAddr,
    healthy: AtomicBool,
}

impl Endpoint {
    /// Whether it gets requests.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Takes it out until a health check succeeds: nobody listens there.
    pub fn eject(&self, reason: &str) {
        if self.healthy.swap(false, Ordering::Relaxed) {
            tracing::warn!(group = self.group.as_str(), address = %self.address, reason, "upstream is unhealthy");
        }
    }

    fn heal(&self) {
        if !self.healthy.swap(true, Ordering::Relaxed) {
            tracing::info!(group = self.group.as_str(), address = %self.address, "upstream is healthy again");
        }
    }
}

#[derive(Debug)]
struct Pool {
    group: Group,
    authorities: Vec<String>,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    turn: AtomicUsize,
}

/// All groups.
#[derive(Debug)]
pub struct Upstreams {
    pools: [Pool; Group::ALL.len()],
    settings: config::Upstreams,
}

impl Upstreams {
    /// The groups of validated settings; addresses are in use at once, names after the first [`Upstreams::resolve`].
    pub fn new(settings: &config::Upstreams) -> Self {
        let pools = Group::ALL.map(|group| {
            let authorities = match group {
                Group::Chat => &settings.chat,
                Group::Notify => &settings.notify,
                Group::Indexer => &settings.indexer,
            };
            Pool {
                group,
                authorities: authorities.clone(),
                endpoints: ArcSwap::default(),
                turn: AtomicUsize::new(0),
            }
        });
        let upstreams = Self {
            pools,
            settings: settings.clone(),
        };
        for pool in &upstreams.pools {
            pool.replace(pool.authorities.iter().filter_map(|authority| authority.parse().ok()));
        }
        upstreams
    }

    /// The next healthy upstream of a group that is not `tried` yet.
    pub fn pick(&self, group: Group, tried: Option<SocketAddr>) -> Option<Arc<Endpoint>> {
        let pool = &self.pools[group as usize];
        let endpoints = pool.endpoints.load();
        let count = endpoints.len();
        let turn = pool.turn.fetch_add(1, Ordering::Relaxed);
        let mut candidates = (0..count)
            .map(|offset| &endpoints[(turn + offset) % count])
            .filter(|e| e.is_healthy());
        let first = candidates.next()?;
        if Some(first.address) == tried {
            return Some(Arc::clone(candidates.next().unwrap_or(first)));
        }
        Some(Arc::clone(first))
    }

    /// How Pingora speaks to an endpoint.
    pub fn peer(&self, endpoint: &Endpoint, is_stream: bool) -> Box<HttpPeer> {
        let settings = &self.settings;
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
        options.tcp_keepalive = Some(TcpKeepalive {
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            count: 3,
            #[cfg(target_os = "linux")]
            user_timeout: Duration::from_mins(1),
        });
        options.http_upstream_request_policy = if is_stream {
            HttpUpstreamRequestPolicy::standard()
        } else {
            HttpUpstreamRequestPolicy::deny_upgrades()
        };
        peer
    }

    /// Healthy and all endpoints of each group.
    pub fn states(&self) -> [(Group, usize, usize); Group::ALL.len()] {
        Group::ALL.map(|group| {
            let endpoints = self.pools[group as usize].endpoints.load();
            (
                group,
                endpoints.iter().filter(|endpoint| endpoint.is_healthy()).count(),
                endpoints.len(),
            )
        })
    }

    /// Every endpoint.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.pools
            .iter()
            .flat_map(|pool| pool.endpoints.load().iter().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Resolves every name once.
    pub async fn resolve(&self) {
        join_all(self.pools.iter().map(Pool::resolve)).await;
    }
}

impl Pool {
    /// Takes new addresses, keeping what is known of those that stay.
    fn replace(&self, addresses: impl Iterator<Item = SocketAddr>) {
        let known = self.endpoints.load_full();
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for address in addresses {
            if endpoints.iter().any(|endpoint| endpoint.address == address) {
                continue;
            }
            let kept = known.iter().find(|endpoint| endpoint.address == address).cloned();
            endpoints.push(kept.unwrap_or_else(|| {
                Arc::new(Endpoint {
                    group: self.group,
                    address,
                    healthy: AtomicBool::new(true),
                })
            }));
        }
        self.endpoints.store(Arc::new(endpoints));
    }

    async fn resolve(&self) {
        let mut addresses = Vec::new();
        for authority in &self.authorities {
            let found = tokio::time::timeout(Duration::from_secs(2), tokio::net::lookup_host(authority.as_str())).await;
            match found {
                Ok(Ok(found)) => addresses.extend(found),
                Ok(Err(error)) => tracing::warn!(authority, %error, "upstream cannot be resolved"),
                Err(_) => tracing::warn!(authority, "upstream is not resolved in time"),
            }
        }
        // A name server that is away must not empty a group.
        if !addresses.is_empty() {
            self.replace(addresses.into_iter());
        }
    }
}

/// Resolves names and checks health until `shutdown`.
pub async fn maintain(upstreams: Arc<Upstreams>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    let client = reqwest::Client::builder()
        .timeout(millis(upstreams.settings.health_timeout_ms))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap_or_default();
    let interval = millis(upstreams.settings.health_interval_ms);
    let names = upstreams
        .pools
        .iter()
        .flat_map(|pool| &pool.authorities)
        .any(|name| name.parse::<SocketAddr>().is_err());
    let mut resolved_at = Instant::now();
    loop {
        if names && resolved_at.elapsed() >= RESOLVE {
            resolved_at = Instant::now();
            upstreams.resolve().await;
        }
        let endpoints = upstreams.endpoints();
        join_all(endpoints.iter().map(|endpoint| check(&client, endpoint))).await;
        for (group, healthy, all) in upstreams.states() {
            metrics.upstreams(group, healthy, all);
        }
        let pause = if endpoints.iter().all(|endpoint| endpoint.is_healthy()) {
            interval
        } else {
            UNHEALTHY_INTERVAL.min(interval)
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn check(client: &reqwest::Client, endpoint: &Endpoint) {
    match client
        .get(format!("http://{}/health/simple", endpoint.address))
        .send()
        .await
    {
        Ok(answer) if answer.status().is_success() => endpoint.heal(),
        Ok(answer) => endpoint.eject(&format!("health check answered {}", answer.status())),
        Err(error) => endpoint.eject(&format!("health check failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Upstreams {
        Upstreams::new(&config::Upstreams {
            chat: vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()],
            ..config::Upstreams::default()
        })
    }

    #[test]
    fn healthy_endpoints_take_turns() {
        let upstreams = two();
        let ports: Vec<u16> = (0..4)
            .map(|_| upstreams.pick(Group::Chat, None).unwrap().address.port())
            .collect();
        assert_eq!(ports, [1, 2, 1, 2]);
        upstreams.pick(Group::Chat, None).unwrap().eject("test");
        let ports: Vec<u16> = (0..3)
            .map(|_| upstreams.pick(Group::Chat, None).unwrap().address.port())
            .collect();
        assert_eq!(ports, [2, 2, 2]);
        upstreams.pick(Group::Chat, None).unwrap().eject("test");
        assert!(upstreams.pick(Group::Chat, None).is_none());
        assert_eq!(upstreams.states()[0], (Group::Chat, 0, 2));
    }

    #[test]
    fn a_retry_goes_elsewhere_where_there_is_an_elsewhere() {
        let upstreams = two();
        for _ in 0..4 {
            let tried = "127.0.0.1:1".parse().ok();
            assert_eq!(upstreams.pick(Group::Chat, tried).unwrap().address.port(), 2);
        }
        let only = upstreams.pick(Group::Notify, None).unwrap().address;
        assert_eq!(upstreams.pick(Group::Notify, Some(only)).unwrap().address, only);
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
        upstreams.pick(Group::Chat, None).unwrap().eject("test");
        let pool = &upstreams.pools[0];
        pool.replace(
            ["127.0.0.1:1", "127.0.0.1:3", "127.0.0.1:3"]
                .iter()
                .map(|text| text.parse().unwrap()),
        );
        assert_eq!(upstreams.states()[0], (Group::Chat, 1, 2));
    }
}
