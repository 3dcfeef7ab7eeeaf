//! Which events have been seen: the contract of `docs/events.md`, without the stream.

use fechatter_core::events::SHARDS;
use uuid::Uuid;

/// The headers that order an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub epoch: Uuid,
    pub shard: usize,
    pub position: i64,
}

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The next one of its shard.
    Deliver,
    /// Events before it are missing; then deliver it.
    Hole,
    /// A copy.
    Drop,
    /// Of another history: the stream must say which one is its own.
    OtherEpoch,
}

/// The highest position seen of each shard in the present history.
#[derive(Debug, Default)]
pub struct Positions {
    epoch: Option<Uuid>,
    highest: [i64; SHARDS as usize],
}

impl Positions {
    /// The history worked in.
    pub const fn epoch(&self) -> Option<Uuid> {
        self.epoch
    }

    /// A new history: nothing of it has been seen.
    pub fn begin(&mut self, epoch: Uuid) {
        *self = Self {
            epoch: Some(epoch),
            ..Self::default()
        };
    }

    /// Judges an event and, unless it is of another history, counts it as seen.
    pub fn judge(&mut self, place: Place) -> Verdict {
        if self.epoch != Some(place.epoch) {
            return Verdict::OtherEpoch;
        }
        let Some(highest) = self.highest.get_mut(place.shard) else {
            return Verdict::Drop;
        };
        let seen = *highest;
        if place.position <= seen {
            return Verdict::Drop;
        }
        *highest = place.position;
        // The first event of a shard that is seen may have any position.
        if seen != 0 && place.position > seen + 1 {
            Verdict::Hole
        } else {
            Verdict::Deliver
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_holes_and_other_histories() {
        let epoch = Uuid::from_u128(1);
        let mut positions = Positions::default();
        let place = |shard, position| Place { epoch, shard, position };
        assert_eq!(positions.judge(place(0, 5)), Verdict::OtherEpoch);
        positions.begin(epoch);
        assert_eq!(positions.judge(place(0, 5)), Verdict::Deliver);
        assert_eq!(positions.judge(place(0, 5)), Verdict::Drop);
        assert_eq!(positions.judge(place(0, 4)), Verdict::Drop);
        assert_eq!(positions.judge(place(0, 6)), Verdict::Deliver);
        assert_eq!(positions.judge(place(0, 8)), Verdict::Hole);
        assert_eq!(positions.judge(place(1, 1)), Verdict::Deliver);
        assert_eq!(positions.judge(place(99, 1)), Verdict::Drop);
        let other = Place {
            epoch: Uuid::from_u128(2),
            ..place(0, 9)
        };
        assert_eq!(positions.judge(other), Verdict::OtherEpoch);
        positions.begin(other.epoch);
        assert_eq!(positions.judge(other), Verdict::Deliver);
    }
}
