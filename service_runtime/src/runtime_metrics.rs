//! What tokio tells about its workers, looked at when metrics are read.

use std::sync::{OnceLock, PoisonError, RwLock};

use opentelemetry::global;
use tokio::runtime::{Handle, RuntimeMetrics};

/// The runtimes of the process; one, except where threads have runtimes of their own.
static RUNTIMES: OnceLock<RwLock<Vec<RuntimeMetrics>>> = OnceLock::new();

/// Counts a runtime among those of the process, whose sums are exported.
pub fn register(runtime: &Handle) {
    let runtimes = RUNTIMES.get_or_init(|| {
        instruments();
        RwLock::default()
    });
    let mut runtimes = runtimes.write().unwrap_or_else(PoisonError::into_inner);
    runtimes.push(runtime.metrics());
}

fn sum<T: std::iter::Sum>(of: impl Fn(&RuntimeMetrics) -> T) -> T {
    let runtimes = RUNTIMES
        .get()
        .map(|all| all.read().unwrap_or_else(PoisonError::into_inner));
    runtimes.iter().flat_map(|all| all.iter()).map(of).sum()
}

fn busy_seconds(runtime: &RuntimeMetrics) -> f64 {
    let workers = 0..runtime.num_workers();
    workers
        .map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64())
        .sum()
}

fn instruments() {
    let meter = global::meter("service_runtime");
    // The SDK keeps the callbacks; the returned handles are only for dropping them early.
    let _ = meter
        .u64_observable_gauge("tokio.workers")
        .with_unit("{thread}")
        .with_description("Worker threads of the runtimes.")
        .with_callback(|observer| observer.observe(sum(|of| of.num_workers() as u64), &[]))
        .build();
    let _ = meter
        .u64_observable_gauge("tokio.tasks.alive")
        .with_unit("{task}")
        .with_description("Tasks that have not ended.")
        .with_callback(|observer| observer.observe(sum(|of| of.num_alive_tasks() as u64), &[]))
        .build();
    let _ = meter
        .u64_observable_gauge("tokio.queue.depth")
        .with_unit("{task}")
        .with_description("Tasks ready to run that no worker has taken yet.")
        .with_callback(|observer| observer.observe(sum(|of| of.global_queue_depth() as u64), &[]))
        .build();
    let _ = meter
        .f64_observable_counter("tokio.busy.time")
        .with_unit("s")
        .with_description("Time that workers were busy, of all workers together.")
        .with_callback(|observer| observer.observe(sum(busy_seconds), &[]))
        .build();
}
