//! Reads one HTTP/1 request head within its bounds of time and size.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fechatter_core::problem::Code;
use pingora::http::RequestHeader;
use pingora::time::timeout;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::answer::Refusal;
use crate::framing::{self, Following, FramingFault, HeadLimits};
use crate::request_head;

/// First room for a head; most fit.
const ROOM: usize = 2 * 1_024;

/// Bounds of reading.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until the first byte.
    pub idle: Duration,
    /// From the first byte to the last.
    pub head: Duration,
}

/// A head that may be served.
#[derive(Debug)]
pub struct Head {
    /// The head, its final empty line included.
    pub bytes: Bytes,
    pub request: RequestHeader,
    pub following: Following,
    /// What was read with it.
    pub rest: BytesMut,
}

/// Why there is no head.
#[derive(Debug)]
pub enum NoHead {
    /// Nothing was sent: the client closed, or stayed silent too long.
    Quiet,
    /// What was sent must not be parsed.
    Refused(Refusal),
}

impl From<FramingFault> for Refusal {
    fn from(fault: FramingFault) -> Self {
        Self::new(fault.code(), fault.as_str(), fault.detail())
    }
}

impl From<FramingFault> for NoHead {
    fn from(fault: FramingFault) -> Self {
        Self::Refused(fault.into())
    }
}

/// Reads until a whole, unambiguous head is there, of which `buffer` holds what came with the request before it.
pub async fn read<R: AsyncRead + Unpin>(
    reader: &mut R,
    mut buffer: BytesMut,
    patience: Patience,
    limits: &HeadLimits,
) -> Result<Head, NoHead> {
    if buffer.is_empty() {
        buffer.reserve(ROOM);
        // Pingora's timer: tokio's wakes the kernel's poll for every request whose deadline is the nearest, and has to be
        // taken out of its wheel again.
        match timeout(patience.idle, reader.read_buf(&mut buffer)).await {
            Ok(Ok(1..)) => {}
            _ => return Err(NoHead::Quiet),
        }
    }
    let end = match framing::find_end(&buffer, 0, limits)? {
        Some(end) => end,
        None => timeout(patience.head, read_rest(reader, &mut buffer, limits))
            .await
            .unwrap_or_else(|_| {
                Err(NoHead::Refused(Refusal::new(
                    Code::RequestTimeout,
                    "head_timeout",
                    "The request head took too long.",
                )))
            })?,
    };
    // Most of what was read into has room for more, and fields share the memory of their head for as long as they live.
    let bytes = Bytes::copy_from_slice(&buffer[..end]);
    let (request, following) = request_head::read(&bytes, limits)?;
    Ok(Head {
        bytes,
        request,
        following,
        rest: BytesMut::from(&buffer[end..]),
    })
}

async fn read_rest<R: AsyncRead + Unpin>(
    reader: &mut R,
    buffer: &mut BytesMut,
    limits: &HeadLimits,
) -> Result<usize, NoHead> {
    loop {
        let seen = buffer.len();
        buffer.reserve(ROOM);
        match reader.read_buf(buffer).await {
            Ok(1..) => {}
            _ => return Err(NoHead::Quiet),
        }
        if let Some(end) = framing::find_end(buffer, seen, limits)? {
            return Ok(end);
        }
    }
}
