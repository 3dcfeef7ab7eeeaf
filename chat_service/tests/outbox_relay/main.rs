//! The relay against a real PostgreSQL and a real NATS, with the rights that chat_service has in production.

#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod interruption;
mod loss;
mod order;
mod support;
mod upkeep;
