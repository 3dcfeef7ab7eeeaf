//! Use cases: opening streams, loading members, reading the stream back, tickets, typing and presence.

pub mod access;
pub mod loader;
pub mod presence;
pub mod replay;
pub mod streams;
pub mod tickets;
pub mod typing;
