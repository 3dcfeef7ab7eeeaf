//! One client connection as Pingora sees it: TLS over TCP, with answers gathered into few writes.
//!
//! Pingora's own stream keeps two buffers of 64 KiB for each connection. This one keeps none while idle, which is what
//! thousands of open event streams need, and joins the head and the body of an answer into one TLS record.

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use pingora::proxy::Session;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use crate::pipeline::Gate;

/// Most bytes gathered before they are written.
const GATHER: usize = 8 * 1024;
/// How long and how much a closing connection still listens.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// What is known about a connection; every request on it can reach this.
#[derive(Debug)]
pub struct Facts {
    pub peer: SocketAddr,
    pub handshake: Duration,
    pub tls_version: &'static str,
    /// Whether the client has proved who it is by a certificate.
    pub certified: bool,
    /// Requests begun on it.
    pub requests: AtomicU32,
    /// Event streams open on it.
    pub streams: AtomicU32,
    /// What of it the present request may read.
    pub gate: Gate,
}

impl Facts {
    /// The facts of the connection a request came by.
    pub fn of(session: &Session) -> Option<&Arc<Self>> {
        let digest = session.as_downstream().digest()?.proxy_digest.as_ref()?;
        digest.user_data.as_ref()?.downcast_ref()
    }
}

/// A client connection.
pub struct Connection {
    tls: TlsStream<TcpStream>,
    gathered: BytesMut,
    /// Until when, and for how many bytes, a closing connection still listens.
    linger: Option<(Pin<Box<Sleep>>, usize)>,
    /// Longest time without progress of a write, and when that time is over.
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    http2: bool,
    established: SystemTime,
    handshake: Duration,
    ssl: Arc<SslDigest>,
    facts: Arc<Facts>,
    digest: Arc<ProxyDigest>,
    socket: Arc<SocketDigest>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("http2", &self.http2)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Wraps a connection whose handshake is done.
    pub fn new(
        tls: TlsStream<TcpStream>,
        peer: SocketAddr,
        handshake: Duration,
        stall: Duration,
    ) -> pingora::Result<(Self, Arc<Facts>)> {
        let (tcp, session) = tls.get_ref();
        let version = session
            .protocol_version()
            .and_then(|version| version.as_str())
            .unwrap_or("");
        let suite = session
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("");
        let http2 = session.alpn_protocol() == Some(b"h2");
        let facts = Arc::new(Facts {
            peer,
            handshake,
            tls_version: version,
            certified: session.peer_certificates().is_some(),
            requests: AtomicU32::new(0),
            streams: AtomicU32::new(0),
            gate: Gate::default(),
        });
        let user_data: Box<dyn Any + Send + Sync> = Box::new(Arc::clone(&facts));
        let socket = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // Known already; else Pingora would ask the kernel.
        let _ = socket.peer_addr.set(Some(peer.into()));
        let connection = Self {
            http2,
            gathered: BytesMut::new(),
            linger: None,
            stall,
            stalled: None,
            established: SystemTime::now(),
            handshake,
            ssl: Arc::new(SslDigest::new(suite, version, None, None, Vec::new())),
            facts: Arc::clone(&facts),
            digest: Arc::new(ProxyDigest::new(
                Box::new(ResponseHeader::build(200, Some(0))?),
                Some(user_data),
            )),
            socket: Arc::new(socket),
            tls,
        };
        Ok((connection, facts))
    }

    /// Whether the client chose HTTP/2.
    pub const fn is_http2(&self) -> bool {
        self.http2
    }

    fn poll_write_gathered(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gathered.has_remaining() {
            let written = Pin::new(&mut self.tls).poll_write(context, &self.gathered);
            let written = ready!(self.bounded(context, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(written);
        }
        // An idle connection holds no memory for writing.
        self.gathered = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Bounds how long a write may make no progress: a client that takes nothing must not hold memory for ever.
    fn bounded<T>(&mut self, context: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let stall = self.stall;
        let deadline = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Gives the present request what belongs to it and keeps what comes after it.
    fn poll_read_gated(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = &self.facts.gate;
        let broken = |fault| io::Error::new(io::ErrorKind::InvalidData, fault);
        let taken = gate.take(buffer.initialize_unfilled()).map_err(broken)?;
        if taken > 0 {
            buffer.advance(taken);
            return Poll::Ready(Ok(()));
        }
        let allowed = gate.allowed().min(buffer.remaining());
        if allowed > 0 {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(allowed));
            ready!(Pin::new(&mut self.tls).poll_read(context, &mut part))?;
            let read = gate.claim(part.filled()).map_err(broken)?;
            buffer.advance(read);
            return Poll::Ready(Ok(()));
        }
        let mut scrap = [0; 2_048];
        while gate.has_room() {
            let mut part = ReadBuf::new(&mut scrap);
            ready!(Pin::new(&mut self.tls).poll_read(context, &mut part))?;
            if part.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            gate.keep(part.filled());
        }
        // Whoever serves the request is woken by its answer; the next head is read only after it.
        Poll::Pending
    }

    /// Reads and forgets until the client closes, sends too much or takes too long.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (deadline, left) = self
            .linger
            .get_or_insert_with(|| (Box::pin(tokio::time::sleep(LINGER)), LINGER_BYTES));
        if deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut scrap = [0; 4_096];
        while *left > 0 {
            let mut buffer = ReadBuf::new(&mut scrap);
            match ready!(Pin::new(&mut self.tls).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => *left = left.saturating_sub(buffer.filled().len()),
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.facts.gate.is_open() {
            return Pin::new(&mut self.tls).poll_read(context, buffer);
        }
        self.poll_read_gated(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() + bytes.len() > GATHER {
            ready!(self.poll_write_gathered(context))?;
        }
        if bytes.len() >= GATHER {
            let written = Pin::new(&mut self.tls).poll_write(context, bytes);
            return self.bounded(context, written);
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_gathered(context))?;
        let flushed = Pin::new(&mut self.tls).poll_flush(context);
        self.bounded(context, flushed)
    }

    /// Says goodbye and then listens a little longer: a socket closed over unread bytes is reset, and the reset can
    /// overtake our last answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_gathered(context))?;
        let shut = Pin::new(&mut self.tls).poll_shutdown(context);
        ready!(self.bounded(context, shut))?;
        self.poll_linger(context).map(Ok)
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(self).await {
            tracing::debug!(%error, "the client left first");
        }
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.tls.get_ref().0.as_raw_fd()
    }
}

impl Ssl for Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        Some(Arc::clone(&self.ssl))
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.http2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.established,
            establishment_duration: Some(self.handshake),
            offload_wait_duration: None,
        })]
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket))
    }
}

impl Peek for Connection {}
