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

/// Whether something accepts connections there.
pub fn is_open(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(200)).is_ok()
}
