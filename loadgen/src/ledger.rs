//! Which message came to which screen, and when: what is late, lost or doubled.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::outcome::Outcomes;

/// Messages by number, each expected once on a number of screens.
#[derive(Debug)]
pub struct Ledger {
    start: Instant,
    /// Microseconds after `start` that each was due; 0 for those that never were.
    due: Vec<AtomicU64>,
    /// How often each was seen.
    seen: Vec<AtomicU32>,
    /// Microseconds after `start` that each was seen last.
    last: Vec<AtomicU64>,
    latency: Vec<Mutex<Outcomes>>,
    /// Screens that each message is for, where that is more than one.
    screens: usize,
    /// A bit for each message and screen that saw it.
    seen_by: Vec<AtomicU64>,
    /// Sightings on a screen that had seen the message.
    doubled: AtomicU64,
}

/// Latencies are kept apart so that receivers seldom wait for each other.
const STRIPES: usize = 16;

impl Ledger {
    /// Room for messages numbered from 0 to `messages - 1`.
    pub fn new(messages: usize) -> Self {
        fn zeros(count: usize) -> Vec<AtomicU64> {
            (0..count).map(|_| AtomicU64::new(0)).collect()
        }
        Self {
            start: Instant::now(),
            due: zeros(messages),
            seen: (0..messages).map(|_| AtomicU32::new(0)).collect(),
            last: zeros(messages),
            latency: (0..STRIPES).map(|_| Mutex::new(Outcomes::new())).collect(),
            screens: 0,
            seen_by: Vec::new(),
            doubled: AtomicU64::new(0),
        }
    }

    /// The same, where each message is for all of `screens` and who saw it is remembered.
    pub fn for_all(messages: usize, screens: usize) -> Self {
        let bits = messages * screens;
        Self {
            screens,
            seen_by: (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            ..Self::new(messages)
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_micros())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// A message will be sent.
    pub fn is_due(&self, number: u64, at: Instant) {
        if let Some(due) = index(number).and_then(|number| self.due.get(number)) {
            due.store(self.micros(at), Ordering::Relaxed);
        }
    }

    /// A message was seen by a screen; false for one that nobody sent.
    pub fn is_seen(&self, number: u64, screen: usize, at: Instant) -> bool {
        let Some(number) = index(number).filter(|number| *number < self.due.len()) else {
            return false;
        };
        let due = self.due[number].load(Ordering::Relaxed);
        if due == 0 {
            return false;
        }
        let now = self.micros(at);
        self.seen[number].fetch_add(1, Ordering::Relaxed);
        self.last[number].fetch_max(now, Ordering::Relaxed);
        let waited = std::time::Duration::from_micros(now.saturating_sub(due));
        if screen < self.screens {
            let bit = number * self.screens + screen;
            let mask = 1 << (bit % 64);
            if self.seen_by[bit / 64].fetch_or(mask, Ordering::Relaxed) & mask != 0 {
                self.doubled.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Ok(mut latency) = self.latency[screen % STRIPES].lock() {
            latency.succeed(waited);
        }
        true
    }

    /// How often a message was seen.
    pub fn times_seen(&self, number: u64) -> u32 {
        index(number)
            .and_then(|number| self.seen.get(number))
            .map_or(0, |seen| seen.load(Ordering::Relaxed))
    }

    /// Of a ledger [`for_all`](Self::for_all): how many screens missed one of the first `messages`, and how often a screen saw
    /// one again.
    pub fn lost_and_doubled(&self, messages: u64) -> (u64, u64) {
        let bits: u64 = self
            .seen_by
            .iter()
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum();
        let expected = messages * self.screens as u64;
        (expected.saturating_sub(bits), self.doubled.load(Ordering::Relaxed))
    }

    /// Latency to the last screen that saw it, for a message that was seen.
    pub fn last_after(&self, number: u64) -> Option<std::time::Duration> {
        let number = index(number).filter(|number| *number < self.due.len())?;
        let (due, last) = (
            self.due[number].load(Ordering::Relaxed),
            self.last[number].load(Ordering::Relaxed),
        );
        (due > 0 && last > 0).then(|| std::time::Duration::from_micros(last.saturating_sub(due)))
    }

    /// When a message was seen last.
    pub fn last_at(&self, number: u64) -> Option<Instant> {
        let last = self.last.get(index(number)?)?.load(Ordering::Relaxed);
        (last > 0).then(|| self.start + std::time::Duration::from_micros(last))
    }

    /// Latencies of all that was seen.
    pub fn latencies(&self) -> Outcomes {
        let mut all = Outcomes::new();
        for part in &self.latency {
            if let Ok(part) = part.lock() {
                all.add(&part);
            }
        }
        all
    }
}

fn index(number: u64) -> Option<usize> {
    usize::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_lost_doubled_or_unknown_is_told_apart() {
        let ledger = Ledger::new(3);
        let now = Instant::now();
        ledger.is_due(0, now);
        ledger.is_due(1, now);
        assert!(ledger.is_seen(0, 1, now + Duration::from_millis(5)));
        assert!(ledger.is_seen(0, 2, now + Duration::from_millis(9)));
        assert!(!ledger.is_seen(2, 1, now), "nobody sent it");
        assert!(!ledger.is_seen(3, 1, now), "there is none");
        assert_eq!([0, 1, 2].map(|number| ledger.times_seen(number)), [2, 0, 0]);
        assert_eq!(ledger.last_after(0), Some(Duration::from_millis(9)));
        assert_eq!(ledger.last_after(1), None);
        assert_eq!(ledger.latencies().count(), 2);
    }

    #[test]
    fn one_screen_that_sees_twice_does_not_hide_one_that_missed_it() {
        let ledger = Ledger::for_all(2, 3);
        let now = Instant::now();
        for number in 0..2 {
            ledger.is_due(number, now);
        }
        for (number, screen) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 1)] {
            assert!(ledger.is_seen(number, screen, now));
        }
        assert_eq!(ledger.times_seen(1), 3);
        assert_eq!(ledger.lost_and_doubled(2), (1, 1));
    }
}
