//! Shared vocabulary of every Fechatter process: ids, chat rules, wire shapes, event contracts, access tokens,
//! problem codes and configuration loading.
//!
//! What belongs here: values and pure rules that at least two processes must agree on. What must not: SQL, HTTP
//! frameworks, NATS clients, anything that opens a socket.

pub mod chat;
pub mod config;
pub mod events;
pub mod health;
pub mod ids;
pub mod message;
pub mod problem;
pub mod schema;
pub mod token;
pub mod user;
pub mod wire;

pub use ids::{ChatId, MessageId, UserId, WorkspaceId};
