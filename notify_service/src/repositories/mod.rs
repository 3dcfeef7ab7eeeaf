//! SQL and nothing else; each function borrows the pool. The role may read users, chats and members, and add dead letters.

pub mod dead_letters;
pub mod membership;
