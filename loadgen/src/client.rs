//! One kept HTTP/1.1 connection, over TLS or without.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use crate::outcome::Fault;

/// Longest wait for a connection or an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Where requests go.
#[derive(Clone)]
pub struct Address {
    pub socket: SocketAddr,
    /// The `Host` field.
    pub host: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    holds_sockets: bool,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Address")
            .field("socket", &self.socket)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Address {
    /// Without TLS.
    pub fn plain(socket: SocketAddr) -> Self {
        Self {
            socket,
            host: socket.to_string(),
            tls: None,
            holds_sockets: false,
        }
    }

    /// TLS 1.3 with a certificate of this authority, for a name or an address.
    pub fn tls(socket: SocketAddr, name: &str, ca: &Path) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let pem = std::fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate.with_context(|| format!("{} is no PEM certificate", ca.display()))?)?;
        }
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(roots)
                .with_no_client_auth();
        let server = ServerName::try_from(name.to_owned()).context("not a host name")?;
        Ok(Self {
            socket,
            host: format!("{name}:{}", socket.port()),
            tls: Some((TlsConnector::from(Arc::new(config)), server)),
            holds_sockets: false,
        })
    }

    /// Its connections keep a second descriptor of their sockets, by which they can vanish.
    #[must_use]
    pub const fn holding_sockets(mut self) -> Self {
        self.holds_sockets = true;
        self
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Connection, Fault> {
        self.connect_from(None).await
    }

    /// Opens a connection from one of loopback's addresses: each has local ports of its own.
    pub async fn connect_from(&self, source: Option<Ipv4Addr>) -> Result<Connection, Fault> {
        tokio::time::timeout(PATIENCE, self.open(source))
            .await
            .unwrap_or(Err(Fault::Timeout))
    }

    async fn open(&self, source: Option<Ipv4Addr>) -> Result<Connection, Fault> {
        let socket = if self.socket.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
        .map_err(|_| Fault::Connect)?;
        if let Some(source) = source {
            socket
                .bind(SocketAddr::new(IpAddr::V4(source), 0))
                .map_err(|_| Fault::Connect)?;
        }
        let tcp = socket.connect(self.socket).await.map_err(|_| Fault::Connect)?;
        // Fails only when the peer has gone already, which the first request tells.
        let _ = tcp.set_nodelay(true);
        let held = self
            .holds_sockets
            .then(|| tcp.as_fd().try_clone_to_owned())
            .transpose()
            .map_err(|_| Fault::Connect)?;
        let (sender, driver) = match &self.tls {
            None => drive(TokioIo::new(tcp)).await?,
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await.map_err(|_| Fault::Tls)?;
                drive(TokioIo::new(tls)).await?
            }
        };
        Ok(Connection {
            sender,
            host: self.host.clone(),
            patience: PATIENCE,
            driver,
            held,
        })
    }
}

async fn drive<I>(io: I) -> Result<(SendRequest<Full<Bytes>>, AbortHandle), Fault>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = Builder::new()
        .max_buf_size(32 * 1_024)
        .handshake(io)
        .await
        .map_err(|_| Fault::Closed)?;
    let driver = tokio::spawn(async move {
        // What ends it also ends the request in flight, which tells.
        let _ = connection.await;
    });
    Ok((sender, driver.abort_handle()))
}

/// An open connection; one request at a time.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    patience: Duration,
    driver: AbortHandle,
    held: Option<OwnedFd>,
}

/// How a connection is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The program ends: the kernel says so to the other side (FIN).
    Close,
    /// The kernel breaks it off (RST).
    Reset,
    /// Nothing is said, as when the machine loses its power; only who writes to it hears that nobody is there.
    Vanish,
}

/// Ends a connection whatever it is doing. To reset or to vanish takes an address [`Address::holding_sockets`]; to vanish also
/// the right to (`CAP_NET_ADMIN`).
#[derive(Debug)]
pub struct Exit {
    driver: AbortHandle,
    held: Option<OwnedFd>,
}

impl Exit {
    /// Leaves, and says whether it was in this way; it was closed otherwise.
    pub fn leave(self, how: Leave) -> bool {
        let done = match (how, &self.held) {
            (Leave::Close, _) => true,
            (_, None) => false,
            (Leave::Reset, Some(socket)) => {
                let linger = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(socket, sockopt::Linger, &linger).is_ok()
            }
            // A socket that is being repaired is closed without a word.
            (Leave::Vanish, Some(socket)) => setsockopt(socket, sockopt::TcpRepair, &1).is_ok(),
        };
        // Without its driver nothing says goodbye on TLS either.
        self.driver.abort();
        done
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

/// A request: method, path, token, JSON body.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    pub token: Option<&'a str>,
    pub body: Option<Bytes>,
    /// `Last-Event-ID`.
    pub cursor: Option<&'a str>,
    /// Asks for a stream of events, as browsers do.
    pub is_stream: bool,
}

impl<'a> Call<'a> {
    pub fn get(path: &'a str, token: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            token: Some(token),
            body: None,
            cursor: None,
            is_stream: false,
        }
    }

    pub fn post(path: &'a str, token: Option<&'a str>, body: Vec<u8>) -> Self {
        Self {
            method: Method::POST,
            path,
            token,
            body: Some(body.into()),
            cursor: None,
            is_stream: false,
        }
    }
}

impl Connection {
    /// What ends it later.
    pub fn exit(&mut self) -> Exit {
        Exit {
            driver: self.driver.clone(),
            held: self.held.take(),
        }
    }

    /// Sets the longest wait for the head of an answer, and for its body.
    pub const fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Whether another request can be sent.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and waits for the head of the answer.
    pub async fn begin(&mut self, call: &Call<'_>) -> Result<Response<Incoming>, Fault> {
        let mut request = Request::builder()
            .method(&call.method)
            .uri(call.path)
            .header(header::HOST, &self.host);
        if let Some(token) = call.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(cursor) = call.cursor {
            request = request.header("last-event-id", cursor);
        }
        if call.is_stream {
            request = request.header(header::ACCEPT, "text/event-stream");
        }
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(call.body.clone().unwrap_or_default()))
            .map_err(|_| Fault::Status)?;
        let answered = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        match tokio::time::timeout(self.patience, answered).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) => Err(Fault::Closed),
            Err(_) => Err(Fault::Timeout),
        }
    }

    /// Sends a request and waits for the whole answer, whatever its status.
    pub async fn call(&mut self, call: &Call<'_>) -> Result<Answer, Fault> {
        let response = self.begin(call).await?;
        let status = response.status().as_u16();
        let body = tokio::time::timeout(self.patience, response.into_body().collect())
            .await
            .map_err(|_| Fault::Timeout)?
            .map_err(|_| Fault::Closed)?
            .to_bytes();
        Ok(Answer { status, body })
    }
}

/// A connection that is opened again when it was closed.
#[derive(Debug)]
pub struct Kept {
    address: Address,
    connection: Option<Connection>,
}

impl Kept {
    pub fn new(address: Address) -> Self {
        Self {
            address,
            connection: None,
        }
    }

    /// Sends a request; anything but success is an error.
    pub async fn call(&mut self, call: &Call<'_>) -> Result<Answer, Fault> {
        let mut connection = match self.connection.take() {
            Some(connection) if connection.is_open() => connection,
            _ => self.address.connect().await?,
        };
        let answer = connection.call(call).await?;
        self.connection = Some(connection);
        match Fault::of_status(answer.status) {
            None => Ok(answer),
            Some(fault) => Err(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// A connection and the server's end of it, on which a request has come.
    async fn connected() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::plain(listener.local_addr().unwrap()).holding_sockets();
        let (connection, accepted) = tokio::join!(address.connect(), listener.accept());
        let (mut connection, mut server) = (connection.unwrap(), accepted.unwrap().0);
        let call = Call::get("/", "token");
        let answer = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(server.read_u8().await.unwrap());
            }
            server
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
        };
        let (answered, ()) = tokio::join!(connection.call(&call), answer);
        assert_eq!(answered.unwrap().status, 200);
        (connection, server)
    }

    /// What the server hears within a moment; nothing at all is none.
    async fn heard(server: &mut TcpStream) -> Option<std::io::Result<usize>> {
        let mut byte = [0];
        tokio::time::timeout(Duration::from_millis(500), server.read(&mut byte))
            .await
            .ok()
    }

    #[tokio::test]
    async fn the_other_side_hears_of_an_end_and_of_a_break() {
        let (mut connection, mut server) = connected().await;
        assert!(connection.exit().leave(Leave::Close));
        assert!(matches!(heard(&mut server).await, Some(Ok(0))));
        let (mut connection, mut server) = connected().await;
        assert!(connection.exit().leave(Leave::Reset));
        let error = heard(&mut server).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn who_vanishes_is_missed_only_by_whoever_writes() {
        let (mut connection, mut server) = connected().await;
        if !connection.exit().leave(Leave::Vanish) {
            // Without the right to, it was closed, and `soak` says so.
            assert!(matches!(heard(&mut server).await, Some(Ok(0))));
            return;
        }
        drop(connection);
        assert!(heard(&mut server).await.is_none());
        server.write_all(b"anybody?").await.unwrap();
        let error = heard(&mut server).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
