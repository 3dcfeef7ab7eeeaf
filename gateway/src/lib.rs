//! The edge of Fechatter: TLS, strict HTTP, identity, authentication, limits and routing on Pingora.
//!
//! What belongs here: everything that can be decided without knowing what a chat is. What must not: product rules, SQL,
//! bodies of requests and answers. [`proxy`] is the request path; each rule lives in the module named after it.

pub mod access_lists;
pub mod access_log;
pub mod admin;
pub mod admission;
pub mod answer;
pub mod answer_head;
pub mod auth;
pub mod balance;
pub mod body;
pub mod certificate;
pub mod chunks;
pub mod compression;
pub mod config;
pub mod connection;
pub mod cors;
pub mod dev_certificate;
pub mod drain;
pub mod dress;
pub mod endpoint;
pub mod exchange;
pub mod failure;
pub mod fields;
pub mod framing;
pub mod head;
pub mod health;
pub mod health_check;
pub mod http2;
pub mod identity;
pub mod idle;
pub mod listener;
pub mod metrics;
pub mod openapi;
pub mod path;
pub mod pipeline;
pub mod policy;
pub mod proxy;
pub mod proxy_protocol;
pub mod rate_limit;
pub mod redirect;
pub mod reload;
pub mod request;
pub mod retry_budget;
pub mod revocation;
pub mod routes;
pub mod server;
pub mod shared_usage;
pub mod tls;
pub mod upgrade;
pub mod upstreams;
pub mod workers;
