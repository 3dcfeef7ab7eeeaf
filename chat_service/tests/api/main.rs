//! The HTTP API against a real PostgreSQL: the same router and state as the process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod authorisation;
mod chats;
mod concurrency;
mod document;
mod group_commit;
mod health;
mod identity;
mod jam;
mod members;
mod messages;
mod problems;
mod support;
mod users;
