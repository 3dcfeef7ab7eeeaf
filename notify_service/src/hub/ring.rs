//! The newest events in memory, one encoded copy each.

use std::collections::VecDeque;

use bytes::Bytes;
use fechatter_core::{ChatId, UserId, WorkspaceId};

/// Who may get an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The members of a chat.
    Chat(ChatId),
    /// The members of a chat and the one who is not one any more.
    ChatAnd(ChatId, UserId),
    /// Those who were members when the chat was deleted.
    Deleted(ChatId),
    /// One user's devices.
    User(UserId),
    /// Everybody in the workspace.
    Workspace,
}

/// An event as its receivers get it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub sequence: u64,
    pub workspace: WorkspaceId,
    pub scope: Scope,
    pub frame: Bytes,
}

/// Bounded in number and bytes; the oldest leave first.
#[derive(Debug)]
pub struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
    /// Everything after this sequence is here.
    start_after: u64,
}

impl Ring {
    /// An empty ring.
    pub const fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            max_entries,
            max_bytes,
            start_after: 0,
        }
    }

    /// Forgets all; what comes next follows `start_after`.
    pub fn reset(&mut self, start_after: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.start_after = start_after;
    }

    /// Adds the newest event.
    pub fn push(&mut self, entry: Entry) {
        self.bytes += entry.frame.len();
        self.entries.push_back(entry);
        while self.entries.len() > self.max_entries || self.bytes > self.max_bytes {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.frame.len();
            self.start_after = oldest.sequence;
        }
    }

    /// The events after `sequence`, or `None` when some of them have left.
    pub fn after(&self, sequence: u64) -> Option<impl Iterator<Item = &Entry>> {
        if sequence < self.start_after {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.sequence <= sequence);
        Some(self.entries.range(first..))
    }

    /// Everything after this sequence is here.
    pub const fn start_after(&self) -> u64 {
        self.start_after
    }

    /// Events and bytes held.
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u64, bytes: usize) -> Entry {
        Entry {
            sequence,
            workspace: WorkspaceId(1),
            scope: Scope::Workspace,
            frame: Bytes::from(vec![b'x'; bytes]),
        }
    }

    fn after(ring: &Ring, sequence: u64) -> Option<Vec<u64>> {
        ring.after(sequence)
            .map(|entries| entries.map(|entry| entry.sequence).collect())
    }

    #[test]
    fn the_oldest_leave_and_their_absence_is_known() {
        let mut ring = Ring::new(3, 100);
        ring.reset(10);
        assert_eq!(after(&ring, 9), None);
        assert_eq!(after(&ring, 10), Some(vec![]));
        for sequence in [12, 13, 15, 16] {
            ring.push(entry(sequence, 10));
        }
        assert_eq!(after(&ring, 11), None);
        assert_eq!(after(&ring, 12), Some(vec![13, 15, 16]));
        assert_eq!(after(&ring, 14), Some(vec![15, 16]));
        assert_eq!(after(&ring, 99), Some(vec![]));
        ring.push(entry(17, 95));
        assert_eq!(ring.size(), (1, 95));
        assert_eq!(after(&ring, 15), None);
        assert_eq!(after(&ring, 16), Some(vec![17]));
    }
}
