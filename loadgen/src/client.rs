//! One kept HTTP/1.1 connection, over TLS or without.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::outcome::Fault;

/// Longest wait for a connection or an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where requests go.
#[derive(Clone)]
pub struct Address {
    pub socket: SocketAddr,
    /// The `Host` field.
    pub host: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
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
        })
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
        let sender = match &self.tls {
            None => drive(TokioIo::new(tcp)).await?,
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await.map_err(|_| Fault::Tls)?;
                drive(TokioIo::new(tls)).await?
            }
        };
        Ok(Connection {
            sender,
            host: self.host.clone(),
        })
    }
}

async fn drive<I>(io: I) -> Result<SendRequest<Full<Bytes>>, Fault>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = Builder::new()
        .max_buf_size(32 * 1_024)
        .handshake(io)
        .await
        .map_err(|_| Fault::Closed)?;
    tokio::spawn(async move {
        // What ends it also ends the request in flight, which tells.
        let _ = connection.await;
    });
    Ok(sender)
}

/// An open connection; one request at a time.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
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
}

impl<'a> Call<'a> {
    pub fn get(path: &'a str, token: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            token: Some(token),
            body: None,
            cursor: None,
        }
    }

    pub fn post(path: &'a str, token: Option<&'a str>, body: Vec<u8>) -> Self {
        Self {
            method: Method::POST,
            path,
            token,
            body: Some(body.into()),
            cursor: None,
        }
    }
}

impl Connection {
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
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) => Err(Fault::Closed),
            Err(_) => Err(Fault::Timeout),
        }
    }

    /// Sends a request and waits for the whole answer, whatever its status.
    pub async fn call(&mut self, call: &Call<'_>) -> Result<Answer, Fault> {
        let response = self.begin(call).await?;
        let status = response.status().as_u16();
        let body = tokio::time::timeout(PATIENCE, response.into_body().collect())
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
