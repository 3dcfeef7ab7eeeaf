//! Threads that write an index. They yield to all others: whoever sends, reads or searches waits for nobody who indexes.

use std::io;

use crate::engine::EngineError;

/// How much they yield: about a tenth of an equal share where the processor is full, all of it where it is not.
const NICE: i32 = 10;

/// Does `work` on a thread that yields and waits for it. tantivy's own threads (one that indexes, made anew by each commit, and those
/// that merge) begin on the thread that opens an index or writes to it, and inherit this.
pub(super) fn yielding<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("index-open".to_owned())
            .spawn_scoped(scope, || {
                give_way();
                work()
            })?;
        thread.join().map_err(|_| io::Error::other("the thread ended early"))
    })
}

/// Runs `work` off the async threads, on one that yields; a panic in it (tantivy meets damaged data so) is an error.
pub(super) async fn writing<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let (answer, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("index-write".to_owned())
        .spawn(move || {
            give_way();
            // Whoever waited may have gone; what was written stays.
            let _ = answer.send(work());
        })
        .map_err(|error| EngineError::Unavailable(format!("index thread: {error}")))?;
    result
        .await
        .unwrap_or_else(|_| Err(EngineError::Failed("index thread: it ended early".to_owned())))
}

fn give_way() {
    // For this thread and those that it makes: Linux counts it per thread.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "writing the index cannot yield to other work");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        rustix::process::nice(0).expect("Linux has it")
    }

    #[tokio::test]
    async fn what_writes_yields_with_all_that_it_begins_and_the_others_do_not() {
        let before = niceness();
        let of_a_child = || std::thread::spawn(niceness).join().expect("a number");
        let written = writing(move || Ok(of_a_child())).await.expect("a thread");
        assert_eq!(written, (before + NICE).min(19));
        assert_eq!(yielding(of_a_child).expect("a thread"), (before + NICE).min(19));
        assert_eq!(niceness(), before);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let result: Result<(), _> = writing(|| panic!("damaged")).await;
        assert!(matches!(result, Err(EngineError::Failed(_))), "{result:?}");
        assert!(yielding(|| panic!("damaged")).is_err());
    }
}
