//! Requests that arrive before the last one is answered wait here, unread by whoever serves the last one.
//!
//! Pingora would take the next request for garbage after the present one. So while a request is served, its connection
//! gives out as many bytes as its body has, and keeps what comes after for the next head to be read and checked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Buf, BytesMut};

/// Most bytes kept; beyond, the client's next bytes wait in its socket.
pub const HELD_MAX: usize = 16 * 1_024;
/// No bound: between requests, on HTTP/2 and on upgraded connections.
const OPEN: u64 = u64::MAX;

/// How much of a connection the present request may read, and what came after it.
#[derive(Debug)]
pub struct Gate {
    allowed: AtomicU64,
    holds: AtomicBool,
    held: Mutex<BytesMut>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            allowed: AtomicU64::new(OPEN),
            holds: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }
}

impl Gate {
    /// Gives out everything again.
    pub fn open(&self) {
        self.allowed.store(OPEN, Ordering::Relaxed);
    }

    /// Gives out this many bytes more; `rest` came with the head and is given out first.
    pub fn allow(&self, bytes: u64, rest: BytesMut) {
        self.put_first(rest);
        self.allowed.store(bytes, Ordering::Relaxed);
    }

    fn put_first(&self, rest: BytesMut) {
        if !rest.is_empty() {
            self.hold(|held| {
                let later = std::mem::replace(held, rest);
                held.extend_from_slice(&later);
            });
        }
    }

    /// The request is complete: nothing more of this connection belongs to it.
    pub fn close(&self) {
        self.allowed.store(0, Ordering::Relaxed);
    }

    /// Whether reads go straight to the connection.
    pub fn is_open(&self) -> bool {
        self.allowed.load(Ordering::Relaxed) == OPEN && !self.holds.load(Ordering::Relaxed)
    }

    /// Bytes the request may still read, as many as one likes without a known bound.
    pub fn allowed(&self) -> usize {
        usize::try_from(self.allowed.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// Takes note of how much was read for the request.
    pub fn claim(&self, read: usize) {
        let allowed = self.allowed.load(Ordering::Relaxed);
        if allowed != OPEN {
            self.allowed
                .store(allowed.saturating_sub(read as u64), Ordering::Relaxed);
        }
    }

    /// Moves kept bytes into `room`, as far as the request may have them; returns how many.
    pub fn take(&self, room: &mut [u8]) -> usize {
        if !self.holds.load(Ordering::Relaxed) {
            return 0;
        }
        let allowed = self.allowed();
        let taken = self.hold(|held| {
            let taken = held.len().min(room.len()).min(allowed);
            room[..taken].copy_from_slice(&held[..taken]);
            held.advance(taken);
            taken
        });
        self.claim(taken);
        taken
    }

    /// Keeps bytes of a later request; returns whether there is room for more.
    pub fn keep(&self, bytes: &[u8]) -> bool {
        self.hold(|held| {
            held.extend_from_slice(bytes);
            held.len() < HELD_MAX
        })
    }

    /// Whether there is room for bytes of a later request.
    pub fn has_room(&self) -> bool {
        self.hold(|held| held.len() < HELD_MAX)
    }

    fn hold<T>(&self, act: impl FnOnce(&mut BytesMut) -> T) -> T {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = act(&mut held);
        if held.is_empty() {
            *held = BytesMut::new();
        }
        self.holds.store(!held.is_empty(), Ordering::Relaxed);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_its_own_bytes_and_the_next_one_the_rest() {
        let gate = Gate::default();
        assert!(gate.is_open());
        gate.allow(3, BytesMut::from(&b"abNEXT"[..]));
        gate.keep(b"MORE");
        let mut room = [0; 16];
        assert_eq!(gate.take(&mut room), 3);
        assert_eq!(&room[..3], b"abN");
        assert_eq!(gate.take(&mut room), 0);
        assert_eq!(gate.allowed(), 0);
        gate.open();
        assert!(!gate.is_open(), "what was kept comes first");
        assert_eq!(gate.take(&mut room), 7);
        assert_eq!(&room[..7], b"EXTMORE");
        assert!(gate.is_open());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let gate = Gate::default();
        gate.close();
        assert!(gate.keep(&[0; HELD_MAX - 1]));
        assert!(!gate.keep(&[0; 1]));
        assert!(!gate.has_room());
    }
}
