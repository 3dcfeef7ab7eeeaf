//! Use cases and what runs beside the consumer.

pub mod ephemeral;
pub mod readings;
pub mod replay;
pub mod tickets;
pub mod typing;
pub mod upkeep;
