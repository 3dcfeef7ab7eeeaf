//! Real servers on one machine: PostgreSQL, NATS and our own processes, for `cargo dev up` and for every test.
//!
//! Builds with the Rust toolchain and a C linker alone, because it is what installs everything else.

pub mod authorisation;
pub mod chart;
pub mod child;
pub mod documented;
pub mod http;
pub mod install;
pub mod nats;
pub mod otelcol;
pub mod platform;
pub mod ports;
pub mod postgres;
pub mod prometheus;
pub mod psql;
pub mod scratch;
pub mod secrets;
pub mod seed;
pub mod tools;
pub mod wait;
