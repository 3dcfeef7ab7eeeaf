//! Use cases: searching, indexing, rebuilding.

pub mod effects;
pub mod indexing;
pub mod reindex;
pub mod search;
