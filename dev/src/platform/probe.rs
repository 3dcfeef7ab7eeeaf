//! The synthetic probe beside the platform.

use std::path::PathBuf;

use super::Platform;
use crate::child::{Process, Program};

/// Where its `/metrics` is, unless a command says otherwise.
pub const ADMIN_PORT: u16 = 9690;

/// How it is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Port of its admin listener.
    pub admin: u16,
    /// Pause between the beginnings of its rounds, in seconds.
    pub interval_seconds: u64,
}

impl Platform {
    /// Starts a probe of this platform; dropped, it ends.
    pub fn start_probe(&self, options: Options) -> anyhow::Result<Process> {
        Process::start(&Program {
            name: "probe".to_owned(),
            path: self.binary("probe")?,
            args: Vec::new(),
            env: self.probe_environment(options),
            log: self.probe_log(),
            user: None,
            dir: self.options.data.clone(),
        })
    }

    /// The variables of a probe of this platform; among them its password.
    pub fn probe_environment(&self, options: Options) -> Vec<(String, String)> {
        let mut env: Vec<(String, String)> = [
            ("URL", self.url()),
            ("CA", self.ca().display().to_string()),
            ("EMAIL", "probe@fechatter.example".to_owned()),
            // Quoted: a password of digits alone must not be read as a number.
            ("PASSWORD", format!("\"{}\"", self.secrets.get("probe"))),
            ("INTERVAL_SECONDS", options.interval_seconds.to_string()),
            ("ADMIN_LISTEN", format!("127.0.0.1:{}", options.admin)),
        ]
        .into_iter()
        .map(|(key, value)| (format!("FECHATTER_PROBE__{key}"), value))
        .collect();
        env.extend(self.options.env.iter().cloned());
        env
    }

    /// Where a probe writes.
    pub fn probe_log(&self) -> PathBuf {
        self.options.data.join("logs/probe.log")
    }
}
