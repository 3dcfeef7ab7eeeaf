//! Search: the JetStream consumer that keeps an engine up to date, and the search API.

pub mod engine;
pub mod highlight;
pub mod query;
pub mod text;
