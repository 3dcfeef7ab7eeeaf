//! Use cases: searching, indexing, rebuilding, comparing.

pub mod consistency;
pub mod effects;
pub mod indexing;
pub mod reindex;
pub mod search;
pub mod turn;
