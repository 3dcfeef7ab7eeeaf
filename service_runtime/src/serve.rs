//! Accepts connections, serves a router by HTTP/1.1 and HTTP/2 (prior knowledge), and drains within a bound.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::write_timeout::WriteTimeout;

/// How connections are served and ended.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long requests in flight may go on after the shutdown signal.
    pub drain: Duration,
    /// Read and write buffer of an HTTP/1 connection, in bytes (at least 8,192).
    pub http1_buffer: usize,
    /// How long a write may wait for a peer that does not read; none waits for ever.
    pub write_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(20),
            http1_buffer: 64 * 1024,
            write_timeout: None,
        }
    }
}

/// Binds a listener; an occupied port is said plainly, with the key that sets another.
pub async fn bind(addr: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("{key}: cannot listen on {addr}; choose another with {key}"))
}

/// Serves until `shutdown`, then stops accepting, lets requests in flight end within `options.drain`, and returns.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken, options: Options) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(75))
        .max_buf_size(options.http1_buffer.max(8_192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(20)));
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, mostly: others must end first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let service = TowerToHyperService::new(router.clone());
        let stream = WriteTimeout::new(stream, options.write_timeout);
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "connection ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(options.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            seconds = options.drain.as_secs(),
            "requests still in flight after the drain time were cut"
        );
    }
}
