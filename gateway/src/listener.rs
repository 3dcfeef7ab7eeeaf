//! The public listener: accepts within limits, shakes hands, and has each request served once its head is sound.
//!
//! Pingora's own listener is not used: it has no deadline for a whole head, forgives framing that must be refused, and
//! fixes the handshake timeout and the session cache.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Shutdown;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access_log;
use crate::answer::{Refusal, raw_refusal};
use crate::body;
use crate::client::Client;
use crate::connection::{Connection, Facts};
use crate::edge::Edge;
use crate::framing::{Following, HeadLimits};
use crate::head::{self, Head, NoHead, Patience};
use crate::http1::Http1;
use crate::identity::{network_name, network_of};
use crate::metrics::Metrics;
use crate::policy::{Current, Policy};
use crate::proxy_protocol;
use crate::stream::OpenStream;
use crate::workers::{Worker, Workers};

/// How long a kept HTTP/1 connection that is idle when the drain begins is open for one more request.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// What connections are bound by.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    pub connections: usize,
    pub connections_per_address: usize,
    pub handshake: Duration,
    /// Longest time a client may take nothing of what is written to it.
    pub stall: Duration,
    pub patience: Patience,
    pub head: HeadLimits,
}

/// Everything a connection needs.
pub struct Acceptor {
    pub tls: TlsAcceptor,
    pub workers: Arc<Workers>,
    pub policy: Current,
    pub metrics: Arc<Metrics>,
    /// `true` once requests should be the last of their connection.
    pub draining: watch::Receiver<bool>,
    /// Cancelled when connections are to be closed, whatever they do.
    pub cut: CancellationToken,
    /// Time over which connections are closed after `cut`.
    pub cut_spread: Duration,
    pub cut_hasher: RandomState,
    pub tasks: TaskTracker,
    pub counts: Arc<Counts>,
}

/// Open connections by client network.
#[derive(Debug, Default)]
pub struct Counts(Mutex<HashMap<u128, usize>>);

/// Counts one connection until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<Counts>, u128);

impl Counts {
    /// Counts a connection of a network, unless it has `max` already.
    pub fn enter(self: &Arc<Self>, network: u128, max: usize) -> Option<Counted> {
        let mut counts = self.0.lock().ok()?;
        let count = counts.entry(network).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counted(Arc::clone(self), network))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Ok(mut counts) = self.0.0.lock()
            && let Some(count) = counts.get_mut(&self.1)
        {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Who was let in.
type Welcomed = (Box<Connection>, Arc<Facts>, Counted);

/// Whether a request is one that Pingora drives.
const fn is_for_pingora(following: Following) -> bool {
    match following {
        Following::Open => true,
        Following::Body(bytes) => bytes > body::RECEIVED_FIRST as u64,
        Following::Chunks => false,
    }
}

/// Ends when an idle connection may be closed: some time after the drain has begun, for a request may be on its way. Its answer says that
/// it is the last.
async fn last_request(draining: &mut watch::Receiver<bool>) {
    // An error means that the drain is over.
    let _ = draining.wait_for(|draining| *draining).await;
    tokio::time::sleep(LAST_REQUEST).await;
}

impl Acceptor {
    /// Accepts until `stop`.
    pub async fn run(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    // Out of file descriptors, mostly: others must end first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Starts a connection unless there are too many or its client is not let in.
    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        if self.tasks.len() >= self.policy.load().connections.connections {
            self.metrics.connection_refused("all");
            return;
        }
        let Some(worker) = self.workers.take() else {
            return;
        };
        // Its thread waits for its bytes from here on.
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%peer, %error, "the client left at once"),
        };
        let acceptor = Arc::clone(self);
        let open = self.metrics.connection_opened();
        let runtime = worker.runtime.clone();
        let connection = async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => {
                    // What is boxed here and below is large, and over before a stream of such a connection is old.
                    let welcome = Box::pin(acceptor.welcome(stream, peer));
                    tokio::select! {
                        () = acceptor.serve(welcome, &worker) => {}
                        () = acceptor.be_cut(peer) => {}
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot wait for the bytes of a connection"),
            }
            drop(open);
        };
        self.tasks.spawn_on(connection, &runtime);
    }

    /// Counts a connection for its client, unless the client has too many or is not let in.
    fn count(&self, policy: &Policy, client: IpAddr) -> Option<Counted> {
        // A proxy is not the client: its requests say who is, and are checked one by one.
        if !policy.identifier.is_trusted(client) && !policy.addresses.permit(client) {
            self.metrics.connection_refused("denied");
            return None;
        }
        let network = network_of(client);
        let counted = self.counts.enter(network, policy.connections.connections_per_address);
        if counted.is_none() {
            self.metrics.connection_refused("address");
            tracing::debug!(client = network_name(network), "too many connections of one client");
        }
        counted
    }

    /// Whose connection this is: the peer's, or whose a load balancer says it is.
    async fn client(&self, stream: &mut TcpStream, peer: SocketAddr, policy: &Policy) -> Option<SocketAddr> {
        let (balancers, within) = (&policy.config.proxy_protocol, policy.connections.handshake);
        let client = proxy_protocol::client(stream, peer, balancers, within).await;
        client
            .inspect_err(|error| {
                self.metrics.connection_refused("proxy_protocol");
                tracing::debug!(%peer, %error, "connection without its PROXY protocol header");
            })
            .ok()
    }

    /// Ends some time after `cut`, at another moment for every connection.
    async fn be_cut(&self, peer: SocketAddr) {
        self.cut.cancelled().await;
        // Ports of neighbours are neighbours too, so they are hashed.
        let hash = u32::try_from(self.cut_hasher.hash_one(peer) >> 32).unwrap_or_default();
        Box::pin(tokio::time::sleep(
            self.cut_spread.mul_f64(f64::from(hash) / f64::from(u32::MAX)),
        ))
        .await;
    }

    async fn serve(&self, welcome: Pin<Box<impl Future<Output = Option<Welcomed>>>>, worker: &Worker) {
        let Some((connection, facts, _counted)) = welcome.await else {
            return;
        };
        if connection.is_http2() {
            Box::pin(self.serve_http2(connection, &facts, &worker.proxy)).await;
        } else {
            self.serve_http1(connection, &facts, worker).await;
        }
    }

    /// Learns who comes, counts the connection and shakes hands.
    async fn welcome(&self, mut stream: TcpStream, peer: SocketAddr) -> Option<(Box<Connection>, Arc<Facts>, Counted)> {
        let policy = self.policy.load_full();
        let peer = self.client(&mut stream, peer, &policy).await?;
        let counted = self.count(&policy, peer.ip())?;
        let limits = policy.connections;
        // A connection outlives policies; requests look up the one in force.
        drop(policy);
        let (connection, facts) = self.shake_hands(stream, peer, &limits).await?;
        Some((connection, facts, counted))
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        limits: &ConnectionLimits,
    ) -> Option<(Box<Connection>, Arc<Facts>)> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let started = Instant::now();
        let handshake = tokio::time::timeout(limits.handshake, self.tls.accept(stream)).await;
        let tls = match handshake {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                self.metrics.handshake_failed("protocol");
                tracing::debug!(%peer, %error, "TLS handshake failed");
                return None;
            }
            Err(_) => {
                self.metrics.handshake_failed("timeout");
                return None;
            }
        };
        let (connection, facts) = Connection::new(tls, peer, started.elapsed(), limits.stall);
        self.metrics.handshake(facts.handshake, facts.tls_version);
        Some((Box::new(connection), facts))
    }

    /// Pingora drives HTTP/2; a client that never gets to its first request is let go.
    async fn serve_http2(&self, connection: Box<Connection>, facts: &Facts, proxy: &Arc<HttpProxy<Edge>>) {
        let silent = async {
            tokio::time::sleep(self.policy.load().connections.patience.head).await;
            if facts.requests.load(Ordering::Relaxed) > 0 {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = proxy.process_new(connection, &self.draining) => {}
            () = silent => {}
        }
    }

    /// Serves requests until the connection ends.
    async fn serve_http1(&self, connection: Box<Connection>, facts: &Arc<Facts>, worker: &Worker) {
        let mut next = Some((connection, BytesMut::new()));
        while let Some((connection, buffer)) = next {
            let requests = self.serve_requests(connection, buffer, facts, worker);
            let Some(stream) = Box::pin(requests).await else {
                return;
            };
            let client = stream.run(&worker.edge).await;
            next = Box::pin(client.next()).await;
        }
    }

    /// Serves requests until the connection ends or has a stream. Reads each head here and checks it. Pingora is given those that may become
    /// another protocol, and those whose bodies are too large to be held.
    async fn serve_requests(
        &self,
        mut connection: Box<Connection>,
        mut buffer: BytesMut,
        facts: &Arc<Facts>,
        worker: &Worker,
    ) -> Option<Box<OpenStream>> {
        loop {
            let mut draining = self.draining.clone();
            let limits = self.policy.load().connections;
            let head = tokio::select! {
                biased;
                head = head::read(&mut connection, buffer, limits.patience, &limits.head) => head,
                () = last_request(&mut draining) => Err(NoHead::Quiet),
            };
            let head = match head {
                Ok(head) => head,
                Err(NoHead::Quiet) => {
                    Shutdown::shutdown(&mut *connection).await;
                    return None;
                }
                Err(NoHead::Refused(refusal)) => {
                    self.refuse(&mut connection, facts, &refusal).await;
                    return None;
                }
            };
            if is_for_pingora(head.following) {
                let passed_on = self.pass_to_pingora(connection, head, facts, &worker.proxy);
                connection = Box::pin(passed_on).await?;
                buffer = BytesMut::new();
                continue;
            }
            let mut client = Http1::new(connection, facts, head);
            if *self.draining.borrow() {
                client.close_after();
            }
            if let Some(opened) = worker.edge.serve(&mut client).await {
                return Some(OpenStream::new(client, opened));
            }
            (connection, buffer) = client.next().await?;
        }
    }

    /// Has Pingora serve the request with this head; returns the connection when another one may follow.
    async fn pass_to_pingora(
        &self,
        connection: Box<Connection>,
        head: Head,
        facts: &Facts,
        proxy: &Arc<HttpProxy<Edge>>,
    ) -> Option<Box<Connection>> {
        let mut beginning = BytesMut::from(head.bytes);
        match head.following {
            Following::Body(bytes) => facts.gate.allow(bytes, head.rest),
            Following::Chunks | Following::Open => beginning.unsplit(head.rest),
        }
        let mut session = ServerSession::new_http1(connection);
        session.set_keepalive(Some(self.policy.load().connections.patience.idle.as_secs()));
        session.set_pipelined_prefix(beginning);
        let (stream, _) = proxy.process_new_http(session, &self.draining).await?.consume();
        facts.gate.open();
        stream.into_any().downcast().ok()
    }

    async fn refuse(&self, connection: &mut Connection, facts: &Facts, refusal: &Refusal) {
        let started = Instant::now();
        let policy = self.policy.load_full();
        let identity = policy.identifier.identify(facts.peer.ip(), &http::HeaderMap::new());
        let bytes = raw_refusal(refusal, &identity);
        let sent = tokio::time::timeout(Duration::from_secs(5), async {
            connection.write_all(&bytes).await?;
            connection.flush().await
        });
        if let Ok(Ok(())) = sent.await {
            Shutdown::shutdown(connection).await;
        }
        access_log::record_unparsed(
            &policy,
            &identity,
            refusal.status(),
            refusal.reason,
            started.elapsed(),
            &self.metrics,
        );
    }
}
