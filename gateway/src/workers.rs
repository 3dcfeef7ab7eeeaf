//! The threads that serve connections. Each has a runtime, a proxy and connections to upstreams for itself: a request never
//! leaves its thread, so nothing of it is locked, stolen or woken elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::proxy::HttpProxy;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::edge::Edge;

/// All of them; they end when this is dropped.
pub struct Workers {
    all: Vec<Arc<Worker>>,
    stop: CancellationToken,
}

/// One thread.
pub struct Worker {
    pub runtime: Handle,
    /// For the requests that are served here, and for those that Pingora drives.
    pub edge: Edge,
    pub proxy: Arc<HttpProxy<Edge>>,
    connections: AtomicUsize,
}

/// Counts a connection of a worker until it is dropped.
pub struct Serving(Arc<Worker>);

impl Workers {
    /// Starts `count` threads, at least one, each with an edge of its own, and a proxy for it.
    ///
    /// # Errors
    ///
    /// When a thread or its runtime cannot be made.
    pub fn start(
        count: usize,
        edge: impl Fn() -> Edge,
        proxy: impl Fn(Edge) -> HttpProxy<Edge>,
    ) -> std::io::Result<Self> {
        let mut workers = Self {
            all: Vec::new(),
            stop: CancellationToken::new(),
        };
        for number in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            service_runtime::runtime_metrics::register(runtime.handle());
            let edge = edge();
            workers.all.push(Arc::new(Worker {
                runtime: runtime.handle().clone(),
                proxy: Arc::new(proxy(edge.clone())),
                edge,
                connections: AtomicUsize::new(0),
            }));
            let stop = workers.stop.clone();
            std::thread::Builder::new()
                .name(format!("gateway-{number}"))
                .spawn(move || runtime.block_on(stop.cancelled()))?;
        }
        Ok(workers)
    }

    /// The worker with the fewest connections takes one more.
    pub fn take(&self) -> Option<Serving> {
        let fewest = self
            .all
            .iter()
            .min_by_key(|worker| worker.connections.load(Ordering::Relaxed))?;
        fewest.connections.fetch_add(1, Ordering::Relaxed);
        Some(Serving(Arc::clone(fewest)))
    }

    /// Has each proxy close what it keeps for later requests.
    pub async fn clean_up(&self) {
        for worker in &self.all {
            worker.edge.idle.clear();
            worker.proxy.http_cleanup().await;
        }
    }

    /// Closes connections to upstreams that are closed or have waited for `patience`. To be called each second: nobody else looks at those
    /// that no request asks for.
    pub fn sweep(&self, patience: Duration) {
        for worker in &self.all {
            worker.edge.idle.sweep(patience);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl std::ops::Deref for Serving {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.0
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
