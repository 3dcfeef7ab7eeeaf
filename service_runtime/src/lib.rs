//! What every Fechatter process shares at run time: the frame of `main`, configuration sections, problem answers,
//! extractors, bearer authentication, JWKS, the request layer, the API document, health, the admin listener, NATS, serve and drain.
//!
//! What must not be here: business rules (`fechatter_core`), SQL (each service's `repositories`), telemetry set-up
//! (`observability`).

pub mod admin;
pub mod auth;
pub mod config;
pub mod error;
pub mod extract;
pub mod health;
pub mod heap;
pub mod jwks;
pub mod layers;
pub mod nats;
pub mod openapi;
pub mod process;
pub mod profile;
pub mod runtime_metrics;
pub mod serve;
pub mod write_timeout;

pub use error::{ApiError, ApiResult};

/// Version of this build, as `/health` and telemetry report it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
