//! SQL and nothing else; each function borrows a connection or the pool. The role may read users, chats, members and
//! messages, and keep dead letters (crate `dead_letters`).

pub mod access;
pub mod messages;
