//! HTTP: extract, call one service method, map to a view.

pub mod admin;
pub mod search;
