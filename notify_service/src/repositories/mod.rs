//! The SQL of this service; it only reads, but for dead letters.

pub mod dead_letters;
pub mod health;
pub mod memberships;
