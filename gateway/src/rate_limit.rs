//! Limits by route class and principal (GCRA by `governor`), with the standard fields, in bounded memory.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fechatter_core::UserId;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::{RateLimit, RateLimits};
use crate::identity::network_of;
use crate::routes::Class;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// How often keys whose quota is whole again are forgotten.
const SWEEP: Duration = Duration::from_secs(10);
/// Buckets that keys share while there are too many of them.
const SHARED_BUCKETS: u64 = 1_024;

/// Whose quota a request uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Principal {
    User(UserId),
    /// Of [`network_of`].
    Network(u128),
    /// One of a few buckets for strangers while memory is short.
    Shared(u64),
}

impl Principal {
    /// An address without a user.
    pub fn of_address(address: IpAddr) -> Self {
        Self::Network(network_of(address))
    }
}

type Limiter = RateLimiter<Principal, DashMapStateStore<Principal>, DefaultClock, StateInformationMiddleware>;

#[derive(Debug)]
struct ClassLimiter {
    limiter: Limiter,
    policy: HeaderValue,
    burst: u32,
    /// Time after which one more request is allowed.
    step: Duration,
    /// Keys in the store, at most: exact after a sweep, counted up since.
    keys: AtomicUsize,
}

/// What the limiter said about one request.
#[derive(Debug, Clone, Copy)]
pub struct Decision {
    pub class: Class,
    pub allowed: bool,
    remaining: u32,
    /// Until the quota is whole again, or until the next request may come.
    reset: Duration,
}

impl Decision {
    /// Seconds for `Retry-After`.
    pub fn retry_after(&self) -> u64 {
        ceil_seconds(self.reset)
    }

    /// A bounded label.
    pub const fn verdict(&self) -> &'static str {
        if self.allowed { "allowed" } else { "limited" }
    }
}

fn ceil_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The limiters of all classes.
pub struct Limits {
    classes: [ClassLimiter; Class::ALL.len()],
    keys_max: usize,
    clock: DefaultClock,
    full: Notify,
    hasher: OnceLock<RandomState>,
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits")
            .field("keys", &self.key_counts())
            .finish_non_exhaustive()
    }
}

impl Limits {
    /// Limiters of validated settings.
    pub fn new(settings: &RateLimits) -> Self {
        Self {
            classes: Class::ALL.map(|class| ClassLimiter::new(class, settings.of(class))),
            keys_max: settings.keys,
            clock: DefaultClock::default(),
            full: Notify::new(),
            hasher: OnceLock::new(),
        }
    }

    /// Takes one request from the principal's quota.
    pub fn check(&self, class: Class, principal: Principal) -> Decision {
        let limits = &self.classes[class as usize];
        let key = self.bounded(limits, principal);
        match limits.limiter.check_key(&key) {
            Ok(snapshot) => {
                let remaining = snapshot.remaining_burst_capacity();
                if remaining + 1 >= limits.burst {
                    limits.keys.fetch_add(1, Ordering::Relaxed);
                }
                let used = limits.burst.saturating_sub(remaining);
                Decision {
                    class,
                    allowed: true,
                    remaining,
                    reset: limits.step * used,
                }
            }
            Err(not_until) => {
                let reset = not_until.wait_time_from(self.clock.now());
                Decision {
                    class,
                    allowed: false,
                    remaining: 0,
                    reset,
                }
            }
        }
    }

    /// Users are as many as there are; strangers' addresses can be made up, so they are who must share.
    fn bounded(&self, limits: &ClassLimiter, principal: Principal) -> Principal {
        if limits.keys.load(Ordering::Relaxed) < self.keys_max {
            return principal;
        }
        self.full.notify_one();
        match principal {
            Principal::Network(network) => {
                let hash = self.hasher.get_or_init(RandomState::new).hash_one(network);
                Principal::Shared(hash % SHARED_BUCKETS)
            }
            other => other,
        }
    }

    /// Adds the standard fields to an answer.
    pub fn mark(&self, answer: &mut ResponseHeader, decision: &Decision) -> pingora::Result<()> {
        let limits = &self.classes[decision.class as usize];
        let class = decision.class.as_str();
        let state = format!(
            "\"{class}\";r={};t={}",
            decision.remaining,
            ceil_seconds(decision.reset)
        );
        answer.insert_header(RATE_LIMIT_POLICY, limits.policy.clone())?;
        answer.insert_header(RATE_LIMIT, state)
    }

    /// Forgets keys whose quota is whole again.
    pub fn sweep(&self) {
        for limits in &self.classes {
            limits.limiter.retain_recent();
            limits.limiter.shrink_to_fit();
            limits.keys.store(limits.limiter.len(), Ordering::Relaxed);
        }
    }

    /// Keys remembered, by class.
    pub fn key_counts(&self) -> [(Class, usize); Class::ALL.len()] {
        Class::ALL.map(|class| (class, self.classes[class as usize].keys.load(Ordering::Relaxed)))
    }
}

/// Sweeps regularly, and at once when a class is full (but not more often than every second).
pub async fn sweep_regularly(limits: Arc<Limits>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
            () = limits.full.notified() => tokio::time::sleep(Duration::from_secs(1)).await,
        }
        limits.sweep();
    }
}

impl ClassLimiter {
    fn new(class: Class, limit: RateLimit) -> Self {
        let burst = NonZeroU32::new(limit.requests).unwrap_or(NonZeroU32::MIN);
        let window = Duration::from_secs(u64::from(limit.window_seconds));
        let step = (window / burst.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(step)
            .unwrap_or_else(|| Quota::per_second(burst))
            .allow_burst(burst);
        let policy = format!("\"{}\";q={burst};w={}", class.as_str(), limit.window_seconds);
        Self {
            limiter: RateLimiter::keyed(quota).with_middleware::<StateInformationMiddleware>(),
            policy: HeaderValue::from_str(&policy).unwrap_or_else(|_| HeaderValue::from_static("")),
            burst: burst.get(),
            step,
            keys: AtomicUsize::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: u32, keys: usize) -> Limits {
        let limit = RateLimit {
            requests,
            window_seconds: 3_600,
        };
        Limits::new(&RateLimits {
            auth: limit,
            send: limit,
            read: limit,
            search: limit,
            stream: limit,
            keys,
        })
    }

    fn field(limits: &Limits, decision: &Decision, name: &str) -> String {
        let mut answer = ResponseHeader::build(200, None).unwrap();
        limits.mark(&mut answer, decision).unwrap();
        answer.headers[name].to_str().unwrap().to_owned()
    }

    #[test]
    fn exactly_the_quota_passes_also_under_concurrency() {
        let limits = Arc::new(limits(100, 1_000));
        let user = Principal::User(UserId(7));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let limits = Arc::clone(&limits);
                std::thread::spawn(move || (0..50).filter(|_| limits.check(Class::Send, user).allowed).count())
            })
            .collect();
        let passed: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(passed, 100);
    }

    #[test]
    fn principals_and_classes_do_not_touch_each_other() {
        let limits = limits(1, 1_000);
        let (a, b) = (Principal::User(UserId(1)), Principal::User(UserId(2)));
        assert!(limits.check(Class::Send, a).allowed);
        assert!(!limits.check(Class::Send, a).allowed);
        assert!(limits.check(Class::Send, b).allowed);
        assert!(limits.check(Class::Read, a).allowed);
        let v6 = |text: &str| Principal::of_address(text.parse().unwrap());
        assert!(limits.check(Class::Auth, v6("2001:db8::1")).allowed);
        assert!(!limits.check(Class::Auth, v6("2001:db8::2")).allowed);
        assert!(limits.check(Class::Auth, v6("2001:db8:0:1::1")).allowed);
    }

    #[test]
    fn the_fields_say_what_is_left_and_when_it_is_whole() {
        let limits = limits(4, 1_000);
        let user = Principal::User(UserId(1));
        let first = limits.check(Class::Send, user);
        assert_eq!(field(&limits, &first, "ratelimit-policy"), "\"send\";q=4;w=3600");
        assert_eq!(field(&limits, &first, "ratelimit"), "\"send\";r=3;t=900");
        for _ in 0..3 {
            limits.check(Class::Send, user);
        }
        let refused = limits.check(Class::Send, user);
        assert!(!refused.allowed);
        assert!((899..=900).contains(&refused.retry_after()), "{refused:?}");
        assert!(field(&limits, &refused, "ratelimit").starts_with("\"send\";r=0;t="));
    }

    #[test]
    fn a_flood_of_addresses_keeps_memory_bounded_and_users_unharmed() {
        let limits = limits(10, 1_000);
        for address in 0..100_000_u128 {
            limits.check(Class::Auth, Principal::Network(address << 64));
        }
        let stored = limits.classes[Class::Auth as usize].limiter.len();
        assert!(stored <= 1_000 + usize::try_from(SHARED_BUCKETS).unwrap(), "{stored}");
        assert!(limits.check(Class::Auth, Principal::User(UserId(1))).allowed);
    }
}
