//! Use cases: opening streams, loading members, reading the stream back, tickets, typing and presence.

pub mod loader;
pub mod replay;
pub mod streams;
pub mod tickets;
pub mod typing;
