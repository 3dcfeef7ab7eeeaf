//! Streams of real processes against real servers; events are published the way chat_service's relay does.

mod delivery;
mod resilience;
mod sessions;
mod tickets;
mod typing;
mod world;
