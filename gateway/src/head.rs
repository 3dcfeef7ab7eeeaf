//! Reads one HTTP/1 request head within its bounds of time and size.

use std::time::Duration;

use bytes::BytesMut;
use fechatter_core::problem::Code;
use pingora::time::timeout;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::answer::Refusal;
use crate::framing::{self, Following, FramingFault, HeadLimits};

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

/// A head that may be parsed.
#[derive(Debug)]
pub struct Head {
    /// The head, its final empty line included.
    pub bytes: BytesMut,
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

impl From<FramingFault> for NoHead {
    fn from(fault: FramingFault) -> Self {
        Self::Refused(Refusal::new(fault.code(), fault.as_str(), fault.detail()))
    }
}

/// Reads until a whole, unambiguous head is there.
pub async fn read<R: AsyncRead + Unpin>(
    reader: &mut R,
    patience: Patience,
    limits: &HeadLimits,
) -> Result<Head, NoHead> {
    let mut buffer = BytesMut::with_capacity(ROOM);
    // Pingora's timer: tokio's wakes the kernel's poll for every request whose deadline is the nearest, and has to be
    // taken out of its wheel again.
    match timeout(patience.idle, reader.read_buf(&mut buffer)).await {
        Ok(Ok(1..)) => {}
        _ => return Err(NoHead::Quiet),
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
    let following = framing::check(&buffer[..end], limits)?;
    let rest = buffer.split_off(end);
    Ok(Head {
        bytes: buffer,
        following,
        rest,
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
