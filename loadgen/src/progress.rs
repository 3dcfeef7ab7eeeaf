//! The live line, and the wish to stop.

#![expect(clippy::print_stderr, reason = "a command talks to the person who runs it")]

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The flag that Ctrl-C sets.
pub fn stop_flag() -> Arc<AtomicBool> {
    Arc::clone(STOP.get_or_init(Arc::default))
}

/// Whether the person who runs us wants to stop; what was measured until then is a partial result.
pub fn is_stopped() -> bool {
    STOP.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// One line of progress.
pub fn say(line: &str) {
    eprintln!("· {line}");
}

/// What is counted while it happens.
#[derive(Debug, Default)]
pub struct Counters {
    pub done: AtomicU64,
    pub delivered: AtomicU64,
    pub failed: AtomicU64,
    pub in_flight: AtomicU64,
}

/// Shows the counters once a second until it is dropped.
#[derive(Debug)]
pub struct Live {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Live {
    /// `length` is how long it will take.
    pub fn show(what: &str, length: Duration, counters: Arc<Counters>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let (over, what) = (Arc::clone(&ended), what.to_owned());
        let thread = std::thread::spawn(move || {
            let is_terminal = std::io::stderr().is_terminal();
            let started = Instant::now();
            let (mut done_before, mut delivered_before) = (0, 0);
            let mut shown = 0;
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_secs(1));
                let [done, delivered, failed, in_flight] = [
                    &counters.done,
                    &counters.delivered,
                    &counters.failed,
                    &counters.in_flight,
                ]
                .map(|counter| counter.load(Ordering::Relaxed));
                let line = format!(
                    "{what} {}/{} s  {}/s done  {}/s delivered  {in_flight} in flight  {failed} errors",
                    started.elapsed().as_secs(),
                    length.as_secs(),
                    done - done_before,
                    delivered - delivered_before
                );
                (done_before, delivered_before) = (done, delivered);
                if is_terminal {
                    eprint!("\r\u{1b}[K{line}");
                    // Only the look of the line depends on it.
                    let _ = std::io::stderr().flush();
                } else if shown % 5 == 0 {
                    eprintln!("{line}");
                }
                shown += 1;
            }
            if is_terminal {
                eprintln!();
            }
        });
        Self {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic but on a closed standard error.
            let _ = thread.join();
        }
    }
}
