//! HTTP.

pub mod events;
pub mod tickets;
pub mod typing;
