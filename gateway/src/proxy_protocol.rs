//! The PROXY protocol, versions 1 and 2: a load balancer that passes TCP on says whose connection it is.
//!
//! It is read from configured networks only, and from those it must come: a header that is believed when it happens to be
//! there could be sent by anybody.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest header of version 1, its line end included.
const TEXT_MAX: usize = 107;
/// Longest header of version 2 accepted, beyond its first 16 bytes: addresses and a few extensions.
const BINARY_MAX: usize = 1_024;
/// The shortest header of version 1 is 15 bytes, of version 2 it is 16: so much can be read without knowing which.
const SHORTEST: usize = 15;

/// Why a connection is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum NoHeader {
    #[error("no PROXY protocol header")]
    Absent,
    #[error("a malformed PROXY protocol header")]
    Malformed,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Whose connection this is: the peer's or, from a balancer, whose it says it is. From anybody else no byte is read.
pub async fn client<R: AsyncRead + Unpin>(
    reader: &mut R,
    peer: SocketAddr,
    balancers: &[IpNet],
    within: Duration,
) -> Result<SocketAddr, NoHeader> {
    let address = peer.ip().to_canonical();
    if !balancers.iter().any(|network| network.contains(&address)) {
        return Ok(peer);
    }
    match tokio::time::timeout(within, read(reader)).await {
        Ok(client) => Ok(client?.unwrap_or(peer)),
        Err(_) => Err(NoHeader::Absent),
    }
}

/// Reads the header and nothing after it. `None` when the balancer speaks for itself (its health checks do).
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<SocketAddr>, NoHeader> {
    let mut header = vec![0; SHORTEST];
    reader.read_exact(&mut header).await?;
    if header.starts_with(v2::PROTOCOL_PREFIX) {
        header.push(reader.read_u8().await?);
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if length > BINARY_MAX {
            return Err(NoHeader::Malformed);
        }
        header.resize(16 + length, 0);
        reader.read_exact(&mut header[16..]).await?;
    } else if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\n") {
            if header.len() >= TEXT_MAX {
                return Err(NoHeader::Malformed);
            }
            header.push(reader.read_u8().await?);
        }
    } else {
        return Err(NoHeader::Absent);
    }
    source(&header)
}

fn source(header: &[u8]) -> Result<Option<SocketAddr>, NoHeader> {
    let at = |address: IpAddr, port| Some(SocketAddr::new(address, port));
    match HeaderResult::parse(header) {
        HeaderResult::V1(Ok(header)) => Ok(match header.addresses {
            v1::Addresses::Tcp4(pair) => at(pair.source_address.into(), pair.source_port),
            v1::Addresses::Tcp6(pair) => at(pair.source_address.into(), pair.source_port),
            v1::Addresses::Unknown => None,
        }),
        HeaderResult::V2(Ok(header)) if header.command == v2::Command::Local => Ok(None),
        HeaderResult::V2(Ok(header)) => Ok(match header.addresses {
            v2::Addresses::IPv4(pair) => at(pair.source_address.into(), pair.source_port),
            v2::Addresses::IPv6(pair) => at(pair.source_address.into(), pair.source_port),
            v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
        }),
        _ => Err(NoHeader::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn verdict(bytes: &[u8]) -> (Result<Option<SocketAddr>, String>, usize) {
        let mut reader = bytes;
        let result = read(&mut reader).await.map_err(|error| error.to_string());
        (result, reader.len())
    }

    #[tokio::test]
    async fn both_versions_say_whose_connection_it_is() {
        let (source, left) = verdict(b"PROXY TCP4 192.0.2.1 198.51.100.1 5555 443\r\nhello").await;
        assert_eq!((source.unwrap(), left), ("192.0.2.1:5555".parse().ok(), 5));
        let (source, _) = verdict(b"PROXY TCP6 2001:db8::1 ::1 5555 443\r\n").await;
        assert_eq!(source.unwrap(), "[2001:db8::1]:5555".parse().ok());
        assert_eq!(verdict(b"PROXY UNKNOWN\r\n").await.0.unwrap(), None);

        let mut binary = v2::PROTOCOL_PREFIX.to_vec();
        // Version 2, PROXY, TCP over IPv4, 12 bytes of addresses and an extension of 3.
        binary.extend([
            0x21, 0x11, 0, 15, 192, 0, 2, 9, 198, 51, 100, 1, 0x15, 0xb3, 1, 187, 4, 0, 0,
        ]);
        binary.extend(b"hello");
        let (source, left) = verdict(&binary).await;
        assert_eq!((source.unwrap(), left), ("192.0.2.9:5555".parse().ok(), 5));
        let mut local = v2::PROTOCOL_PREFIX.to_vec();
        local.extend([0x20, 0, 0, 0]);
        assert_eq!(verdict(&local).await.0.unwrap(), None);
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let mut huge = v2::PROTOCOL_PREFIX.to_vec();
        huge.extend([0x21, 0x11, 255, 255]);
        for bad in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1\r\n          ",
            b"PROXY TCP4 a b 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 99999 443\r\n",
            &[&b"PROXY "[..], &[b'a'; 200]].concat(),
            b"PROXY",
            &huge,
        ] {
            assert!(verdict(bad).await.0.is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
