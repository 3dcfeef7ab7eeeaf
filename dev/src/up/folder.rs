//! The data folder: made, checked, and ours alone.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;

use crate::cargo::repository;

/// A new PostgreSQL cluster takes 40 MB, and its log of changes grows to some hundreds.
const NEEDED_MB: u64 = 512;

/// Makes the folder unless it is there.
pub(super) fn prepare(wanted: Option<&Path>) -> anyhow::Result<PathBuf> {
    let data = wanted.map_or_else(|| repository().join(".fechatter"), Path::to_owned);
    std::fs::create_dir_all(data.join("logs")).with_context(|| {
        format!(
            "cannot make the data folder {}; choose another with --data",
            data.display()
        )
    })?;
    let data = data
        .canonicalize()
        .with_context(|| format!("cannot enter {}", data.display()))?;
    let free = free_megabytes(&data)?;
    if free < NEEDED_MB {
        bail!(
            "only {free} MB are free on the disk of {}, {NEEDED_MB} are needed; free some, or choose a folder on another \
             disk with --data",
            data.display()
        );
    }
    Ok(data)
}

/// What is free on a folder's disk.
pub(super) fn free_megabytes(folder: &Path) -> anyhow::Result<u64> {
    let disk = statvfs(folder).with_context(|| format!("cannot look at the disk of {}", folder.display()))?;
    Ok((disk.blocks_available() * disk.fragment_size()) >> 20)
}

/// Two launchers on one folder would fight over its servers.
pub(super) fn lock(data: &Path) -> anyhow::Result<Flock<File>> {
    let path = data.join("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write {}; choose another folder with --data", path.display()))?;
    let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        let pid = std::fs::read_to_string(&path).unwrap_or_default();
        bail!(
            "{} is in use by process {}; stop that one, or choose another folder with --data",
            data.display(),
            pid.trim()
        );
    };
    lock.set_len(0)?;
    (&*lock).write_all(std::process::id().to_string().as_bytes())?;
    Ok(lock)
}
