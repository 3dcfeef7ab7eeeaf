//! The indexer as a process, against a real PostgreSQL and a real NATS.

mod api;
mod dead_letters;
mod flow;
mod meilisearch;
mod recovery;
mod world;
