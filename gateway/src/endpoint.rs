//! One upstream process: its health, its breaker, its load and how much of the load is its share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::routes::Group;

/// Doublings of the breaker's pause: it stays open up to 32 times as long as at first.
const DOUBLINGS_MAX: u32 = 5;
/// Part of its share that an upstream gets at once when it is back, in percent.
const SHARE_AT_FIRST: u64 = 10;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since this process first asked, never 0.
fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis())
        .unwrap_or(u64::MAX)
        .saturating_add(1)
}

/// When a breaker opens and how an upstream comes back.
#[derive(Debug, Clone, Copy)]
pub struct Resilience {
    /// Failed answers in a row that open the breaker.
    pub break_after: u32,
    /// How long it stays open at first.
    pub break_for: Duration,
    /// Time over which an upstream that is back gets its full share again.
    pub slow_start: Duration,
}

/// What is known of an upstream's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Healthy,
    /// No connection could be made: tried again when nobody else is left.
    Unreachable,
    /// Its own health check says no.
    Unhealthy,
    /// It broke off or timed out too often in a row, and rests.
    Broken,
}

impl Health {
    /// The name in logs and on the admin listener.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unreachable => "unreachable",
            Self::Unhealthy => "unhealthy",
            Self::Broken => "broken",
        }
    }
}

const HEALTHY: u8 = 0;
const UNREACHABLE: u8 = 1;
const UNHEALTHY: u8 = 2;

/// One upstream process.
#[derive(Debug)]
pub struct Endpoint {
    pub group: Group,
    pub address: SocketAddr,
    weight: AtomicU32,
    reach: AtomicU8,
    /// When it came back, 0 when it was never away.
    back_at: AtomicU64,
    /// Failed answers in a row.
    failures: AtomicU32,
    /// Until when the breaker is open, and how often it opened since the last good answer.
    broken_until: AtomicU64,
    opened: AtomicU32,
    in_flight: AtomicUsize,
}

/// Counts a request at an upstream until it is dropped.
#[derive(Debug)]
pub struct AtEndpoint(Arc<Endpoint>);

impl Drop for AtEndpoint {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoint {
    /// An upstream nothing bad is known of.
    pub fn new(group: Group, address: SocketAddr, weight: u32) -> Self {
        Self {
            group,
            address,
            weight: AtomicU32::new(weight),
            reach: AtomicU8::new(HEALTHY),
            back_at: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            broken_until: AtomicU64::new(0),
            opened: AtomicU32::new(0),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// What is known of its health.
    pub fn health(&self) -> Health {
        match self.reach.load(Ordering::Relaxed) {
            UNHEALTHY => Health::Unhealthy,
            UNREACHABLE => Health::Unreachable,
            _ if self.is_broken() => Health::Broken,
            _ => Health::Healthy,
        }
    }

    /// Whether it gets requests.
    pub fn is_healthy(&self) -> bool {
        self.health() == Health::Healthy
    }

    /// Whether its breaker is open.
    pub fn is_broken(&self) -> bool {
        let until = self.broken_until.load(Ordering::Relaxed);
        until != 0 && now() < until
    }

    /// Requests it works on.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request sent to it.
    pub fn enter(self: &Arc<Self>) -> AtEndpoint {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        AtEndpoint(Arc::clone(self))
    }

    /// Its configured weight.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Takes a new weight.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// Its share now, in hundredths of a weight: it grows back slowly after an absence.
    pub fn share(&self, slow_start: Duration) -> u64 {
        let whole = u64::from(self.weight()) * 100;
        let back_at = self.back_at.load(Ordering::Relaxed);
        if back_at == 0 {
            return whole;
        }
        let since = now().saturating_sub(back_at);
        let slow = u64::try_from(slow_start.as_millis()).unwrap_or(u64::MAX).max(1);
        if since >= slow {
            self.back_at.store(0, Ordering::Relaxed);
            return whole;
        }
        (whole * (since * 100 / slow).max(SHARE_AT_FIRST) / 100).max(1)
    }

    /// No connection could be made. Returns whether that is news.
    pub fn unreachable(&self, reason: &str) -> bool {
        self.leave(UNREACHABLE, reason)
    }

    /// Its health check failed. Returns whether that is news.
    pub fn unhealthy(&self, reason: &str) -> bool {
        self.leave(UNHEALTHY, reason)
    }

    fn leave(&self, reach: u8, reason: &str) -> bool {
        let news = self.reach.swap(reach, Ordering::Relaxed) == HEALTHY;
        if news {
            tracing::warn!(group = self.group.as_str(), address = %self.address, reason, "upstream is unhealthy");
        }
        news
    }

    /// Its health check succeeded.
    pub fn heal(&self) {
        if self.reach.swap(HEALTHY, Ordering::Relaxed) != HEALTHY {
            self.back_at.store(now(), Ordering::Relaxed);
            tracing::info!(group = self.group.as_str(), address = %self.address, "upstream is healthy again");
        }
    }

    /// It answered.
    pub fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.opened.store(0, Ordering::Relaxed);
            self.broken_until.store(0, Ordering::Relaxed);
        }
        if self.reach.load(Ordering::Relaxed) == UNREACHABLE {
            self.heal();
        }
    }

    /// It broke off or took too long. Returns whether its breaker opens now.
    pub fn failed(&self, resilience: &Resilience) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < resilience.break_after || self.is_broken() {
            return false;
        }
        let times = self.opened.fetch_add(1, Ordering::Relaxed).min(DOUBLINGS_MAX);
        let pause = u64::try_from(resilience.break_for.as_millis()).unwrap_or(u64::MAX) << times;
        let until = now().saturating_add(pause);
        self.broken_until.store(until, Ordering::Relaxed);
        // What it gets after the pause are trials: few, and one failure is enough.
        self.back_at.store(until, Ordering::Relaxed);
        tracing::warn!(group = self.group.as_str(), address = %self.address, failures, pause_ms = pause, "upstream rests");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESILIENCE: Resilience = Resilience {
        break_after: 3,
        break_for: Duration::from_millis(30),
        slow_start: Duration::from_hours(1),
    };

    fn endpoint() -> Endpoint {
        Endpoint::new(Group::Chat, "127.0.0.1:1".parse().unwrap(), 4)
    }

    #[test]
    fn the_breaker_opens_after_failures_in_a_row_and_one_more_opens_it_again() {
        let endpoint = endpoint();
        assert!(!endpoint.failed(&RESILIENCE) && !endpoint.failed(&RESILIENCE));
        endpoint.answered();
        assert!(!endpoint.failed(&RESILIENCE) && !endpoint.failed(&RESILIENCE));
        assert!(endpoint.is_healthy());
        assert!(endpoint.failed(&RESILIENCE));
        assert_eq!(endpoint.health(), Health::Broken);
        while endpoint.is_broken() {
            std::thread::yield_now();
        }
        assert!(endpoint.is_healthy());
        let (first, again) = (
            endpoint.broken_until.load(Ordering::Relaxed),
            endpoint.failed(&RESILIENCE),
        );
        assert!(again, "a trial that fails is enough");
        assert!(
            endpoint.broken_until.load(Ordering::Relaxed) >= first + 60,
            "for twice as long"
        );
    }

    #[test]
    fn who_is_back_gets_its_share_slowly() {
        let endpoint = endpoint();
        assert_eq!(endpoint.share(RESILIENCE.slow_start), 400);
        assert!(endpoint.unhealthy("test"));
        assert!(!endpoint.unhealthy("test"));
        endpoint.heal();
        assert_eq!(endpoint.share(RESILIENCE.slow_start), 40);
        assert_eq!(endpoint.share(Duration::ZERO), 40, "the clock has not moved on yet");
        while endpoint.share(Duration::from_millis(1)) != 400 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_answer_proves_that_it_can_be_reached() {
        let endpoint = endpoint();
        endpoint.unreachable("test");
        assert_eq!(endpoint.health(), Health::Unreachable);
        endpoint.answered();
        assert!(endpoint.is_healthy());
        endpoint.unhealthy("test");
        endpoint.answered();
        assert_eq!(endpoint.health(), Health::Unhealthy, "its own check must say so");
    }
}
