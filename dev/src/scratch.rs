//! Temporary folders of tests, swept up after processes that had no time to do it themselves.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use crate::tools;

const PREFIX: &str = "fechatter-test-";

/// A new folder that PostgreSQL's user can reach. What killed processes left behind is removed first.
pub fn folder() -> anyhow::Result<tempfile::TempDir> {
    static HELD: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());
    let base = base()?;
    sweep(&base);
    let folder = tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir_in(&base)
        .with_context(|| format!("cannot make a temporary folder in {}", base.display()))?;
    if let Some(lock) = lock(folder.path())
        && let Ok(mut held) = HELD.lock()
    {
        held.push(lock);
    }
    Ok(folder)
}

/// The system's temporary folder, unless it is private to root: then one that everybody can reach.
pub(crate) fn base() -> anyhow::Result<PathBuf> {
    let usual = std::env::temp_dir();
    if tools::postgres_may_enter(&usual)? {
        return Ok(usual);
    }
    Ok(PathBuf::from("/tmp"))
}

/// A lock that ends with this process, also where its pid means nothing, as in another container.
fn lock(folder: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(folder).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        let is_left_behind =
            owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) && lock(&entry.path()).is_some();
        if is_left_behind {
            // Another process may be sweeping too, or the folder may be another user's.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let base = tempfile::tempdir().unwrap();
        // No process has this pid: it is above what Linux hands out.
        let (abandoned, held) = (
            base.path().join(format!("{PREFIX}99999999-a")),
            base.path().join(format!("{PREFIX}99999999-b")),
        );
        let alive = base.path().join(format!("{PREFIX}{}-c", std::process::id()));
        for folder in [&abandoned, &held, &alive] {
            std::fs::create_dir(folder).unwrap();
        }
        let lock = lock(&held).unwrap();
        sweep(base.path());
        assert!(!abandoned.exists() && held.exists() && alive.exists());
        drop(lock);
        sweep(base.path());
        assert!(!held.exists() && alive.exists());
    }
}
