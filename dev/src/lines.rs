//! What the launcher says, and the merged log of what it runs.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to the person who runs it"
)]

use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::PathBuf;

/// One line of progress.
pub(crate) fn say(line: &str) {
    println!("· {line}");
}

/// Text as it is.
pub(crate) fn show(text: &str) {
    println!("{text}");
}

/// What went wrong.
pub(crate) fn complain(line: &str) {
    eprintln!("error: {line}");
}

/// Follows log files and prints each new line with the name of its process.
pub(crate) struct Follower {
    files: Vec<(String, PathBuf, u64)>,
    colours: bool,
}

impl Follower {
    /// Begins at the present ends of the files.
    pub(crate) fn new(files: Vec<(String, PathBuf)>) -> Self {
        let files = files
            .into_iter()
            .map(|(name, path)| {
                let end = std::fs::metadata(&path).map_or(0, |meta| meta.len());
                (name, path, end)
            })
            .collect();
        Self {
            files,
            colours: std::io::stdout().is_terminal(),
        }
    }

    /// Prints what was written since the last time, whole lines only.
    pub(crate) fn print_new(&mut self) {
        for (number, (name, path, position)) in self.files.iter_mut().enumerate() {
            let Ok(mut file) = std::fs::File::open(&*path) else {
                continue;
            };
            let mut new = Vec::new();
            if file.seek(SeekFrom::Start(*position)).is_err() || file.take(1 << 20).read_to_end(&mut new).is_err() {
                continue;
            }
            let Some(end) = new.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            *position += end as u64 + 1;
            for line in String::from_utf8_lossy(&new[..end]).lines() {
                if self.colours {
                    println!("\u{1b}[3{}m{name:>14}\u{1b}[0m {line}", number % 6 + 1);
                } else {
                    println!("{name:>14} {line}");
                }
            }
        }
    }
}
