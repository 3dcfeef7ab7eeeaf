//! HTTP: extract, call one service method, answer.

pub mod presence;
pub mod stream;
pub mod tickets;
pub mod typing;
