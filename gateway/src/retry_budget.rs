//! How many attempts may be repeated: a part of the requests, so that retries never multiply an outage.

use std::sync::atomic::{AtomicI64, Ordering};

/// What one retry costs.
const RETRY: i64 = 1_000;
/// Retries that can be saved up.
const SAVED_MAX: i64 = 100 * RETRY;
/// Retries there are always, each second: few requests earn few.
const ALWAYS: i64 = 10 * RETRY;

/// The budget of one group.
#[derive(Debug)]
pub struct RetryBudget(AtomicI64);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(ALWAYS))
    }
}

impl RetryBudget {
    /// A request earns `percent` of a retry.
    pub fn earn(&self, percent: u32) {
        if self.0.load(Ordering::Relaxed) < SAVED_MAX {
            self.0.fetch_add(i64::from(percent) * RETRY / 100, Ordering::Relaxed);
        }
    }

    /// Pays for a retry, if there is enough.
    pub fn spend(&self) -> bool {
        let paid = self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |saved| {
            (saved >= RETRY).then_some(saved - RETRY)
        });
        paid.is_ok()
    }

    /// To be called each second.
    pub fn refill(&self) {
        self.0.fetch_max(ALWAYS, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_part_of_the_requests() {
        let budget = RetryBudget::default();
        let retries = || std::iter::from_fn(|| budget.spend().then_some(())).count();
        assert_eq!(retries(), 10);
        for _ in 0..100 {
            budget.earn(20);
        }
        assert_eq!(retries(), 20);
        for _ in 0..10_000 {
            budget.earn(20);
        }
        assert_eq!(retries(), 100);
        budget.refill();
        assert_eq!(retries(), 10);
    }
}
