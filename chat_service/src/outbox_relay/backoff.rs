//! Waiting longer after each failure, and saying so once.

use std::time::Duration;

/// Doubling delays between two bounds, each drawn from the upper half so that replicas spread.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    pub(super) fn delay(&mut self) -> Duration {
        let ceiling = self.next;
        self.next = (ceiling * 2).min(self.longest);
        ceiling.mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// Logs the first failure of a row and its end, not each attempt between.
#[derive(Debug)]
pub(super) struct Outage {
    what: &'static str,
    is_on: bool,
}

impl Outage {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, is_on: false }
    }

    pub(super) fn failed(&mut self, error: &dyn std::fmt::Display) {
        if self.is_on {
            tracing::debug!(%error, "{} still fails", self.what);
        } else {
            self.is_on = true;
            tracing::warn!(%error, "{} fails, trying again until it works", self.what);
        }
    }

    pub(super) fn worked(&mut self) {
        if std::mem::take(&mut self.is_on) {
            tracing::info!("{} works again", self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
        let delays: Vec<_> = (0..8).map(|_| backoff.delay()).collect();
        assert!(delays[0] <= Duration::from_millis(250) && delays[0] >= Duration::from_millis(125));
        assert!(delays[7] <= Duration::from_secs(5) && delays[7] >= Duration::from_millis(2_500));
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(250));
    }
}
