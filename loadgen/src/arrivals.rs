//! When requests are due.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A request that is due.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Counts from 0.
    pub number: u64,
    /// Latency counts from here.
    pub due: Instant,
}

/// Independent users: arrivals of a Poisson process of a fixed rate.
#[derive(Debug)]
pub struct Poisson {
    /// Arrivals per second.
    rate: f64,
    rng: StdRng,
    /// Since the start.
    at: Duration,
    end: Duration,
    number: u64,
}

impl Poisson {
    /// `rate` arrivals per second for `length`, the same for the same `seed`.
    pub fn new(rate: f64, length: Duration, seed: u64) -> Self {
        Self {
            rate,
            rng: StdRng::seed_from_u64(seed),
            at: Duration::ZERO,
            end: length,
            number: 0,
        }
    }
}

impl Iterator for Poisson {
    type Item = (u64, Duration);

    fn next(&mut self) -> Option<Self::Item> {
        // In (0, 1], so that its logarithm is finite.
        let uniform = 1.0 - self.rng.random::<f64>();
        self.at += Duration::from_secs_f64(-uniform.ln() / self.rate);
        if self.at >= self.end {
            return None;
        }
        self.number += 1;
        Some((self.number - 1, self.at))
    }
}

/// Hands arrivals out at their times. A thread of its own: the runtime's timers are too coarse (1 ms), and a busy runtime
/// must not delay what the results are measured against.
pub fn dispatch(schedule: Poisson, start: Instant) -> (async_channel::Receiver<Arrival>, JoinHandle<()>) {
    let (sender, receiver) = async_channel::unbounded();
    let thread = std::thread::spawn(move || {
        for (number, at) in schedule {
            let due = start + at;
            let wait = due.saturating_duration_since(Instant::now());
            // What is due within the kernel's timer slack is handed out at once, up to that much early.
            if wait > Duration::from_micros(60) {
                std::thread::sleep(wait);
            }
            if sender.send_blocking(Arrival { number, due }).is_err() {
                return;
            }
        }
    });
    (receiver, thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_their_rate_and_unevenly() {
        let all: Vec<_> = Poisson::new(1_000.0, Duration::from_secs(20), 7).collect();
        assert!((19_400..20_600).contains(&all.len()), "{}", all.len());
        assert!(
            all.windows(2)
                .all(|pair| pair[0].1 <= pair[1].1 && pair[0].0 + 1 == pair[1].0)
        );
        // The gaps of a Poisson process deviate by as much as their mean.
        let gaps: Vec<f64> = all
            .windows(2)
            .map(|pair| pair[1].1.saturating_sub(pair[0].1).as_secs_f64() * 1e3)
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let count = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / count;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count).sqrt();
        assert!((0.9..1.1).contains(&deviation), "{deviation}");
        assert_eq!(
            all,
            Poisson::new(1_000.0, Duration::from_secs(20), 7).collect::<Vec<_>>()
        );
    }
}
