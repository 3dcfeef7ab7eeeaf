//! HTTP/2 frames of our choice over TLS.

use std::time::Duration;

use super::Gateway;
use super::raw::{Raw, trusting};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame as it arrived.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a `RST_STREAM` or `GOAWAY`.
    pub fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literal fields, which leave no state behind.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// The header block of a request with these fields besides.
pub fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut all = vec![
        (":method", method),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
    ];
    all.extend_from_slice(fields);
    block(&all)
}

/// One connection, preface and empty settings sent.
pub struct Http2 {
    pub raw: Raw,
    buffer: Vec<u8>,
}

impl Http2 {
    pub async fn connect(gateway: &Gateway) -> Self {
        let mut http2 = Self::silent(gateway).await;
        http2.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        http2.send(&frame(SETTINGS, 0, 0, &[])).await;
        http2
    }

    /// One that has said nothing yet.
    pub async fn silent(gateway: &Gateway) -> Self {
        let raw = Raw::connect_with(gateway, trusting(gateway, &[b"h2"])).await.unwrap();
        Self {
            raw,
            buffer: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.raw.send(bytes).await;
    }

    /// Sends without waiting for room for longer than `patience`; returns whether the gateway still takes it.
    pub async fn flood(&mut self, bytes: &[u8], patience: Duration) -> bool {
        let sending = async {
            self.raw.stream.write_all(bytes).await?;
            self.raw.stream.flush().await
        };
        matches!(tokio::time::timeout(patience, sending).await, Ok(Ok(())))
    }

    /// The next frame; none once the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 9 {
                let length = u32::from_be_bytes([0, self.buffer[0], self.buffer[1], self.buffer[2]]) as usize;
                if self.buffer.len() >= 9 + length {
                    let bytes: Vec<u8> = self.buffer.drain(..9 + length).collect();
                    return Some(Frame {
                        kind: bytes[3],
                        flags: bytes[4],
                        stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()),
                        payload: bytes[9..].to_vec(),
                    });
                }
            }
            let mut chunk = vec![0; 16_384];
            let read = tokio::time::timeout(Duration::from_secs(20), self.raw.stream.read(&mut chunk)).await;
            match read.expect("the gateway neither sends nor closes for 20 s") {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// The next frame that `wanted` accepts; none once the connection has ended.
    pub async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }
}
