//! The columns of a segment, opened once and kept while a segment lives: a search opens none.

use std::sync::Arc;

use tantivy::columnar::Column;
use tantivy::index::SegmentId;
use tantivy::{Searcher, SegmentReader};

use super::schema::column;

/// The columns of one segment. Every document has a value in each, so that reading one is a look into an array.
#[derive(Debug)]
pub struct Columns {
    segment: SegmentId,
    pub id: Column<i64>,
    pub version: Column<i64>,
    pub workspace: Column<i64>,
    pub chat: Column<i64>,
    pub sender: Column<i64>,
    pub created: Column<i64>,
    pub link: Column<bool>,
}

impl Columns {
    fn open(segment: &SegmentReader) -> tantivy::Result<Self> {
        let columns = segment.fast_fields();
        Ok(Self {
            segment: segment.segment_id(),
            id: columns.i64(column::ID)?,
            version: columns.i64(column::VERSION)?,
            workspace: columns.i64(column::WORKSPACE)?,
            chat: columns.i64(column::CHAT)?,
            sender: columns.i64(column::SENDER)?,
            created: columns.i64(column::CREATED)?,
            link: columns.bool(column::HAS_LINK)?,
        })
    }
}

/// A committed state of the index.
#[derive(Clone)]
pub struct Snapshot {
    pub searcher: Searcher,
    /// By the segment's ordinal.
    pub columns: Arc<[Arc<Columns>]>,
}

impl Snapshot {
    /// The state that `searcher` sees; columns of segments that `before` had are taken over.
    pub fn of(searcher: Searcher, before: Option<&Self>) -> tantivy::Result<Self> {
        let known = |segment: &SegmentReader| {
            let mut columns = before?.columns.iter();
            columns.find(|columns| columns.segment == segment.segment_id()).cloned()
        };
        let columns = searcher
            .segment_readers()
            .iter()
            .map(|segment| known(segment).map_or_else(|| Columns::open(segment).map(Arc::new), Ok))
            .collect::<tantivy::Result<_>>()?;
        Ok(Self { searcher, columns })
    }
}
