//! What became of requests: latencies and errors by class.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Why something was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// No TCP connection.
    Connect,
    /// No TLS session.
    Tls,
    /// No answer in time.
    Timeout,
    /// Was due, and no connection was free for it in time.
    Unsent,
    /// The connection ended before the answer.
    Closed,
    /// 401 or 403.
    Refused,
    /// 429.
    RateLimited,
    /// 503.
    Overloaded,
    /// Another 5xx.
    Server,
    /// Another status that is no success.
    Status,
}

impl Fault {
    /// The class of a status; none of a success.
    pub const fn of_status(status: u16) -> Option<Self> {
        match status {
            200..=299 => None,
            401 | 403 => Some(Self::Refused),
            429 => Some(Self::RateLimited),
            503 => Some(Self::Overloaded),
            500..=599 => Some(Self::Server),
            _ => Some(Self::Status),
        }
    }

    /// What one can do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Connect => "nothing accepts connections there, or local ports or descriptors ran out",
            Self::Tls => "the certificate is not signed by --ca, or the server does not speak TLS there",
            Self::Timeout => "the target cannot keep up with this rate; lower --rate",
            Self::Unsent => {
                "all connections were waiting for answers: the target cannot keep up with this rate; lower --rate, or raise \
                 --connections if it answers slowly but works little"
            }
            Self::Closed => "the target closed connections; see its log",
            Self::Refused => "the credentials are wrong or the session ended",
            Self::RateLimited => {
                "the target's rate limits apply; lower --rate or raise rate_limits.* of its gateway (docs/gateway.md)"
            }
            Self::Overloaded => "the target says that it is overloaded or that a part of it is away",
            Self::Server | Self::Status => "see the target's log",
        }
    }
}

/// Latencies and errors of one kind of work.
#[derive(Debug, Clone)]
pub struct Outcomes {
    /// Microseconds.
    latency: Histogram<u64>,
    errors: BTreeMap<Fault, u64>,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self::new()
    }
}

/// Longest latency that is told apart from longer ones.
const LONGEST: Duration = Duration::from_mins(2);

impl Outcomes {
    pub fn new() -> Self {
        let highest = u64::try_from(LONGEST.as_micros()).unwrap_or(u64::MAX);
        let mut latency = Histogram::new_with_max(highest, 3).unwrap_or_else(|_| {
            Histogram::new(3).unwrap_or_else(|error| unreachable!("3 digits are allowed: {error}"))
        });
        latency.auto(false);
        Self {
            latency,
            errors: BTreeMap::new(),
        }
    }

    /// Counts a success.
    pub fn succeed(&mut self, latency: Duration) {
        self.latency
            .saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// Counts an error.
    pub fn fail(&mut self, fault: Fault) {
        *self.errors.entry(fault).or_default() += 1;
    }

    /// Adds what another worker counted.
    pub fn add(&mut self, other: &Self) {
        // Both have the same range.
        let _ = self.latency.add(&other.latency);
        for (fault, count) in &other.errors {
            *self.errors.entry(*fault).or_default() += count;
        }
    }

    /// Takes away what was counted before.
    pub fn subtract(&mut self, before: &Self) {
        // What was counted before is part of this.
        let _ = self.latency.subtract(&before.latency);
        for (fault, count) in &before.errors {
            if let Some(own) = self.errors.get_mut(fault) {
                *own -= count;
            }
        }
    }

    /// Successes.
    pub fn count(&self) -> u64 {
        self.latency.len()
    }

    /// Errors of all classes.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    pub fn errors(&self) -> &BTreeMap<Fault, u64> {
        &self.errors
    }

    /// Latency in milliseconds that this share (0 to 1) of the successes did not exceed.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        to_ms(self.latency.value_at_quantile(quantile))
    }

    pub fn max_ms(&self) -> f64 {
        to_ms(self.latency.max())
    }

    /// `(share of requests, milliseconds)` for a plot, up to the last request.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        self.latency
            .iter_quantiles(4)
            .map(|step| (step.quantile_iterated_to(), to_ms(step.value_iterated_to())))
            .collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of minutes")]
fn to_ms(micros: u64) -> f64 {
    micros as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_all_workers_and_errors_keep_their_class() {
        let (mut one, mut two) = (Outcomes::new(), Outcomes::new());
        for ms in 1..=50 {
            one.succeed(Duration::from_millis(ms));
            two.succeed(Duration::from_millis(ms + 50));
        }
        two.fail(Fault::RateLimited);
        two.succeed(Duration::from_hours(1));
        one.add(&two);
        assert_eq!((one.count(), one.error_count()), (101, 1));
        assert!(
            (49.9..=51.1).contains(&one.quantile_ms(0.5)),
            "{}",
            one.quantile_ms(0.5)
        );
        // Longer than the longest is the longest, not nothing.
        assert!(one.max_ms() >= 120_000.0);
        assert_eq!(one.errors().get(&Fault::RateLimited), Some(&1));
    }

    #[test]
    fn statuses_have_classes() {
        let classes = [201, 401, 404, 429, 500, 503].map(Fault::of_status);
        let expected = [
            None,
            Some(Fault::Refused),
            Some(Fault::Status),
            Some(Fault::RateLimited),
            Some(Fault::Server),
            Some(Fault::Overloaded),
        ];
        assert_eq!(classes, expected);
    }
}
