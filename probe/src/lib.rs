//! The synthetic probe: a user of its own that signs in, sends into its own chat, receives by SSE and finds by search, through
//! the public gateway like everybody else, again and again. It says that the platform works when nobody is there to complain.
//!
//! `round` is the course of one round, `client` asks the gateway, `events` reads the stream, `metrics` is what is exported.
//! Nothing here knows more of the platform than its public API.

pub mod client;
pub mod config;
pub mod events;
pub mod metrics;
pub mod round;
