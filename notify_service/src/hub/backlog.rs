//! What a stream begins with.

use bytes::Bytes;

use super::ring::Entry;
use super::{Inner, Join, Refusal};
use crate::frame::{self, Cursor, GapReason};

/// How far behind another process of ours this one can be, in events.
const BEHIND_MAX: u64 = 1_000_000;

/// Events that are no longer in memory, read from the stream for a client that comes back late.
#[derive(Debug, Default)]
pub struct Earlier {
    /// All events of its workspace after its cursor, up to `upto`.
    pub entries: Vec<Entry>,
    pub upto: u64,
    /// Why there is nothing.
    pub fault: Option<GapReason>,
}

/// The first frames of a stream.
#[derive(Debug)]
pub(super) struct Backlog {
    pub frames: Vec<Bytes>,
    /// The sequence that the client has then.
    pub after: u64,
    /// The name of the first event.
    pub beginning: &'static str,
    pub count: usize,
}

impl Inner {
    /// What a stream begins with at `position`.
    pub(super) fn backlog(
        &self,
        join: &Join,
        position: Cursor,
        earlier: &Earlier,
        replay_max: usize,
    ) -> Result<Backlog, Refusal> {
        let known = self.directory.users.get(&join.user).ok_or(Refusal::NotRead)?;
        let gap = |reason: GapReason| {
            crate::metrics::gap(reason.as_str(), 1);
            Ok(Backlog {
                frames: vec![frame::gap(position, reason), frame::caught_up(position)],
                after: position.sequence,
                beginning: "gap",
                count: 0,
            })
        };
        let Some(cursor) = join.cursor else {
            if join.unreadable_cursor {
                return gap(GapReason::UnknownCursor);
            }
            return Ok(Backlog {
                frames: vec![frame::ready(position), frame::caught_up(position)],
                after: position.sequence,
                beginning: "ready",
                count: 0,
            });
        };
        if cursor.epoch != position.epoch {
            return gap(GapReason::HistoryChanged);
        }
        if cursor.sequence > position.sequence.saturating_add(BEHIND_MAX) {
            return gap(GapReason::UnknownCursor);
        }
        if cursor.sequence < self.whole_after {
            return gap(GapReason::EventsLost);
        }
        let from_ring_after = cursor.sequence.max(earlier.upto);
        let Some(newer) = self.ring.after(from_ring_after) else {
            return match earlier.fault {
                Some(reason) => gap(reason),
                None => Err(Refusal::NotKept {
                    upto: self.ring.start_after(),
                }),
            };
        };
        let mut frames = vec![Bytes::new()];
        frames.extend(
            earlier
                .entries
                .iter()
                .chain(newer)
                .filter(|entry| known.may_get(join.user, entry.workspace, entry.scope))
                .map(|entry| entry.frame.clone())
                .take(replay_max + 1),
        );
        let count = frames.len() - 1;
        if count > replay_max {
            return gap(GapReason::TooMany);
        }
        let reached = Cursor {
            sequence: position.sequence.max(cursor.sequence),
            ..position
        };
        frames[0] = frame::resumed(count);
        frames.push(frame::caught_up(reached));
        Ok(Backlog {
            frames,
            after: reached.sequence,
            beginning: "resumed",
            count,
        })
    }
}
