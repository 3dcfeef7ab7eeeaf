//! Waiting on a state, with a bound.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::bail;

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Makes [`until_ready`] give up once the flag is set: a person who presses Ctrl-C does not want to wait on.
pub fn interrupted_by(flag: Arc<AtomicBool>) {
    // Said once, by a command's main.
    let _ = INTERRUPTED.set(flag);
}

/// Calls `ready` until it gives a value; after `timeout` it is an error that names what was waited for.
pub fn until<T>(timeout: Duration, what: &str, ready: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    poll(timeout, what, || false, ready)
}

/// Like [`until`], for what a signal makes pointless.
pub fn until_ready<T>(timeout: Duration, what: &str, ready: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let interrupted = || INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed));
    poll(timeout, what, interrupted, ready)
}

fn poll<T>(
    timeout: Duration,
    what: &str,
    interrupted: impl Fn() -> bool,
    mut ready: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if started.elapsed() > timeout {
            bail!("waited {} s in vain for {what}", timeout.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
