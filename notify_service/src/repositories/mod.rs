//! SQL and nothing else; each function borrows the pool. The role may read users, chats and members, and keep
//! dead letters (crate `dead_letters`).

pub mod membership;
