//! Limits by route class and principal (GCRA by `governor`), with the standard fields, in bounded memory.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fechatter_core::{UserId, WorkspaceId};
use governor::RateLimiter;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::{RateLimit, RateLimits};
use crate::identity::network_of;
use crate::metrics::ALLOWED;
use crate::policy::Current;
use crate::routes::Class;
use crate::shared_usage::Usage;

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
    /// All of its users together.
    Workspace(WorkspaceId),
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

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    /// Requests of a class.
    Class(Class),
    /// Requests of a workspace.
    Workspace,
    /// Answers 401.
    Refused,
}

impl Quota {
    /// The name in the rate limit fields.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Class(class) => class.as_str(),
            Self::Workspace => "workspace",
            Self::Refused => "refused",
        }
    }
}

/// What the limiter said about one request.
#[derive(Debug, Clone, Copy)]
pub struct Decision {
    of: Quota,
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
        if self.allowed { ALLOWED } else { "limited" }
    }
}

fn ceil_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The limiters of all classes.
pub struct Limits {
    classes: [ClassLimiter; Class::ALL.len()],
    workspaces: ClassLimiter,
    refused: ClassLimiter,
    /// For the other replicas.
    pub usage: Usage,
    keys_max: usize,
    /// Whether requests go on that replicas cannot count together.
    fail_open: bool,
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
            classes: Class::ALL.map(|class| ClassLimiter::new(class.as_str(), settings.of(class))),
            workspaces: ClassLimiter::new("workspace", settings.workspace),
            refused: ClassLimiter::new("refused", settings.refused),
            usage: Usage::default(),
            keys_max: settings.keys,
            fail_open: settings.fail_open || !settings.shared,
            clock: DefaultClock::default(),
            full: Notify::new(),
            hasher: OnceLock::new(),
        }
    }

    /// Whether requests may be counted at all: with the other replicas or, where that is allowed, without.
    pub fn may_decide(&self) -> bool {
        self.fail_open || self.usage.is_shared()
    }

    /// Takes one request from the principal's quota and, when that has one, from its workspace's.
    pub fn check(&self, class: Class, principal: Principal, workspace: Option<WorkspaceId>) -> Decision {
        let own = self.take(Quota::Class(class), principal);
        match workspace {
            Some(workspace) if own.allowed => {
                let all = self.take(Quota::Workspace, Principal::Workspace(workspace));
                if all.allowed { own } else { all }
            }
            _ => own,
        }
    }

    /// Takes one from an address's quota of refusals; seconds to wait when there is none left.
    pub fn check_refused(&self, principal: Principal) -> Option<u64> {
        let decision = self.take(Quota::Refused, principal);
        (!decision.allowed).then(|| decision.retry_after())
    }

    /// Takes what another replica let through, as far as it is there.
    pub fn taken_elsewhere(&self, quota: Quota, principal: Principal, count: u32) {
        let limits = self.limiter(quota);
        let key = self.bounded(limits, principal);
        let mut left = count.min(limits.burst);
        let mut part = left;
        while let Some(cells) = NonZeroU32::new(part.min(left)) {
            match limits.limiter.check_key_n(&key, cells) {
                Ok(Ok(snapshot)) => {
                    limits.count_key(snapshot.remaining_burst_capacity() + cells.get());
                    left -= cells.get();
                }
                _ => part = cells.get() / 2,
            }
        }
    }

    const fn limiter(&self, quota: Quota) -> &ClassLimiter {
        match quota {
            Quota::Class(class) => &self.classes[class as usize],
            Quota::Workspace => &self.workspaces,
            Quota::Refused => &self.refused,
        }
    }

    fn take(&self, quota: Quota, principal: Principal) -> Decision {
        let limits = self.limiter(quota);
        let key = self.bounded(limits, principal);
        match limits.limiter.check_key(&key) {
            Ok(snapshot) => {
                let remaining = snapshot.remaining_burst_capacity();
                limits.count_key(remaining + 1);
                self.usage.note(quota, key);
                let used = limits.burst.saturating_sub(remaining);
                Decision {
                    of: quota,
                    allowed: true,
                    remaining,
                    reset: limits.step * used,
                }
            }
            Err(not_until) => {
                let reset = not_until.wait_time_from(self.clock.now());
                Decision {
                    of: quota,
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
    pub fn mark(&self, fields: &mut HeaderMap, decision: &Decision) {
        let (limits, name) = (self.limiter(decision.of), decision.of.as_str());
        let state = format!("\"{name}\";r={};t={}", decision.remaining, ceil_seconds(decision.reset));
        fields.insert(RATE_LIMIT_POLICY, limits.policy.clone());
        if let Ok(state) = HeaderValue::try_from(state) {
            fields.insert(RATE_LIMIT, state);
        }
    }

    /// Forgets keys whose quota is whole again.
    pub fn sweep(&self) {
        for limits in self.classes.iter().chain([&self.workspaces, &self.refused]) {
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
pub async fn sweep_regularly(policy: Current, shutdown: CancellationToken) {
    loop {
        let limits = Arc::clone(&policy.load().limits);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
            () = limits.full.notified() => tokio::time::sleep(Duration::from_secs(1)).await,
        }
        limits.sweep();
    }
}

impl ClassLimiter {
    /// Counts a key that was whole before: there was none, or as good as none.
    fn count_key(&self, before: u32) {
        if before >= self.burst {
            self.keys.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn new(name: &str, limit: RateLimit) -> Self {
        let burst = NonZeroU32::new(limit.requests).unwrap_or(NonZeroU32::MIN);
        let window = Duration::from_secs(u64::from(limit.window_seconds));
        let step = (window / burst.get()).max(Duration::from_nanos(1));
        let quota = governor::Quota::with_period(step)
            .unwrap_or_else(|| governor::Quota::per_second(burst))
            .allow_burst(burst);
        let policy = format!("\"{}\";q={burst};w={}", name, limit.window_seconds);
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
            workspace: limit,
            refused: limit,
            shared: false,
            fail_open: true,
            keys,
        })
    }

    fn field(limits: &Limits, decision: &Decision, name: &str) -> String {
        let mut fields = HeaderMap::new();
        limits.mark(&mut fields, decision);
        fields[name].to_str().unwrap().to_owned()
    }

    #[test]
    fn exactly_the_quota_passes_also_under_concurrency() {
        let limits = Arc::new(limits(100, 1_000));
        let user = Principal::User(UserId(7));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let limits = Arc::clone(&limits);
                std::thread::spawn(move || {
                    (0..50)
                        .filter(|_| limits.check(Class::Send, user, None).allowed)
                        .count()
                })
            })
            .collect();
        let passed: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(passed, 100);
    }

    #[test]
    fn principals_and_classes_do_not_touch_each_other() {
        let limits = limits(1, 1_000);
        let (a, b) = (Principal::User(UserId(1)), Principal::User(UserId(2)));
        assert!(limits.check(Class::Send, a, None).allowed);
        assert!(!limits.check(Class::Send, a, None).allowed);
        assert!(limits.check(Class::Send, b, None).allowed);
        assert!(limits.check(Class::Read, a, None).allowed);
        let v6 = |text: &str| Principal::of_address(text.parse().unwrap());
        assert!(limits.check(Class::Auth, v6("2001:db8::1"), None).allowed);
        assert!(!limits.check(Class::Auth, v6("2001:db8::2"), None).allowed);
        assert!(limits.check(Class::Auth, v6("2001:db8:0:1::1"), None).allowed);
    }

    #[test]
    fn the_fields_say_what_is_left_and_when_it_is_whole() {
        let limits = limits(4, 1_000);
        let user = Principal::User(UserId(1));
        let first = limits.check(Class::Send, user, None);
        assert_eq!(field(&limits, &first, "ratelimit-policy"), "\"send\";q=4;w=3600");
        assert_eq!(field(&limits, &first, "ratelimit"), "\"send\";r=3;t=900");
        for _ in 0..3 {
            limits.check(Class::Send, user, None);
        }
        let refused = limits.check(Class::Send, user, None);
        assert!(!refused.allowed);
        assert!((899..=900).contains(&refused.retry_after()), "{refused:?}");
        assert!(field(&limits, &refused, "ratelimit").starts_with("\"send\";r=0;t="));
    }

    #[test]
    fn a_flood_of_addresses_keeps_memory_bounded_and_users_unharmed() {
        let limits = limits(10, 1_000);
        for address in 0..1_000_000_u128 {
            limits.check(Class::Auth, Principal::Network(address << 64), None);
        }
        let stored = limits.classes[Class::Auth as usize].limiter.len();
        assert!(stored <= 1_000 + usize::try_from(SHARED_BUCKETS).unwrap(), "{stored}");
        assert!(limits.check(Class::Auth, Principal::User(UserId(1)), None).allowed);
    }

    #[test]
    fn a_workspace_has_a_limit_of_its_own() {
        let settings = RateLimits {
            workspace: RateLimit {
                requests: 2,
                window_seconds: 3_600,
            },
            ..RateLimits::default()
        };
        let limits = Limits::new(&settings);
        let check = |user, workspace| {
            let user = Principal::User(UserId(user));
            limits.check(Class::Send, user, Some(WorkspaceId(workspace)))
        };
        assert!(check(1, 1).allowed && check(2, 1).allowed);
        let third = check(3, 1);
        assert!(!third.allowed);
        assert!(field(&limits, &third, "ratelimit").starts_with("\"workspace\";r=0;t="));
        assert!(check(4, 2).allowed);
    }

    #[test]
    fn refusals_have_a_limit_of_their_own() {
        let limits = limits(2, 1_000);
        let address = Principal::of_address("192.0.2.1".parse().unwrap());
        assert_eq!(
            [limits.check_refused(address), limits.check_refused(address)],
            [None, None]
        );
        assert_eq!(limits.check_refused(address), Some(1_800));
        assert!(limits.check(Class::Auth, address, None).allowed);
    }

    #[test]
    fn what_others_let_through_is_taken_as_far_as_it_is_there() {
        let limits = limits(10, 1_000);
        let user = Principal::User(UserId(1));
        limits.taken_elsewhere(Quota::Class(Class::Send), user, 7);
        assert_eq!(limits.check(Class::Send, user, None).remaining, 2);
        limits.taken_elsewhere(Quota::Class(Class::Send), user, 100);
        assert!(!limits.check(Class::Send, user, None).allowed);
        assert!(limits.check(Class::Read, user, None).allowed);
    }
}
