//! Clients that look at a live stream of events.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use memchr::memmem;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::client::{Address, Call, Connection, Exit, Leave};
use crate::outcome::Fault;

/// Streams that are opened at the same time.
const OPENING: usize = 64;
/// Connections of one source address, well below the local ports it has.
const PER_SOURCE: usize = 20_000;

/// One frame of a stream.
#[derive(Debug)]
pub struct Frame<'a> {
    pub kind: &'a [u8],
    pub id: &'a [u8],
    pub data: &'a [u8],
}

/// Is told of every frame of every screen, when it was received.
pub trait Watch: Send + Sync + 'static {
    fn frame(&self, screen: usize, frame: &Frame<'_>, at: Instant);
    /// The stream of a screen ended without being asked to.
    fn ended(&self, _screen: usize) {}
}

/// A stream to be opened.
#[derive(Debug, Clone)]
pub struct Screen {
    pub number: usize,
    pub token: Arc<str>,
    /// The last event's id, of one that comes back.
    pub cursor: Option<String>,
}

/// Open streams.
#[derive(Debug)]
pub struct Screens {
    readers: Vec<(AbortHandle, Exit)>,
    ended: Arc<AtomicU64>,
}

/// What a server says first on a stream that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// An event: ours says `ready`, `resumed` or `gap`.
    Event,
    /// A comment.
    Comment,
}

impl Screens {
    /// Opens streams of ours, each on a connection of its own, and waits until each has had its first event.
    pub async fn open(
        address: &Address,
        path: &str,
        screens: Vec<Screen>,
        watch: Arc<dyn Watch>,
    ) -> anyhow::Result<Self> {
        Self::open_after(First::Event, address, path, screens, watch).await
    }

    /// Opens streams, each on a connection of its own, and waits until the server has said the first thing on each.
    pub async fn open_after(
        first: First,
        address: &Address,
        path: &str,
        screens: Vec<Screen>,
        watch: Arc<dyn Watch>,
    ) -> anyhow::Result<Self> {
        let permits = Arc::new(Semaphore::new(OPENING));
        let ended = Arc::new(AtomicU64::new(0));
        let mut opening = JoinSet::new();
        let path: Arc<str> = path.into();
        for screen in screens {
            let (permits, address, watch, path) = (
                Arc::clone(&permits),
                address.clone(),
                Arc::clone(&watch),
                Arc::clone(&path),
            );
            let ended = Arc::clone(&ended);
            opening.spawn(async move {
                let permit = permits.acquire_owned().await;
                let opened = open(first, &address, &path, &screen, &watch).await;
                drop(permit);
                let mut stream = opened.map_err(|fault| (screen.number, fault))?;
                let exit = stream.connection.exit();
                let reader = tokio::spawn(async move {
                    stream.read(&*watch).await;
                    ended.fetch_add(1, Ordering::Relaxed);
                    watch.ended(screen.number);
                });
                Ok::<_, (usize, Fault)>((reader.abort_handle(), exit))
            });
        }
        let mut all = Self {
            readers: Vec::with_capacity(opening.len()),
            ended,
        };
        let wanted = opening.len();
        while let Some(opened) = opening.join_next().await {
            match opened.context("a task failed")? {
                Ok(reader) => all.readers.push(reader),
                Err((number, fault)) => {
                    let done = all.readers.len();
                    all.close();
                    bail!(
                        "stream {number} did not open ({fault:?}) after {done} of {wanted}: {}; is a limit of descriptors, \
                         of streams (stream.max_streams) or of connections (limits.connections) reached?",
                        fault.advice()
                    );
                }
            }
        }
        Ok(all)
    }

    /// Streams that ended by themselves.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Closes all at once, without a word on the stream.
    pub fn close(&mut self) {
        self.leave(Leave::Close);
    }

    /// Leaves all at once; returns how many could not be left in this way and were closed.
    pub fn leave(&mut self, how: Leave) -> usize {
        let mut closed = 0;
        for (reader, exit) in self.readers.drain(..) {
            closed += usize::from(!exit.leave(how));
            reader.abort();
        }
        closed
    }
}

impl Drop for Screens {
    fn drop(&mut self) {
        self.close();
    }
}

struct Stream {
    number: usize,
    body: Incoming,
    buffer: BytesMut,
    // Held: the connection lives as long as it.
    connection: Connection,
}

async fn open(
    first: First,
    address: &Address,
    path: &str,
    screen: &Screen,
    watch: &Arc<dyn Watch>,
) -> Result<Stream, Fault> {
    let source = u8::try_from(screen.number / PER_SOURCE)
        .ok()
        .filter(|group| *group > 0 && address.socket.ip().is_loopback())
        .map(|group| Ipv4Addr::new(127, 0, 1, group));
    let mut connection = address.connect_from(source).await?;
    let mut call = Call::get(path, &screen.token);
    call.cursor = screen.cursor.as_deref();
    call.is_stream = true;
    let response = connection.begin(&call).await?;
    if let Some(fault) = Fault::of_status(response.status().as_u16()) {
        return Err(fault);
    }
    let mut stream = Stream {
        number: screen.number,
        body: response.into_body(),
        buffer: BytesMut::new(),
        connection,
    };
    let said = stream.step(&**watch, first);
    match tokio::time::timeout(std::time::Duration::from_secs(30), said).await {
        Ok(true) => Ok(stream),
        Ok(false) => Err(Fault::Closed),
        Err(_) => Err(Fault::Timeout),
    }
}

impl Stream {
    async fn read(mut self, watch: &dyn Watch) {
        while self.step(watch, First::Event).await {}
    }

    /// Reads until at least one whole event was seen, or whatever counts; false at the end.
    async fn step(&mut self, watch: &dyn Watch, counts: First) -> bool {
        loop {
            let Some(Ok(frame)) = self.body.frame().await else {
                return false;
            };
            let Ok(data) = frame.into_data() else { continue };
            let at = Instant::now();
            // Nearly always a chunk is whole frames; then nothing is copied.
            let whole: Bytes = if self.buffer.is_empty() {
                data
            } else {
                self.buffer.extend_from_slice(&data);
                self.buffer.split().freeze()
            };
            let mut rest = &whole[..];
            let mut seen = false;
            while let Some(end) = memmem::find(rest, b"\n\n") {
                let frame = parse(&rest[..end]);
                seen |= counts == First::Comment || !frame.kind.is_empty();
                watch.frame(self.number, &frame, at);
                rest = &rest[end + 2..];
            }
            self.buffer.extend_from_slice(rest);
            if seen {
                return true;
            }
        }
    }
}

/// The fields of a frame; those it lacks are empty.
pub fn parse(frame: &[u8]) -> Frame<'_> {
    let mut parsed = Frame {
        kind: b"",
        id: b"",
        data: b"",
    };
    for line in frame.split(|byte| *byte == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let value = line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]);
        match &line[..colon] {
            b"event" => parsed.kind = value,
            b"id" => parsed.id = value,
            b"data" => parsed.data = value,
            _ => {}
        }
    }
    parsed
}

/// What marks the content of our messages; a number follows.
const MARK: &[u8] = b"load-message ";

/// The content of a message that can be recognised on a screen.
pub fn content(number: u64) -> String {
    format!("load-message {number} the quick brown fox jumps over the lazy dog")
}

/// The number in an event's data.
pub fn number_in(data: &[u8]) -> Option<u64> {
    memmem::find(data, MARK).map(|at| number_at(data, at))
}

/// The numbers of all messages in an answer that holds several.
pub fn numbers_in(data: &[u8]) -> impl Iterator<Item = u64> {
    memmem::find_iter(data, MARK).map(|at| number_at(data, at))
}

/// The number after a mark.
fn number_at(data: &[u8], mark: usize) -> u64 {
    let digits = data[mark + MARK.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    digits.fold(0_u64, |number, digit| {
        number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart() {
        let frame = parse(b"retry: 1000\nid: 7.12\nevent: message.created\ndata: {\"a\":\"b: c\"}");
        assert_eq!(frame.kind, b"message.created");
        assert_eq!(frame.id, b"7.12");
        assert_eq!(frame.data, b"{\"a\":\"b: c\"}");
        assert_eq!(parse(b": comment").kind, b"");
    }

    #[test]
    fn a_message_is_recognised_by_its_content() {
        let data = format!("{{\"content\":\"{}\"}}", content(40_129));
        assert_eq!(number_in(data.as_bytes()), Some(40_129));
        assert_eq!(number_in(b"{\"content\":\"hello\"}"), None);
        let several = format!("[\"{}\",\"{}\"]", content(7), content(18));
        assert_eq!(numbers_in(several.as_bytes()).collect::<Vec<_>>(), [7, 18]);
    }
}
