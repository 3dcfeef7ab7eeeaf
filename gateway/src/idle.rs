//! Connections to upstreams that wait for their next request.
//!
//! Each worker has its own. A connection is looked at before it is used again: one that was closed meanwhile, or by which an upstream said
//! something nobody asked for, is let go.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;

/// The connections, the one that waits longest first.
#[derive(Debug)]
pub struct Idle {
    most: usize,
    waiting: Mutex<VecDeque<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    address: SocketAddr,
    stream: TcpStream,
    since: Instant,
}

impl Idle {
    /// Room for `most` connections; beyond, those that wait longest are closed.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Mutex::default(),
        }
    }

    /// The connection to `address` that was used last, if there is a good one that has not waited for `patience`.
    pub fn take(&self, address: SocketAddr, patience: Duration) -> Option<TcpStream> {
        let mut waiting = self.lock();
        while let Some(last) = waiting.iter().rposition(|one| one.address == address) {
            let one = waiting.remove(last)?;
            if one.since.elapsed() < patience && is_quiet(&one.stream) {
                return Some(one.stream);
            }
        }
        None
    }

    /// Keeps a connection whose last answer is whole.
    pub fn put(&self, address: SocketAddr, stream: TcpStream) {
        let mut waiting = self.lock();
        if waiting.len() >= self.most && waiting.pop_front().is_none() {
            return;
        }
        waiting.push_back(Waiting {
            address,
            stream,
            since: Instant::now(),
        });
    }

    /// Closes what upstreams have closed, what should have been silent and was not, and what has waited for `patience`.
    pub fn sweep(&self, patience: Duration) {
        self.lock()
            .retain(|one| one.since.elapsed() < patience && is_quiet(&one.stream));
    }

    /// Closes all.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is nothing to read, not even an end. Asks the kernel: what the runtime knows may be older.
fn is_quiet(stream: &TcpStream) -> bool {
    let peeked = recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(peeked, Err(Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_hours(1);

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(connect, listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    fn port(stream: &TcpStream) -> u16 {
        stream.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn the_last_one_used_is_taken_first_and_too_many_close_the_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (idle, mut theirs, mut ports) = (Idle::new(2), Vec::new(), Vec::new());
        for _ in 0..3 {
            let (ours, other) = pair(&listener).await;
            ports.push(port(&ours));
            theirs.push(other);
            idle.put(address, ours);
        }
        assert!(idle.take("127.0.0.1:1".parse().unwrap(), PATIENCE).is_none());
        let mut taken = Vec::new();
        while let Some(stream) = idle.take(address, PATIENCE) {
            taken.push(port(&stream));
        }
        assert_eq!(taken, [ports[2], ports[1]]);

        let none = Idle::new(0);
        none.put(address, pair(&listener).await.0);
        assert!(none.take(address, PATIENCE).is_none());
    }

    #[tokio::test]
    async fn what_was_closed_or_has_something_to_say_is_not_used() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let idle = Idle::new(10);
        let (ours, mut talkative) = pair(&listener).await;
        let readable = async |stream: &TcpStream| stream.readable().await.unwrap();
        talkative.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        readable(&ours).await;
        idle.put(address, ours);
        assert!(idle.take(address, PATIENCE).is_none());

        let (ours, gone) = pair(&listener).await;
        drop(gone);
        readable(&ours).await;
        idle.put(address, ours);
        idle.sweep(PATIENCE);
        assert_eq!(idle.lock().len(), 0);

        let (ours, _theirs) = pair(&listener).await;
        idle.put(address, ours);
        idle.sweep(PATIENCE);
        assert_eq!(idle.lock().len(), 1);
        assert!(idle.take(address, Duration::ZERO).is_none(), "it has waited too long");
        let (ours, _theirs) = pair(&listener).await;
        idle.put(address, ours);
        idle.clear();
        assert!(idle.take(address, PATIENCE).is_none());
    }
}
