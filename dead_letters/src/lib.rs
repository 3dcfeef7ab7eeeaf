//! Dead letters: events that a consumer gave up. Each is kept whole until an operator replays or drops it.
//!
//! The consumer keeps them ([`DeadLetters::keep`]); its process offers the operator's command ([`command`]). What a replay
//! does is the consumer's matter; here it is recorded how it ended.

pub mod command;
mod rows;

pub use rows::{DeadLetter, DeadLetters, Letter, Shown, State};

/// How the replay of a dead letter ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Replay {
    /// The event has had its effect.
    Replayed,
    /// It had been replayed before; nothing was done.
    AlreadyReplayed,
    /// It was dropped; nothing was done.
    Dropped,
    /// It could not be processed again, for this reason, and is a dead letter still.
    Returned { reason: String },
    /// This consumer has no dead letter of that id.
    Unknown,
}
