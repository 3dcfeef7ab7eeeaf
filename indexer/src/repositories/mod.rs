//! SQL and nothing else; each function borrows a connection or the pool. The role may read users, chats, members and
//! messages, and write dead letters.

pub mod access;
pub mod dead_letters;
pub mod messages;
