//! Room on the disk: writing stops while there is some left, because a merge that meets a full disk helps nobody.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::engine::EngineError;

/// Refuses when less than `min_free` bytes are free for us on the file system of `folder`.
pub fn require(folder: &Path, min_free: u64) -> Result<(), EngineError> {
    // Where the system does not tell, writing itself will.
    let Ok(stat) = statvfs(folder) else { return Ok(()) };
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free >= min_free {
        return Ok(());
    }
    Err(EngineError::Full(format!(
        "{} MB are free on the disk of {}, and nothing is written below {} MB (engine.min_free_mb); make room, \
         indexing goes on by itself",
        free / 1_000_000,
        folder.display(),
        min_free / 1_000_000,
    )))
}

/// Writes a small file into `folder` and removes it: whether writing works at all.
pub fn probe(folder: &Path) -> io::Result<()> {
    let file = folder.join("PROBE");
    std::fs::write(&file, b"probe")?;
    std::fs::remove_file(&file)
}

/// Whether an error says that the disk, or our share of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_less_than_the_bound_is_refused_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        require(folder.path(), 1).unwrap();
        let refusal = require(folder.path(), u64::MAX).unwrap_err();
        assert!(
            matches!(&refusal, EngineError::Full(text) if text.contains("engine.min_free_mb")),
            "{refusal}"
        );
    }
}
