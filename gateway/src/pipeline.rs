//! Requests that arrive before the last one is answered wait here, unread by whoever serves the last one.
//!
//! Pingora would take the next request for garbage after the present one. So while a request is served, its connection
//! gives out as many bytes as its body has, chunked or not, and keeps what comes after for the next head to be read and checked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Buf, BytesMut};

use crate::chunks::{ChunkFault, Chunks};

/// Most bytes kept; beyond, the client's next bytes wait in its socket.
pub const HELD_MAX: usize = 16 * 1_024;
/// No bound: between requests, on HTTP/2 and on upgraded connections.
const OPEN: u64 = u64::MAX;
/// As far as the chunks go.
const CHUNKED: u64 = u64::MAX - 1;

/// How much of a connection the present request may read, and what came after it.
#[derive(Debug)]
pub struct Gate {
    allowed: AtomicU64,
    holds: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: BytesMut,
    /// Follows the body of the present request.
    chunks: Chunks,
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

    /// Gives out one chunked body; `rest` came with the head and is given out first.
    pub fn allow_chunks(&self, rest: BytesMut) {
        self.put_first(rest);
        self.hold(|held| held.chunks = Chunks::default());
        self.allowed.store(CHUNKED, Ordering::Relaxed);
    }

    fn put_first(&self, rest: BytesMut) {
        if !rest.is_empty() {
            self.hold(|held| {
                let later = std::mem::replace(&mut held.bytes, rest);
                held.bytes.extend_from_slice(&later);
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

    /// Takes note of what was read for the request; returns how many of these bytes belong to it. The others are kept.
    pub fn claim(&self, read: &[u8]) -> Result<usize, ChunkFault> {
        match self.allowed.load(Ordering::Relaxed) {
            OPEN => Ok(read.len()),
            CHUNKED => self.hold(|held| {
                let Some(end) = held.chunks.follow(read)? else {
                    return Ok(read.len());
                };
                self.close();
                held.bytes.extend_from_slice(&read[end..]);
                Ok(end)
            }),
            allowed => {
                self.allowed
                    .store(allowed.saturating_sub(read.len() as u64), Ordering::Relaxed);
                Ok(read.len())
            }
        }
    }

    /// Moves kept bytes into `room`, as far as the request may have them; returns how many.
    pub fn take(&self, room: &mut [u8]) -> Result<usize, ChunkFault> {
        if !self.holds.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let allowed = self.allowed();
        let taken = self.hold(|held| {
            let taken = held.bytes.len().min(room.len()).min(allowed);
            room[..taken].copy_from_slice(&held.bytes[..taken]);
            held.bytes.advance(taken);
            taken
        });
        // What is kept already came after what is put back now.
        let later = self.hold(|held| std::mem::take(&mut held.bytes));
        let claimed = self.claim(&room[..taken]);
        self.hold(|held| held.bytes.unsplit(later));
        claimed
    }

    /// Keeps bytes of a later request; returns whether there is room for more.
    pub fn keep(&self, bytes: &[u8]) -> bool {
        self.hold(|held| {
            held.bytes.extend_from_slice(bytes);
            held.bytes.len() < HELD_MAX
        })
    }

    /// Whether there is room for bytes of a later request.
    pub fn has_room(&self) -> bool {
        self.hold(|held| held.bytes.len() < HELD_MAX)
    }

    fn hold<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = act(&mut held);
        if held.bytes.is_empty() {
            held.bytes = BytesMut::new();
        }
        self.holds.store(!held.bytes.is_empty(), Ordering::Relaxed);
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
        assert_eq!(gate.take(&mut room), Ok(3));
        assert_eq!(&room[..3], b"abN");
        assert_eq!(gate.take(&mut room), Ok(0));
        assert_eq!(gate.allowed(), 0);
        gate.open();
        assert!(!gate.is_open(), "what was kept comes first");
        assert_eq!(gate.take(&mut room), Ok(7));
        assert_eq!(&room[..7], b"EXTMORE");
        assert!(gate.is_open());
    }

    #[test]
    fn a_chunked_body_ends_where_it_says_and_the_next_request_waits() {
        let gate = Gate::default();
        gate.allow_chunks(BytesMut::from(&b"2\r\n{}\r\n"[..]));
        let mut room = [0; 32];
        assert_eq!(gate.take(&mut room), Ok(7));
        assert_eq!(gate.claim(b"0\r\n\r\nNEXT"), Ok(5));
        assert_eq!(gate.allowed(), 0);
        gate.keep(b"MORE");
        gate.open();
        assert_eq!(gate.take(&mut room), Ok(8));
        assert_eq!(&room[..8], b"NEXTMORE");

        gate.keep(b"SECOND");
        gate.allow_chunks(BytesMut::from(&b"0\r\n\r\nFIRST"[..]));
        assert_eq!(gate.take(&mut room), Ok(5));
        gate.open();
        assert_eq!(gate.take(&mut room), Ok(11));
        assert_eq!(&room[..11], b"FIRSTSECOND");

        gate.allow_chunks(BytesMut::from(&b"2 \r\n"[..]));
        assert_eq!(gate.take(&mut room), Err(ChunkFault));
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
