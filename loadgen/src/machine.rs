//! The machine, and what durability the servers have.

use std::path::Path;

use dev::platform::Platform;
use dev::postgres::Server;
use serde::Serialize;

/// What figures depend on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub descriptors: u64,
    /// Of the last minute, before we began.
    pub load_average: f64,
}

impl Machine {
    pub fn read() -> Self {
        let field = |path: &str, name: &str| -> Option<String> {
            let text = std::fs::read_to_string(path).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let first = |path: &str| {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let memory_kib = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
            .unwrap_or_default();
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_gib: (memory_kib / 1_048_576.0 * 10.0).round() / 10.0,
            kernel: first("/proc/sys/kernel/osrelease"),
            descriptors: nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
                .map_or(0, |(_, hard)| hard),
            load_average: first("/proc/loadavg").parse().unwrap_or_default(),
        }
    }
}

/// `name=value` of everything that decides whether an acknowledged message survives a power failure.
pub fn durability(platform: &mut Platform, data: &Path) -> Vec<String> {
    let mut settings = platform
        .postgres()
        .map(|server| durability_of(server))
        .unwrap_or_default();
    // The events can be made again from the outbox, so that is how the launcher and the charts run NATS.
    if let Some(server) = platform.nats() {
        settings.push(format!(
            "nats.jetstream.sync_interval={} (storage=file)",
            server.sync_interval()
        ));
    }
    settings.push(format!("data.filesystem={}", filesystem(data)));
    settings
}

/// The same of one PostgreSQL.
pub fn durability_of(server: &Server) -> Vec<String> {
    let names = [
        "server_version",
        "fsync",
        "synchronous_commit",
        "full_page_writes",
        "wal_sync_method",
        "commit_delay",
    ];
    let show = |name| {
        let value = server.psql("postgres", &format!("SHOW {name}"));
        let value = value.unwrap_or_else(|_| "unknown".to_owned());
        format!("postgresql.{name}={}", value.trim())
    };
    names.map(show).to_vec()
}

fn filesystem(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, folder, kind) = (fields.next()?, fields.next()?, fields.next()?);
            path.starts_with(folder).then(|| (folder.len(), kind.to_owned()))
        })
        .max()
        .map_or_else(|| "unknown".to_owned(), |(_, kind)| kind)
}
