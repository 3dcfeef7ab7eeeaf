//! Streams of real processes against real servers; events are published the way chat_service's relay does.

mod chaos;
mod delivery;
mod endings;
mod history;
mod presence;
mod scale;
mod storm;
mod tickets;
mod typing;
mod world;
