//! Waiting on a state, with a bound.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Calls `ready` until it gives a value; after `timeout` it is an error that names what was waited for.
pub fn until<T>(timeout: Duration, what: &str, mut ready: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if started.elapsed() > timeout {
            bail!("waited {} s in vain for {what}", timeout.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
