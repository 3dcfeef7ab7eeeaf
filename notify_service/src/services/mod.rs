//! Use cases: opening streams, loading members, reading the stream back, tickets, typing and presence.

pub mod access;
#[cfg(test)]
mod lagging_replica;
pub mod loader;
pub mod presence;
pub mod replay;
pub mod streams;
pub mod tickets;
pub mod typing;
