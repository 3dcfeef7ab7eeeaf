//! TLS with bytes of our choice inside.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Gateway;

/// One TLS connection.
pub struct Raw {
    pub stream: TlsStream<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub bytes: Vec<u8>,
    /// Whether the gateway closed the connection.
    pub closed: bool,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn status(&self) -> Option<u16> {
        self.text().split(' ').nth(1)?.parse().ok()
    }

    pub fn body(&self) -> serde_json::Value {
        let text = self.text();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }
}

/// Trusts the certificate authority in the gateway's folder as it is now.
pub fn trusting(gateway: &Gateway, alpn: &[&[u8]]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(gateway.folder.path().join("ca.pem")).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

impl Raw {
    pub async fn connect(gateway: &Gateway) -> Self {
        Self::connect_with(gateway, trusting(gateway, &[b"http/1.1"]))
            .await
            .unwrap()
    }

    pub async fn connect_with(gateway: &Gateway, config: ClientConfig) -> std::io::Result<Self> {
        Self::connect_as(gateway, config, "localhost").await
    }

    pub async fn connect_as(gateway: &Gateway, config: ClientConfig, name: &'static str) -> std::io::Result<Self> {
        Self::over(TcpStream::connect(gateway.https).await?, config, name).await
    }

    /// Over a connection that has been used for something else before.
    pub async fn over(tcp: TcpStream, config: ClientConfig, name: &'static str) -> std::io::Result<Self> {
        let name = ServerName::try_from(name).unwrap();
        Ok(Self {
            stream: TlsConnector::from(Arc::new(config)).connect(name, tcp).await?,
        })
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // The gateway may close before it has read everything; that shows in the answer.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// Everything up to and with `end`, or until the gateway closes; nothing is read beyond a whole read that holds it.
    pub async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4_096];
        let reading = async {
            while !bytes.windows(end.len()).any(|window| window == end) {
                match self.stream.read(&mut chunk).await {
                    Ok(read @ 1..) => bytes.extend_from_slice(&chunk[..read]),
                    _ => return,
                }
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(10), reading).await;
        assert!(read.is_ok(), "only {:?}", String::from_utf8_lossy(&bytes));
        bytes
    }

    /// Everything until the gateway closes.
    pub async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), self.stream.read_to_end(&mut bytes)).await;
        assert!(read.is_ok(), "not closed after {:?}", String::from_utf8_lossy(&bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads one answer with a `content-length`, then waits a moment for the connection to close.
    pub async fn answer(&mut self) -> Answer {
        let mut bytes = Vec::new();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let mut chunk = [0; 8_192];
        loop {
            let patience = if is_whole(&bytes) {
                Duration::from_millis(300)
            } else {
                Duration::from_secs(10)
            };
            let until = deadline.min(tokio::time::Instant::now() + patience);
            match tokio::time::timeout_at(until, self.stream.read(&mut chunk)).await {
                Err(_) => return Answer { bytes, closed: false },
                Ok(Ok(0) | Err(_)) => return Answer { bytes, closed: true },
                Ok(Ok(read)) => bytes.extend_from_slice(&chunk[..read]),
            }
        }
    }
}

fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length.is_some_and(|(_, value)| body.len() >= value.parse().unwrap_or(0))
}
