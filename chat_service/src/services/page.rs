//! Cursors of lists: opaque to clients, the last id inside.

use fechatter_core::wire::Page;

use crate::error::Error;

/// Items of a page when the client does not say.
pub const LIMIT_DEFAULT: i64 = 50;
/// Most items of a page of messages.
pub const LIMIT_MAX: i64 = 100;

/// Checks `limit` (1 to 100, default 50).
pub fn limit(limit: Option<i64>) -> Result<i64, Error> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(Error::field("limit", "out_of_range", "limit is 1 to 100"))
    }
}

/// Reads a cursor made by [`page`]; `start` is where a list without one begins.
pub fn cursor(cursor: Option<&str>, start: i64) -> Result<i64, Error> {
    let Some(text) = cursor else { return Ok(start) };
    text.strip_prefix("id_")
        .and_then(|id| id.parse::<i64>().ok())
        .filter(|id| *id > 0)
        .ok_or_else(|| Error::field("cursor", "invalid", "pass the `next` of the page before, unchanged"))
}

/// Makes a page of at most `limit` items from a list read with one item more.
pub fn page<T>(mut items: Vec<T>, limit: i64, id: impl Fn(&T) -> i64) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = if items.len() > limit {
        items.truncate(limit);
        items.last().map(|last| format!("id_{}", id(last)))
    } else {
        None
    };
    Page { items, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_where_the_next_one_begins() {
        let first = page(vec![1_i64, 2, 3], 2, |id| *id);
        assert_eq!((first.items, first.next.as_deref()), (vec![1, 2], Some("id_2")));
        assert_eq!(cursor(Some("id_2"), 0).unwrap(), 2);
        assert_eq!(page(vec![3_i64], 2, |id| *id).next, None);
    }

    #[test]
    fn foreign_cursors_and_limits_are_refused() {
        for bad in ["", "2", "id_", "id_-1", "id_x", "id_99999999999999999999"] {
            assert!(matches!(cursor(Some(bad), 0), Err(Error::Invalid(_))), "{bad}");
        }
        for bad in [0, -1, 101, i64::MAX] {
            assert!(limit(Some(bad)).is_err(), "{bad}");
        }
    }
}
