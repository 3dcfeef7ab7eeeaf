//! What has been seen of each outbox shard: drops copies and notices what is missing.

use fechatter_core::events::SHARDS;
use time::OffsetDateTime;

/// What to do with an event, by its position in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The next of its shard, or the first that is seen of it.
    New,
    /// Seen before: a copy, or a latecomer of a publisher that lost its shard.
    Copy,
    /// New, and so many before it are missing.
    Jump { missing: i64 },
}

/// The highest position seen of each shard in one epoch.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    highest: [Option<i64>; SHARDS as usize],
    newest: Option<OffsetDateTime>,
}

impl Positions {
    fn of(&self, shard: i16) -> Option<i64> {
        self.highest[index(shard)?]
    }

    /// Judges an event and, unless it is a copy, remembers its position.
    pub fn admit(&mut self, shard: i16, position: i64) -> Admission {
        let Some(highest) = index(shard).map(|index| &mut self.highest[index]) else {
            return Admission::New;
        };
        let admission = match *highest {
            Some(seen) if position <= seen => return Admission::Copy,
            Some(seen) if position > seen + 1 => Admission::Jump {
                missing: position - seen - 1,
            },
            _ => Admission::New,
        };
        *highest = Some(position);
        admission
    }

    /// Remembers when the newest event happened.
    pub fn saw(&mut self, time: OffsetDateTime) {
        self.newest = self.newest.max(Some(time));
    }

    /// When the newest event seen happened, by the database's clock.
    pub fn newest(&self) -> Option<OffsetDateTime> {
        self.newest
    }

    /// Whether an event of the *next* epoch has been seen in this one. Positions come from the outbox and are the same in
    /// every epoch, so what was seen need not be sent again. Only a database restored from a backup gives a position a
    /// second time, and then to something that happened later than all we saw.
    pub fn covers(&self, shard: i16, position: i64, time: OffsetDateTime) -> bool {
        self.of(shard).is_some_and(|seen| position <= seen) && self.newest.is_some_and(|newest| time <= newest)
    }

    /// The positions with those of an earlier epoch where this one has not got as far.
    #[must_use]
    pub fn merged(mut self, earlier: &Self) -> Self {
        for (mine, theirs) in self.highest.iter_mut().zip(earlier.highest) {
            *mine = (*mine).max(theirs);
        }
        self.newest = self.newest.max(earlier.newest);
        self
    }
}

fn index(shard: i16) -> Option<usize> {
    usize::try_from(shard).ok().filter(|index| *index < SHARDS as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn the_first_may_have_any_position_then_copies_and_jumps_show() {
        let mut positions = Positions::default();
        assert_eq!(positions.admit(3, 70), Admission::New);
        assert_eq!(positions.admit(3, 71), Admission::New);
        assert_eq!(positions.admit(3, 71), Admission::Copy);
        assert_eq!(positions.admit(3, 1), Admission::Copy);
        assert_eq!(positions.admit(4, 1), Admission::New);
        assert_eq!(positions.admit(3, 74), Admission::Jump { missing: 2 });
        assert_eq!(positions.admit(3, 75), Admission::New);
    }

    #[test]
    fn what_was_seen_in_an_earlier_epoch_is_covered_unless_the_database_went_back() {
        let mut before = Positions::default();
        before.admit(1, 10);
        before.saw(datetime!(2026-11-23 10:00 UTC));
        assert!(before.covers(1, 10, datetime!(2026-11-23 10:00 UTC)));
        assert!(before.covers(1, 9, datetime!(2026-11-23 09:00 UTC)));
        assert!(!before.covers(1, 11, datetime!(2026-11-23 09:00 UTC)));
        assert!(!before.covers(1, 10, datetime!(2026-11-23 10:01 UTC)));
        assert!(!before.covers(2, 1, datetime!(2026-11-23 09:00 UTC)));

        let mut after = Positions::default();
        after.admit(2, 5);
        let both = after.merged(&before);
        assert!(
            both.covers(1, 10, datetime!(2026-11-23 10:00 UTC)) && both.covers(2, 5, datetime!(2026-11-23 10:00 UTC))
        );
    }
}
