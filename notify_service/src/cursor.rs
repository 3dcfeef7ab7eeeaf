//! A place in the event stream, as clients hold it: opaque to them, `{epoch}.{stream sequence}` to us.

use uuid::Uuid;

/// Longest cursor that is looked at, in bytes.
const CURSOR_BYTES_MAX: usize = 64;

/// Everything up to `sequence` of the history `epoch` has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    pub epoch: Uuid,
    pub sequence: u64,
}

/// What a client sent is not one of our cursors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor")]
pub struct MalformedCursor;

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch.simple(), self.sequence)
    }
}

impl std::str::FromStr for Cursor {
    type Err = MalformedCursor;

    /// Accepts exactly what [`Display`](std::fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > CURSOR_BYTES_MAX {
            return Err(MalformedCursor);
        }
        let (epoch, sequence) = text.split_once('.').ok_or(MalformedCursor)?;
        let cursor = Self {
            epoch: Uuid::try_parse(epoch).map_err(|_| MalformedCursor)?,
            sequence: sequence.parse().map_err(|_| MalformedCursor)?,
        };
        if cursor.to_string() == text {
            Ok(cursor)
        } else {
            Err(MalformedCursor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_round_trips() {
        let cursor = Cursor {
            epoch: Uuid::now_v7(),
            sequence: 42,
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    #[test]
    fn anything_else_is_malformed() {
        let epoch = Uuid::nil();
        let long = format!("{}.{}", epoch.simple(), "1".repeat(100));
        let overflowing = format!("{}.18446744073709551616", epoch.simple());
        let signed = format!("{}.+1", epoch.simple());
        let padded = format!("{}.01", epoch.simple());
        let hyphenated = format!("{epoch}.1");
        let upper = format!("{}.1", "A".repeat(32));
        for text in [
            "",
            ".",
            "1",
            "1.1",
            "null",
            "e.1",
            "\u{0}",
            "日本.1",
            &long,
            &overflowing,
            &signed,
            &padded,
            &hyphenated,
            &upper,
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(MalformedCursor), "{text:?}");
        }
    }
}
