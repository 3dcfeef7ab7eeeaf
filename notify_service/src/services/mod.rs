//! Use cases.

pub mod readings;
pub mod upkeep;
