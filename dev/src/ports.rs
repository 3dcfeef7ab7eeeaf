//! Free ports, and who holds one that is not.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::wait;

/// Where [`free`] looks: below what the kernel hands out to outgoing connections, which would take a port while the
/// server that had it is being started again.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port of 127.0.0.1 that nobody listens on, and that stays this process's among all who ask here.
pub fn free() -> anyhow::Result<u16> {
    static HELD: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());
    let folder = std::env::temp_dir().join(format!("fechatter-ports-{}", nix::unistd::getuid()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let width = u64::from(RANGE.end - RANGE.start);
    for _ in 0..1_000 {
        let offset = RandomState::new().build_hasher().finish() % width;
        let port = RANGE.start + u16::try_from(offset).unwrap_or_default();
        if let Some(lock) = reserve(&folder, port)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            if let Ok(mut held) = HELD.lock() {
                held.push(lock);
            }
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", RANGE.start, RANGE.end)
}

/// A lock that ends with this process, however it ends.
fn reserve(folder: &Path, port: u16) -> Option<Flock<File>> {
    let file = File::create(folder.join(port.to_string())).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

/// Refuses a port that somebody listens on, and says who that is.
pub fn require_free(port: u16, option: &str) -> anyhow::Result<()> {
    // The servers of a launcher that was killed a moment ago may be about to end.
    let patience = Duration::from_secs(1);
    if wait::until(patience, "the port", || (!is_taken(port)).then_some(())).is_ok() {
        return Ok(());
    }
    let holder = holder(port).unwrap_or_else(|| "a process of another user".to_owned());
    bail!("port {port} is taken by {holder}; end it or choose another port with {option}")
}

fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

/// Name and pid of the process that listens on a port, as far as we may look.
pub fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1)?.rsplit_once(':')?.1;
            // State 0A is LISTEN.
            let listens = *fields.get(3)? == "0A" && u16::from_str_radix(local, 16).ok()? == port;
            if listens {
                fields.get(9).map(|inode| format!("socket:[{inode}]"))
            } else {
                None
            }
        })
    })?;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let holds = std::fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.to_str() == Some(&inode)));
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}

/// Whether something accepts connections there.
pub fn is_open(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let mut ports: Vec<u16> = (0..50).map(|_| free().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = require_free(port, "--some-port").unwrap_err().to_string();
        let pid = std::process::id();
        assert!(error.contains(&format!("port {port} is taken by ")), "{error}");
        assert!(error.contains(&format!("(pid {pid})")), "{error}");
        assert!(error.contains("--some-port"), "{error}");
        drop(listener);
        require_free(port, "--some-port").unwrap();
    }
}
