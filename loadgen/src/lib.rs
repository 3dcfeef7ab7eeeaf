//! The load generator: measures what users wait for, and what it costs.
//!
//! Arrivals are open-loop: when a request is to be sent is decided before, and its latency counts from that moment, not
//! from the moment a busy generator got round to it. So a stall is seen by everybody it would have made wait
//! (coordinated omission). Servers are real processes with durability on, and every result says who used the processor.

pub mod arrivals;
pub mod client;
pub mod ledger;
pub mod limits;
pub mod machine;
pub mod modes;
pub mod outcome;
pub mod peers;
pub mod plot;
pub mod population;
pub mod processes;
pub mod progress;
pub mod receiver;
pub mod report;
pub mod screens;
pub mod stage;
pub mod talk;
pub mod target;
pub mod tokens;
pub mod workers;
