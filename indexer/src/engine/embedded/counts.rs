//! Counting and looking up by id, by array where ids lie close together and by hash where they do not.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, OnceLock};

use fechatter_core::ChatId;
use tantivy::columnar::Column;

/// Widest range of values that is kept as an array.
const SPAN_MAX: i64 = 1 << 18;
/// Documents from which making an array is worth its while.
const DOCUMENTS_MIN: u32 = 2_048;

/// Hashes ids by one multiplication; they are ours, nobody can choose them to collide.
#[derive(Debug, Clone, Copy, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }

    fn write_i64(&mut self, id: i64) {
        self.write_u64(id.cast_unsigned());
    }
}

/// A map by id.
pub type IdMap<V> = HashMap<i64, V, BuildHasherDefault<IdHasher>>;

/// A range of values, and how many there are; `None` when it is too wide for an array or not worth one.
fn span(low: i64, high: i64, documents: u32) -> Option<usize> {
    let span = high.checked_sub(low)?.checked_add(1)?;
    let is_worth_it = documents >= DOCUMENTS_MIN && (1..=SPAN_MAX).contains(&span);
    is_worth_it.then(|| usize::try_from(span).ok()).flatten()
}

fn place(value: i64, low: i64) -> Option<usize> {
    usize::try_from(value.checked_sub(low)?).ok()
}

/// How often each value came.
#[derive(Debug)]
pub enum Counts {
    Array { low: i64, counts: Vec<u32> },
    Map(IdMap<u32>),
}

impl Default for Counts {
    fn default() -> Self {
        Self::Map(IdMap::default())
    }
}

impl Counts {
    /// For values from `low` to `high` of a segment with so many documents.
    pub fn between(low: i64, high: i64, documents: u32) -> Self {
        span(low, high, documents).map_or_else(Self::default, |span| Self::Array {
            low,
            counts: vec![0; span],
        })
    }

    /// For the values of a column.
    pub fn of(column: &Column<i64>, documents: u32) -> Self {
        Self::between(column.min_value(), column.max_value(), documents)
    }

    /// Counts one more.
    pub fn add(&mut self, value: i64) {
        match self {
            Self::Array { low, counts } => {
                if let Some(count) = place(value, *low).and_then(|place| counts.get_mut(place)) {
                    *count += 1;
                }
            }
            Self::Map(counts) => *counts.entry(value).or_default() += 1,
        }
    }

    /// Adds to sums over segments.
    pub fn add_to(self, sums: &mut IdMap<u64>) {
        match self {
            Self::Array { low, counts } => {
                for (value, count) in (low..).zip(counts).filter(|(_, count)| *count > 0) {
                    *sums.entry(value).or_default() += u64::from(count);
                }
            }
            Self::Map(counts) => {
                for (value, count) in counts {
                    *sums.entry(value).or_default() += u64::from(count);
                }
            }
        }
    }
}

/// The chats that may be looked into, some of them preferred.
#[derive(Debug)]
pub struct Chats {
    all: Arc<[ChatId]>,
    preferred: Arc<[ChatId]>,
    /// Whether each is preferred; made when a segment needs it.
    map: OnceLock<IdMap<bool>>,
}

impl Chats {
    /// Of sorted ids.
    pub fn new(all: Arc<[ChatId]>, preferred: Arc<[ChatId]>) -> Self {
        Self {
            all,
            preferred,
            map: OnceLock::new(),
        }
    }

    fn map(&self) -> &IdMap<bool> {
        self.map.get_or_init(|| {
            let is_preferred = |chat: &ChatId| self.preferred.binary_search(chat).is_ok();
            self.all.iter().map(|chat| (chat.0, is_preferred(chat))).collect()
        })
    }
}

/// The same as one segment needs it.
#[derive(Debug)]
pub enum Allowed {
    Array { low: i64, states: Vec<u8> },
    Map(Arc<Chats>),
}

const IN: u8 = 1;
const PREFERRED: u8 = 2;

impl Allowed {
    /// For chats from `low` to `high` of a segment with so many documents.
    pub fn between(chats: &Arc<Chats>, low: i64, high: i64, documents: u32) -> Self {
        let Some(span) = span(low, high, documents) else {
            return Self::Map(Arc::clone(chats));
        };
        let mut states = vec![0; span];
        let inside = |ids: &[ChatId]| {
            let end = ids.partition_point(|chat| chat.0 <= high);
            ids.partition_point(|chat| chat.0 < low)..end
        };
        for chat in &chats.all[inside(&chats.all)] {
            if let Some(state) = place(chat.0, low).and_then(|place| states.get_mut(place)) {
                *state = IN;
            }
        }
        for chat in &chats.preferred[inside(&chats.preferred)] {
            // To prefer a chat does not allow it.
            if let Some(state) = place(chat.0, low).and_then(|place| states.get_mut(place))
                && *state == IN
            {
                *state = PREFERRED;
            }
        }
        Self::Array { low, states }
    }

    /// Whether a chat may be looked into: whether it is preferred, if so.
    pub fn get(&self, chat: i64) -> Option<bool> {
        match self {
            Self::Array { low, states } => match *states.get(place(chat, *low)?)? {
                0 => None,
                state => Some(state == PREFERRED),
            },
            Self::Map(chats) => chats.map().get(&chat).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_and_maps_count_alike() {
        for values in [vec![5, 7, 5, -3], vec![i64::MIN, i64::MAX, 0, 0], vec![]] {
            let (low, high) = (
                values.iter().min().copied().unwrap_or(0),
                values.iter().max().copied().unwrap_or(0),
            );
            for documents in [1, DOCUMENTS_MIN] {
                let mut counts = Counts::between(low, high, documents);
                let (mut sums, mut expected) = (IdMap::default(), IdMap::default());
                for &value in &values {
                    counts.add(value);
                    *expected.entry(value).or_insert(0_u64) += 1;
                }
                counts.add_to(&mut sums);
                assert_eq!(sums, expected);
            }
        }
    }

    #[test]
    fn arrays_and_maps_allow_alike() {
        let ids = |ids: &[i64]| ids.iter().copied().map(ChatId).collect::<Arc<[ChatId]>>();
        let chats = Arc::new(Chats::new(ids(&[2, 5, 900, 1_000_000]), ids(&[5, 7, 1_000_000])));
        for (low, high) in [(1, 1_000), (3, 5), (6, 8), (-5, 0)] {
            let array = Allowed::between(&chats, low, high, DOCUMENTS_MIN);
            let map = Allowed::between(&chats, low, high, 1);
            assert!(matches!((&array, &map), (Allowed::Array { .. }, Allowed::Map(_))));
            for chat in low..=high {
                assert_eq!(array.get(chat), map.get(chat), "{chat} of {low}..={high}");
            }
            // What the segment does not have, it has not.
            assert_eq!(array.get(i64::MIN), None);
            assert_eq!(array.get(i64::MAX), None);
        }
        assert_eq!(
            Allowed::between(&chats, 1, i64::MAX, DOCUMENTS_MIN).get(1_000_000),
            Some(true)
        );
    }
}
