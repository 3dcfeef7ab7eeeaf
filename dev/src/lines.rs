//! What the launcher says, and the merged log of what it runs.

#![expect(clippy::print_stderr, reason = "a command talks to the person who runs it")]

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dev::platform::Part;

/// A log file that grows beyond this is put aside, replacing the one put aside before.
const LOG_BYTES: u64 = 64 << 20;
/// Read of one log at a time; also the longest line that is not broken.
const CHUNK: u64 = 1 << 20;

/// One line of progress.
pub(crate) fn say(line: &str) {
    show(&format!("· {line}"));
}

/// Text as it is.
pub(crate) fn show(text: &str) {
    // A reader that went away, as `head` does, is no reason to stop what runs.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// What went wrong.
pub(crate) fn complain(line: &str) {
    eprintln!("error: {line}");
}

/// Follows log files and prints each new line with the name of its process.
pub(crate) struct Follower {
    files: Vec<Followed>,
    colours: bool,
}

struct Followed {
    name: &'static str,
    path: PathBuf,
    position: u64,
}

impl Follower {
    /// Follows the logs of a data folder from their present ends.
    pub(crate) fn new(data: &Path) -> Self {
        let follow = |part: Part| {
            let path = data.join("logs").join(format!("{}.log", part.name()));
            let position = std::fs::metadata(&path).map_or(0, |meta| meta.len());
            Followed {
                name: part.name(),
                path,
                position,
            }
        };
        Self {
            files: Part::ALL.into_iter().map(follow).collect(),
            colours: std::io::stdout().is_terminal(),
        }
    }

    /// Prints what was written since the last time.
    pub(crate) fn print_new(&mut self) {
        for (number, file) in self.files.iter_mut().enumerate() {
            let name = file.name;
            // A log that cannot be read now may be readable at the next look.
            for line in file.new_lines().unwrap_or_default() {
                if self.colours {
                    show(&format!("\u{1b}[3{}m{name:>14}\u{1b}[0m {line}", number % 6 + 1));
                } else {
                    show(&format!("{name:>14} {line}"));
                }
            }
        }
    }
}

impl Followed {
    fn new_lines(&mut self) -> std::io::Result<Vec<String>> {
        let mut file = File::open(&self.path)?;
        let length = file.metadata()?.len();
        self.position = self.position.min(length);
        let mut new = Vec::new();
        file.seek(SeekFrom::Start(self.position))?;
        file.take(CHUNK).read_to_end(&mut new)?;
        let whole = new.iter().rposition(|byte| *byte == b'\n').map(|end| end + 1);
        let taken = whole.unwrap_or(if new.len() as u64 == CHUNK { new.len() } else { 0 });
        self.position += taken as u64;
        if length > LOG_BYTES && self.position == length {
            self.put_aside()?;
        }
        Ok(String::from_utf8_lossy(&new[..taken])
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Copies the log and empties it: the process that writes keeps its open file, which appends.
    fn put_aside(&mut self) -> std::io::Result<()> {
        std::fs::copy(&self.path, self.path.with_extension("log.1"))?;
        File::options().write(true).open(&self.path)?.set_len(0)?;
        self.position = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(folder: &Path) -> Followed {
        Followed {
            name: "test",
            path: folder.join("test.log"),
            position: 0,
        }
    }

    #[test]
    fn whole_lines_are_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = followed(folder.path());
        let mut writer = File::options().create(true).append(true).open(&log.path).unwrap();
        writer.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(log.new_lines().unwrap(), ["one", "two"]);
        assert_eq!(log.new_lines().unwrap(), [""; 0]);
        writer.write_all(b"ee\n").unwrap();
        assert_eq!(log.new_lines().unwrap(), ["three"]);
    }

    #[test]
    fn a_long_log_is_put_aside_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = followed(folder.path());
        let mut writer = File::options().create(true).append(true).open(&log.path).unwrap();
        let line = vec![b'x'; usize::try_from(CHUNK).unwrap() - 1];
        for _ in 0..=LOG_BYTES / CHUNK {
            writer.write_all(&line).unwrap();
            writer.write_all(b"\n").unwrap();
        }
        let aside = folder.path().join("test.log.1");
        for _ in 0..=LOG_BYTES / CHUNK {
            assert!(!aside.exists(), "nothing is put aside that was not shown");
            assert_eq!(log.new_lines().unwrap().len(), 1);
        }
        assert_eq!(std::fs::metadata(&aside).unwrap().len(), LOG_BYTES + CHUNK);
        writer.write_all(b"next\n").unwrap();
        assert_eq!(log.new_lines().unwrap(), ["next"]);
    }
}
