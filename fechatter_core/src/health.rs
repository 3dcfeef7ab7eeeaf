//! The shape of `/health`, the same for every process.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// State of a process or of one dependency, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Works, with something missing that is caught up later (events, search).
    Degraded,
    /// Cannot do its work.
    Down,
}

/// One dependency as last seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Check {
    pub status: Status,
    /// How long the check took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub latency_ms: Option<f64>,
    /// For operators; never on the public listener.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// The body of `/health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Health {
    pub status: Status,
    pub version: String,
    pub checks: BTreeMap<String, Check>,
}

impl Health {
    /// Combines checks: the worst one decides.
    pub fn from_checks(version: impl Into<String>, checks: BTreeMap<String, Check>) -> Self {
        let status = checks.values().map(|check| check.status).max().unwrap_or(Status::Ok);
        Self {
            status,
            version: version.into(),
            checks,
        }
    }

    /// 200 while the process can do its work (degraded included), else 503.
    pub fn http_status(&self) -> u16 {
        if self.status == Status::Down { 503 } else { 200 }
    }
}
