//! Server-Sent Events on the wire, and the cursor that clients hand back.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;

/// A place in the stream: everything up to it has been seen. Opaque to clients: `epoch.sequence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The stream's history.
    pub epoch: Uuid,
    /// The stream's sequence.
    pub sequence: u64,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch.simple(), self.sequence)
    }
}

impl std::str::FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, sequence) = text.split_once('.').ok_or(NotACursor)?;
        // `u64::from_str` would take a sign.
        if !sequence.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NotACursor);
        }
        Ok(Self {
            epoch: Uuid::try_parse(epoch).map_err(|_| NotACursor)?,
            sequence: sequence.parse().map_err(|_| NotACursor)?,
        })
    }
}

/// The text is no cursor of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor")]
pub struct NotACursor;

/// Why a client cannot be brought up to date and has to reload by REST.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// The cursor is not one of ours.
    UnknownCursor,
    /// What followed the cursor is no longer kept.
    Expired,
    /// More followed than a stream may carry.
    TooMany,
    /// The event stream was rebuilt; cursors of its old history mean nothing.
    HistoryChanged,
    /// Events were lost on the way to this process.
    EventsLost,
}

impl GapReason {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownCursor => "unknown_cursor",
            Self::Expired => "expired",
            Self::TooMany => "too_many",
            Self::HistoryChanged => "history_changed",
            Self::EventsLost => "events_lost",
        }
    }
}

/// An event of the platform; `data` is JSON.
pub fn event(cursor: Cursor, name: &str, data: &str) -> Bytes {
    format!("id: {cursor}\nevent: {name}\ndata: {}\n\n", one_line(data)).into()
}

/// An event without a cursor, which a client that reconnects does not get again.
pub fn ephemeral(name: &str, data: &str) -> Bytes {
    format!("event: {name}\ndata: {}\n\n", one_line(data)).into()
}

/// Line breaks can only stand between tokens of JSON, where a space means the same.
fn one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) {
        json.replace(['\n', '\r'], " ").into()
    } else {
        json.into()
    }
}

/// First event of a stream without a cursor.
pub fn ready(cursor: Cursor) -> Bytes {
    event(cursor, "ready", "{}")
}

/// First event of a stream that goes on; it keeps the client's own cursor until the backlog moves it.
pub fn resumed(count: usize) -> Bytes {
    ephemeral("resumed", &json!({ "count": count }).to_string())
}

/// The backlog is over.
pub fn caught_up(cursor: Cursor) -> Bytes {
    event(cursor, "caught_up", "{}")
}

/// Events are missing: reload, then go on from here.
pub fn gap(cursor: Cursor, reason: GapReason) -> Bytes {
    event(cursor, "gap", &json!({ "reason": reason.as_str() }).to_string())
}

/// The stream ends; come back with a new access token.
pub fn reauth(reason: &str) -> Bytes {
    ephemeral("reauth", &json!({ "reason": reason }).to_string())
}

/// A comment, and the cursor of a client to whom nothing was sent for a while; `EventSource` dispatches nothing for it.
pub fn heartbeat(cursor: Cursor) -> Bytes {
    format!(":\nid: {cursor}\n\n").into()
}

/// How long a client waits before it reconnects.
pub fn retry(milliseconds: u64) -> String {
    format!("retry: {milliseconds}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> Cursor {
        Cursor {
            epoch: Uuid::from_u128(0xab),
            sequence: 7,
        }
    }

    #[test]
    fn cursors_round_trip_and_others_are_refused() {
        assert_eq!(cursor().to_string().parse(), Ok(cursor()));
        for text in [
            "",
            "7",
            ".",
            "x.7",
            "000000000000000000000000000000ab.+7",
            "000000000000000000000000000000ab.",
            "000000000000000000000000000000ab.99999999999999999999",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(NotACursor), "{text}");
        }
    }

    #[test]
    fn data_stays_on_one_line() {
        let frame = event(cursor(), "message.created", "{\n\"a\":\r\n1}");
        assert_eq!(
            frame,
            "id: 000000000000000000000000000000ab.7\nevent: message.created\ndata: { \"a\":  1}\n\n"
        );
    }
}
