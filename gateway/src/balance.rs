//! Which upstream of a group gets a request.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fechatter_core::WorkspaceId;

use crate::endpoint::Endpoint;

/// Of two upstreams drawn by weight the one with less to do (power of two choices), other than the one `tried` before.
pub fn least_loaded(
    endpoints: &[Arc<Endpoint>],
    tried: Option<SocketAddr>,
    slow_start: Duration,
) -> Option<Arc<Endpoint>> {
    if let [only] = endpoints {
        return usable(only).then(|| Arc::clone(only));
    }
    let candidates = candidates(endpoints, tried);
    let shares: Vec<u64> = candidates.iter().map(|endpoint| endpoint.share(slow_start)).collect();
    let draw = || {
        let mut point = fastrand::u64(0..shares.iter().sum::<u64>().max(1));
        shares.iter().position(|share| {
            let hit = point < *share;
            point = point.saturating_sub(*share);
            hit
        })
    };
    let (one, other) = (draw()?, draw()?);
    // Compares load per share without dividing; the first drawn wins a draw.
    let load = |at: usize, share: usize| candidates[at].in_flight() as u64 * shares[share];
    let chosen = if load(other, one) < load(one, other) {
        other
    } else {
        one
    };
    Some(Arc::clone(candidates[chosen]))
}

/// The upstream of a workspace: the same one from every gateway, as long as it is there (rendezvous hashing).
pub fn of_workspace(
    endpoints: &[Arc<Endpoint>],
    tried: Option<SocketAddr>,
    workspace: WorkspaceId,
) -> Option<Arc<Endpoint>> {
    let rank = |endpoint: &&Arc<Endpoint>| {
        // A hasher with fixed keys: every replica must come to the same result.
        let mut hasher = DefaultHasher::new();
        (workspace, endpoint.address).hash(&mut hasher);
        let hash = u32::try_from(hasher.finish() >> 32).unwrap_or_default();
        let point = f64::from(hash) / f64::from(u32::MAX);
        // Weighted: the larger the better.
        -f64::from(endpoint.weight()) / point.max(f64::MIN_POSITIVE).ln()
    };
    let candidates = candidates(endpoints, tried);
    candidates
        .into_iter()
        .max_by(|a, b| rank(a).total_cmp(&rank(b)))
        .cloned()
}

/// When nobody is healthy somebody unhealthy is better than nobody, but who rests is left alone.
fn usable(endpoint: &Endpoint) -> bool {
    !endpoint.is_broken()
}

/// Healthy upstreams, else usable ones; without the one tried, unless it is the only one.
fn candidates(endpoints: &[Arc<Endpoint>], tried: Option<SocketAddr>) -> Vec<&Arc<Endpoint>> {
    let mut candidates: Vec<&Arc<Endpoint>> = endpoints.iter().filter(|endpoint| endpoint.is_healthy()).collect();
    if candidates.is_empty() {
        candidates = endpoints.iter().filter(|endpoint| usable(endpoint)).collect();
    }
    if candidates.len() > 1 {
        candidates.retain(|endpoint| Some(endpoint.address) != tried);
    }
    candidates
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::routes::Group;

    fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        let endpoint = |(port, weight): (u16, &u32)| {
            Arc::new(Endpoint::new(
                Group::Chat,
                SocketAddr::from(([127, 0, 0, 1], port)),
                *weight,
            ))
        };
        (1..).zip(weights).map(endpoint).collect()
    }

    fn counts(endpoints: &[Arc<Endpoint>], draws: usize) -> HashMap<u16, usize> {
        let mut counts = HashMap::new();
        for _ in 0..draws {
            let chosen = least_loaded(endpoints, None, Duration::ZERO).unwrap();
            *counts.entry(chosen.address.port()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn requests_go_by_weight() {
        let counts = counts(&endpoints(&[9, 1]), 10_000);
        assert!((600..1_400).contains(&counts[&2]), "{counts:?}");
    }

    #[test]
    fn the_busy_get_fewer() {
        let endpoints = endpoints(&[1, 1, 1]);
        let busy: Vec<_> = (0..10).map(|_| endpoints[0].enter()).collect();
        let counts = counts(&endpoints, 9_000);
        // It is taken only when it is drawn twice.
        assert!((700..1_300).contains(&counts[&1]), "{counts:?}");
        drop(busy);
        assert_eq!(endpoints[0].in_flight(), 0);
    }

    #[test]
    fn the_unhealthy_get_nothing_while_others_are_healthy() {
        let endpoints = endpoints(&[1, 1]);
        endpoints[0].unhealthy("test");
        assert_eq!(counts(&endpoints, 100).len(), 1);
        endpoints[1].unreachable("test");
        assert_eq!(counts(&endpoints, 100).len(), 2, "then both are tried");
        let tried = Some(endpoints[0].address);
        for _ in 0..20 {
            assert_eq!(
                least_loaded(&endpoints, tried, Duration::ZERO).unwrap().address.port(),
                2
            );
        }
        assert!(least_loaded(&endpoints[..1], tried, Duration::ZERO).is_some());
        assert!(least_loaded(&[], None, Duration::ZERO).is_none());
    }

    #[test]
    fn a_workspace_stays_where_it_is() {
        let endpoints = endpoints(&[1, 1, 1, 1]);
        let of = |endpoints: &[Arc<Endpoint>], workspace| {
            of_workspace(endpoints, None, WorkspaceId(workspace))
                .unwrap()
                .address
                .port()
        };
        let before: Vec<u16> = (0..1_000).map(|workspace| of(&endpoints, workspace)).collect();
        for port in 1..=4 {
            let share = before.iter().filter(|chosen| **chosen == port).count();
            assert!((180..320).contains(&share), "{port}: {share}");
        }
        endpoints[3].unhealthy("test");
        for (workspace, port) in (0..1_000).zip(before) {
            let now = of(&endpoints, workspace);
            assert!(now == port || port == 4, "only who was there moves");
        }
    }
}
