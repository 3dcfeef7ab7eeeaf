//! A real gateway process, spoken to by TLS over real sockets, in front of upstreams that record every byte.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod support;

mod access_log;
mod answers;
mod check;
mod clients;
mod compression;
mod cors;
mod drain;
mod framing;
mod http1;
mod http2;
mod limits;
mod multiplexing;
mod reload;
mod revocation;
mod routes;
mod streams;
mod tls;
mod tokens;
mod upgrade;
mod upstreams;
