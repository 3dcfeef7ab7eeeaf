//! Metrics of the process itself, read from `/proc/self` when asked for.

use opentelemetry::global;

/// Registers the observable instruments; they read only when somebody scrapes or exports.
pub(crate) fn register() {
    let meter = global::meter("observability");
    meter
        .f64_observable_counter("process.cpu.time")
        .with_unit("s")
        .with_description("CPU time used by the process, user and system.")
        .with_callback(|observer| {
            if let Some(seconds) = cpu_seconds() {
                observer.observe(seconds, &[]);
            }
        })
        .build();
    meter
        .u64_observable_gauge("process.memory.usage")
        .with_unit("By")
        .with_description("Resident memory.")
        .with_callback(|observer| {
            if let Some(kib) = status_value("VmRSS:") {
                observer.observe(kib * 1024, &[]);
            }
        })
        .build();
    meter
        .u64_observable_gauge("process.thread.count")
        .with_description("Threads.")
        .with_callback(|observer| {
            if let Some(threads) = status_value("Threads:") {
                observer.observe(threads, &[]);
            }
        })
        .build();
    meter
        .u64_observable_gauge("process.open_file_descriptor.count")
        .with_description("Open file descriptors.")
        .with_callback(|observer| {
            if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
                observer.observe(entries.count() as u64, &[]);
            }
        })
        .build();
    meter
        .u64_observable_gauge("process.open_file_descriptor.limit")
        .with_description("File descriptors the process may open.")
        .with_callback(|observer| {
            if let Some(limit) = descriptor_limit() {
                observer.observe(limit, &[]);
            }
        })
        .build();
}

/// Clock ticks a second in `/proc`: 100 on every Linux that Rust supports.
const TICKS: f64 = 100.0;

#[expect(clippy::cast_precision_loss, reason = "seconds of CPU time fit")]
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces; the numbers follow it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS)
}

fn status_value(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn descriptor_limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        assert!(cpu_seconds().is_some_and(|seconds| seconds >= 0.0));
        assert!(status_value("VmRSS:").is_some_and(|kib| kib > 100));
        assert!(status_value("Threads:").is_some_and(|threads| threads >= 1));
        assert!(descriptor_limit().is_some_and(|limit| limit > 0));
    }
}
