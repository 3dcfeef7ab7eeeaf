//! Where a chunked body ends, byte by byte, and what it carries; requests are followed before a parser that forgives reads them.
//!
//! Whatever a proxy in front of us could read differently (line feeds within extensions, spaces around sizes, fields behind the last
//! chunk that speak of the body) is a fault. What comes after the body is not the body's, so it waits for its own check.

use bytes::{Buf, BytesMut};

use crate::framing;

/// Hexadecimal digits of a size.
const DIGITS_MAX: usize = 16;
/// Bytes of extensions and trailers of one body: nobody reads them.
const OVERHEAD_MAX: usize = 8 * 1_024;

/// The body is not chunked as RFC 9112 section 7.1 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chunked framing of the body is broken")]
pub struct ChunkFault;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { digits: usize },
    Extension,
    SizeEnd,
    Data,
    DataEnd,
    DataEndFeed,
    Trailer,
    Ended,
}

/// Follows one body.
#[derive(Debug)]
pub struct Chunks {
    state: State,
    /// Of the chunk under way, what is to come of it.
    left: u64,
    overhead: usize,
    /// A field behind the last chunk, as far as it is there.
    field: Vec<u8>,
}

impl Default for Chunks {
    fn default() -> Self {
        Self {
            state: State::Size { digits: 0 },
            left: 0,
            overhead: 0,
            field: Vec::new(),
        }
    }
}

impl Chunks {
    /// Takes the next bytes out of `bytes` and what they carry to `data`; returns whether the body ends among them. What comes
    /// behind it stays in `bytes`.
    pub fn unwrap(&mut self, bytes: &mut BytesMut, data: &mut BytesMut) -> Result<bool, ChunkFault> {
        while self.state != State::Ended && bytes.has_remaining() {
            if self.state == State::Data {
                let part = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                data.extend_from_slice(&bytes.split_to(part));
                self.left -= part as u64;
                if self.left == 0 {
                    self.state = State::DataEnd;
                }
                continue;
            }
            self.state = self.next(bytes[0])?;
            bytes.advance(1);
        }
        Ok(self.state == State::Ended)
    }

    fn next(&mut self, byte: u8) -> Result<State, ChunkFault> {
        match (self.state, byte) {
            (State::Size { digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < DIGITS_MAX => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                Ok(State::Size { digits: digits + 1 })
            }
            (State::Size { digits: 1.. } | State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Size { digits: 1.. }, b';') | (State::Extension, b'\t' | 0x20..=0x7e | 0x80..) => {
                self.charge(State::Extension)
            }
            (State::SizeEnd, b'\n') if self.left == 0 => Ok(State::Trailer),
            (State::SizeEnd, b'\n') => Ok(State::Data),
            (State::DataEnd, b'\r') => Ok(State::DataEndFeed),
            (State::DataEndFeed, b'\n') => Ok(State::Size { digits: 0 }),
            (State::Trailer, byte) => self.trailer(byte),
            _ => Err(ChunkFault),
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<State, ChunkFault> {
        if byte != b'\n' {
            self.field.push(byte);
            return self.charge(State::Trailer);
        }
        let line = self.field.strip_suffix(b"\r").ok_or(ChunkFault)?;
        if line.is_empty() {
            return Ok(State::Ended);
        }
        if !framing::is_trailer(line) {
            return Err(ChunkFault);
        }
        self.field.clear();
        Ok(State::Trailer)
    }

    /// Counts a byte that carries nothing.
    fn charge(&mut self, state: State) -> Result<State, ChunkFault> {
        self.overhead += 1;
        if self.overhead > OVERHEAD_MAX {
            return Err(ChunkFault);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these bytes are the body's, when it ends among them.
    fn end_of(chunks: &mut Chunks, bytes: &[u8]) -> Result<Option<usize>, ChunkFault> {
        let mut rest = BytesMut::from(bytes);
        let ended = chunks.unwrap(&mut rest, &mut BytesMut::new())?;
        Ok(ended.then_some(bytes.len() - rest.len()))
    }

    /// The verdict for the whole at once, which must be that for any cut of it.
    fn end(bytes: &[u8]) -> Result<Option<usize>, ChunkFault> {
        let whole = end_of(&mut Chunks::default(), bytes);
        for cut in 0..=bytes.len() {
            let mut chunks = Chunks::default();
            let parts = end_of(&mut chunks, &bytes[..cut]).and_then(|first| match first {
                Some(end) => Ok(Some(end)),
                None => Ok(end_of(&mut chunks, &bytes[cut..])?.map(|end| cut + end)),
            });
            assert_eq!(parts, whole, "{:?} cut at {cut}", String::from_utf8_lossy(bytes));
        }
        whole
    }

    #[test]
    fn a_body_ends_where_its_last_chunk_says() {
        for (body, after) in [
            ("0\r\n\r\n", ""),
            ("2\r\n{}\r\n0\r\n\r\n", "GET / HTTP/1.1\r\n"),
            ("A\r\n0123456789\r\n00\r\n\r\n", "x"),
            ("2;name=value; other=\"quoted\"\r\n{}\r\n0;last\r\n\r\n", "0\r\n\r\n"),
            ("1\r\n\n\r\n0\r\nX-Checksum: abc\r\nY:\r\n\r\n", "\r\n"),
        ] {
            assert_eq!(
                end(format!("{body}{after}").as_bytes()),
                Ok(Some(body.len())),
                "{body:?}"
            );
        }
        assert_eq!(end(b"5\r\nabc"), Ok(None));
        assert_eq!(end(b""), Ok(None));
    }

    #[test]
    fn what_a_body_carries_is_taken_out_however_it_arrives() {
        let wire = b"2;x=y\r\nab\r\nA\r\n0123456789\r\n0\r\nX-Checksum: abc\r\n\r\nNEXT";
        for cut in 0..=wire.len() {
            let (mut chunks, mut data) = (Chunks::default(), BytesMut::new());
            let mut bytes = BytesMut::from(&wire[..cut]);
            let mut ended = chunks.unwrap(&mut bytes, &mut data).unwrap();
            assert_eq!(ended, cut >= wire.len() - 4, "cut at {cut}");
            bytes.extend_from_slice(&wire[cut..]);
            ended |= chunks.unwrap(&mut bytes, &mut data).unwrap();
            assert_eq!(
                (ended, &data[..], &bytes[..]),
                (true, &b"ab0123456789"[..], &b"NEXT"[..]),
                "cut at {cut}"
            );
        }
        let mut bytes = BytesMut::from(&b"2\r\nabXX"[..]);
        assert_eq!(
            Chunks::default().unwrap(&mut bytes, &mut BytesMut::new()),
            Err(ChunkFault)
        );
    }

    #[test]
    fn whatever_could_be_read_otherwise_is_a_fault() {
        for body in [
            "\r\n",
            ";x\r\n",
            " 2\r\n{}\r\n0\r\n\r\n",
            "2 \r\n{}\r\n0\r\n\r\n",
            "2\t;x\r\n{}\r\n0\r\n\r\n",
            "0x2\r\n{}\r\n0\r\n\r\n",
            "+2\r\n{}\r\n",
            "-1\r\n",
            "2\n{}\r\n0\r\n\r\n",
            "2\r{}\r\n0\r\n\r\n",
            "2;a\n\r\n{}\r\n0\r\n\r\n",
            "2;a\nxx\r\n{}\r\n0\r\n\r\n",
            "2;a\0b\r\n{}\r\n0\r\n\r\n",
            "2;a\rb\r\n{}\r\n0\r\n\r\n",
            "2\r\n{}\n0\r\n\r\n",
            "2\r\n{}0\r\n\r\n",
            "2\r\n{}XX\r\n0\r\n\r\n",
            "2\r\n{}\r\n\r\n",
            "00000000000000002\r\n{}\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\r\n\r\r\n",
            "0\r\nX: a\n\r\n",
            "0\r\nX: a\r\n b\r\n\r\n",
            "0\r\nX : a\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n: no name\r\n\r\n",
            "0\r\nX: a\0b\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\ntransfer-encoding: chunked\r\n\r\n",
            "0\r\nHost: other\r\n\r\n",
            "0\r\nAuthorization: Bearer x\r\n\r\n",
        ] {
            assert_eq!(end(body.as_bytes()), Err(ChunkFault), "{body:?}");
        }
    }

    #[test]
    fn what_carries_nothing_is_bounded() {
        let long = "x".repeat(OVERHEAD_MAX);
        assert!(end_of(&mut Chunks::default(), format!("2;{long}\r\n").as_bytes()).is_err());
        assert!(end_of(&mut Chunks::default(), format!("0\r\nX: {long}\r\n").as_bytes()).is_err());
        let many = "1;extension\r\nx\r\n".repeat(1_000);
        assert!(end_of(&mut Chunks::default(), many.as_bytes()).is_err());
    }
}
