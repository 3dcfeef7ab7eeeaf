//! What tokio tells about its workers, looked at when metrics are read.

use opentelemetry::global;
use tokio::runtime::RuntimeMetrics;

/// Registers the instruments of the process's runtime.
pub(crate) fn register(runtime: &RuntimeMetrics) {
    let meter = global::meter("service_runtime");
    // The SDK keeps the callbacks; the returned handles are only for dropping them early.
    let of = runtime.clone();
    let _ = meter
        .u64_observable_gauge("tokio.workers")
        .with_unit("{thread}")
        .with_description("Worker threads of the runtime.")
        .with_callback(move |observer| observer.observe(of.num_workers() as u64, &[]))
        .build();
    let of = runtime.clone();
    let _ = meter
        .u64_observable_gauge("tokio.tasks.alive")
        .with_unit("{task}")
        .with_description("Tasks that have not ended.")
        .with_callback(move |observer| observer.observe(of.num_alive_tasks() as u64, &[]))
        .build();
    let of = runtime.clone();
    let _ = meter
        .u64_observable_gauge("tokio.queue.depth")
        .with_unit("{task}")
        .with_description("Tasks ready to run that no worker has taken yet.")
        .with_callback(move |observer| observer.observe(of.global_queue_depth() as u64, &[]))
        .build();
    let of = runtime.clone();
    let _ = meter
        .f64_observable_counter("tokio.busy.time")
        .with_unit("s")
        .with_description("Time that workers were busy, of all workers together.")
        .with_callback(move |observer| {
            let busy: f64 = (0..of.num_workers())
                .map(|worker| of.worker_total_busy_duration(worker).as_secs_f64())
                .sum();
            observer.observe(busy, &[]);
        })
        .build();
}
