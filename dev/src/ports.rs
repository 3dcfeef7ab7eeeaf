//! Free ports, and who holds one that is not.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::Context;

/// A port of 127.0.0.1 that nobody listens on now.
///
/// Somebody else may take it before it is used; a server that fails to bind is then started again on another.
pub fn free() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// Refuses a port that somebody listens on, and says who that is.
pub fn require_free(port: u16, option: &str) -> anyhow::Result<()> {
    if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() || !is_open(port) {
        return Ok(());
    }
    let holder = holder(port).unwrap_or_else(|| "a process of another user".to_owned());
    anyhow::bail!("port {port} is taken by {holder}; end it or choose another port with {option}")
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
    std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(200)).is_ok()
}
