//! The newest events in memory, bounded by number and by bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::Entry;

/// The newest events, oldest first.
#[derive(Debug)]
pub struct Ring {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
    /// Everything after this sequence is here.
    start: u64,
}

impl Ring {
    /// An empty ring.
    pub const fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            max_entries,
            max_bytes,
            start: 0,
        }
    }

    /// Forgets everything; what comes after `start` will be here.
    pub fn reset(&mut self, start: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.start = start;
    }

    /// Adds the newest event and lets go of the oldest that no longer fit.
    pub fn push(&mut self, entry: Arc<Entry>) {
        self.bytes += entry.weight();
        self.entries.push_back(entry);
        while self.entries.len() > self.max_entries || self.bytes > self.max_bytes {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.weight();
            self.start = oldest.sequence;
        }
    }

    /// Everything after this sequence is here.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// What came after `sequence`; `None` when some of it is no longer here.
    pub fn after(&self, sequence: u64) -> Option<impl Iterator<Item = &Arc<Entry>>> {
        if sequence < self.start {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.sequence <= sequence);
        Some(self.entries.range(first..))
    }

    /// Memory in use, about.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of events held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no event is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Route;
    use bytes::Bytes;
    use time::OffsetDateTime;

    fn entry(sequence: u64, bytes: usize) -> Arc<Entry> {
        Arc::new(Entry {
            sequence,
            route: Route::Control,
            frame: Bytes::from(vec![b'x'; bytes]),
            time: OffsetDateTime::UNIX_EPOCH,
            context: None,
        })
    }

    fn sequences(ring: &Ring, after: u64) -> Option<Vec<u64>> {
        ring.after(after)
            .map(|entries| entries.map(|entry| entry.sequence).collect())
    }

    #[test]
    fn it_gives_all_that_came_after_or_says_that_it_cannot() {
        let mut ring = Ring::new(3, 1 << 20);
        ring.reset(10);
        assert_eq!(sequences(&ring, 9), None);
        assert_eq!(sequences(&ring, 10), Some(vec![]));
        // Sequences need not be contiguous: some events concern nobody.
        for sequence in [11, 14, 15] {
            ring.push(entry(sequence, 1));
        }
        assert_eq!(sequences(&ring, 10), Some(vec![11, 14, 15]));
        assert_eq!(sequences(&ring, 12), Some(vec![14, 15]));
        ring.push(entry(20, 1));
        assert_eq!(sequences(&ring, 10), None);
        assert_eq!(sequences(&ring, 11), Some(vec![14, 15, 20]));
        assert_eq!(sequences(&ring, 99), Some(vec![]));
    }

    #[test]
    fn bytes_are_bounded_and_counted() {
        let mut ring = Ring::new(1_000, 10_000);
        for sequence in 1..=100 {
            ring.push(entry(sequence, 1_000));
            assert!(ring.bytes() <= 10_000);
        }
        assert!(ring.len() >= 5 && ring.len() < 10, "{}", ring.len());
        assert_eq!(ring.start(), 100 - ring.len() as u64);
        // One larger than the whole ring passes through and leaves an honest start.
        ring.push(entry(101, 20_000));
        assert_eq!((ring.len(), ring.bytes(), ring.start()), (0, 0, 101));
        assert_eq!(sequences(&ring, 100), None);
    }
}
