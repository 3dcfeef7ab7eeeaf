//! Temporary folders of tests, swept up after processes that had no time to do it themselves.

use std::path::Path;

use anyhow::Context;

const PREFIX: &str = "fechatter-test-";

/// A new folder in the system's temporary folder. What killed processes left behind is removed first.
pub fn folder() -> anyhow::Result<tempfile::TempDir> {
    sweep(&std::env::temp_dir());
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir()
        .context("cannot make a temporary folder")
}

fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another process may be sweeping too, or the folder may be another user's.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
