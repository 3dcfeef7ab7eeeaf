//! HTTP.

pub mod events;
