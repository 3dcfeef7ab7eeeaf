//! Public `/health`: this gateway and its upstreams as names and states, nothing more.

use std::collections::BTreeMap;

use bytes::Bytes;
use fechatter_core::health::{Check, Health, Status};

use crate::answer::Answer;
use crate::routes::Group;
use crate::upstreams::Upstreams;

/// Without chat nothing works; without the others something is missing.
fn status(group: Group, healthy: usize, all: usize) -> Status {
    match (healthy, group) {
        (0, Group::Chat) => Status::Down,
        (healthy, _) if healthy < all => Status::Degraded,
        _ => Status::Ok,
    }
}

/// The answer to `/health`.
pub fn answer(upstreams: &Upstreams) -> Answer {
    let check = |status| Check {
        status,
        latency_ms: None,
        detail: None,
    };
    let mut checks = BTreeMap::from([("gateway".to_owned(), check(Status::Ok))]);
    for (group, healthy, all) in upstreams.states() {
        checks.insert(group.as_str().to_owned(), check(status(group, healthy, all)));
    }
    let health = Health::from_checks(env!("CARGO_PKG_VERSION"), checks);
    Answer::Json {
        status: health.http_status(),
        body: serde_json::to_vec(&health).unwrap_or_default().into(),
    }
}

/// The answer to `/health/simple`.
pub fn alive() -> Answer {
    Answer::Json {
        status: 200,
        body: Bytes::from_static(br#"{"status":"ok"}"#),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_needed_upstream_decides() {
        assert_eq!(status(Group::Chat, 2, 2), Status::Ok);
        assert_eq!(status(Group::Chat, 1, 2), Status::Degraded);
        assert_eq!(status(Group::Chat, 0, 2), Status::Down);
        assert_eq!(status(Group::Indexer, 0, 1), Status::Degraded);
    }
}
