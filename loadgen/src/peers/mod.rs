//! Other software that does the same job, and the upstream of the proxies.

pub mod haproxy;
pub mod nchan;
pub mod nginx;
pub mod synapse;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use dev::child::{Process, Program};

/// A program that must be there.
pub(crate) fn require(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    for folder in ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"] {
        let path = Path::new(folder).join(program);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "{program} is not installed; `cargo dev load` installs it, or: apt-get install --no-install-recommends {package}"
    )
}

/// The version a program prints first.
pub(crate) fn version(path: &Path, flag: &str) -> String {
    let output = Command::new(path).arg(flag).output();
    let text = output
        .map(|output| [output.stdout, output.stderr].concat())
        .unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or("unknown")
        .to_owned()
}

/// Starts a server and waits until its port is open.
pub(crate) fn start(name: &str, path: PathBuf, args: Vec<String>, folder: &Path, port: u16) -> anyhow::Result<Process> {
    let mut process = Process::start(&Program {
        name: name.to_owned(),
        path,
        args,
        env: Vec::new(),
        log: folder.join(format!("{name}.log")),
        user: None,
        dir: folder.to_owned(),
    })?;
    dev::wait::until(std::time::Duration::from_secs(10), name, || {
        if let Some(status) = process.ended() {
            return Some(Err(anyhow::anyhow!("{name} ended ({status}): {}", process.log_tail())));
        }
        dev::ports::is_open(port).then_some(Ok(()))
    })
    .with_context(|| format!("{name} does not listen on port {port}"))??;
    Ok(process)
}
