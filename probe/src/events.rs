//! The live stream, read event by event.

use reqwest::{Method, Response};
use serde_json::Value;

use crate::client::{Client, Fault};

/// Longer than any event: a message has at most some ten thousand bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// An open stream.
#[derive(Debug)]
pub struct Events {
    response: Response,
    unread: Vec<u8>,
}

/// One event.
#[derive(Debug, PartialEq)]
pub struct Event {
    pub kind: String,
    pub data: Value,
}

impl Events {
    /// Opens the stream; its head is there, its first event may not be.
    pub async fn open(client: &Client, token: &str) -> Result<Self, Fault> {
        let response = client.open(Method::GET, "/events", Some(token), None).await?;
        Ok(Self {
            response,
            unread: Vec::new(),
        })
    }

    /// The next event that `wanted` accepts; others are passed over.
    pub async fn find(&mut self, wanted: impl Fn(&Event) -> bool) -> Result<Event, Fault> {
        loop {
            while let Some(frame) = next_frame(&mut self.unread) {
                if let Some(event) = parse(&frame).filter(&wanted) {
                    return Ok(event);
                }
            }
            if self.unread.len() > EVENT_BYTES_MAX {
                return Err(Fault::new("the stream holds an event without an end"));
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.unread.extend_from_slice(&bytes),
                Ok(None) => return Err(Fault::new("the stream ended")),
                Err(error) => return Err(Fault::new(format!("the stream broke off: {error}"))),
            }
        }
    }
}

/// Takes what is before the first empty line out of the bytes.
fn next_frame(unread: &mut Vec<u8>) -> Option<String> {
    let end = unread.windows(2).position(|pair| pair == b"\n\n")?;
    let frame: Vec<u8> = unread.drain(..end + 2).collect();
    Some(String::from_utf8_lossy(&frame).into_owned())
}

/// An event; `None` for a comment, such as a heartbeat.
fn parse(frame: &str) -> Option<Event> {
    let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(Event {
        kind: field("event:")?.to_owned(),
        data: field("data:")
            .and_then(|data| serde_json::from_str(data).ok())
            .unwrap_or(Value::Null),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text =
            "event: ready\n\n: alive\n\nevent: message.created\nid: e.1\ndata: {\"message\":{\"id\":7}}\n\nevent: rea";
        let (mut unread, mut kinds) = (Vec::new(), Vec::new());
        for byte in text.bytes() {
            unread.push(byte);
            while let Some(frame) = next_frame(&mut unread) {
                kinds.extend(parse(&frame));
            }
        }
        assert_eq!(kinds.len(), 2, "{kinds:?}");
        assert_eq!(kinds[0].kind, "ready");
        assert_eq!(kinds[1].data, json!({"message": {"id": 7}}));
        assert_eq!(unread, b"event: rea");
    }
}
