//! An event as this process holds it: who it concerns, and the finished SSE frame that all its receivers share.

use std::fmt::Write as _;

use bytes::Bytes;
use fechatter_core::chat::ChatKind;
use fechatter_core::events::{
    ChatEvent, Event, EventType, HEADER_EPOCH, HEADER_POSITION, HEADER_SHARD, MemberEvent, MessageEvent, ReadEvent,
    SessionRevokedEvent, UnreadableEvent, UserEvent,
};
use fechatter_core::{ChatId, UserId, WorkspaceId};
use observability::propagation::span_context_from_traceparent;
use opentelemetry::trace::SpanContext;
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::cursor::Cursor;

/// Whom an event concerns and what it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Everybody in the chat.
    Chat(ChatId),
    ChatCreated {
        chat: ChatId,
        version: i64,
        members: Box<[UserId]>,
    },
    ChatDeleted(ChatId),
    MemberAdded {
        chat: ChatId,
        version: i64,
        user: UserId,
    },
    MemberRemoved {
        chat: ChatId,
        version: i64,
        user: UserId,
    },
    /// The reader's devices; `shared` with everybody in the chat.
    Read {
        chat: ChatId,
        reader: UserId,
        shared: bool,
    },
    /// Everybody in the workspace.
    User {
        workspace: WorkspaceId,
        user: UserId,
        deactivated: bool,
    },
    /// Nobody; ends streams.
    SessionRevoked {
        session: Uuid,
        user: UserId,
    },
    /// One connection; never in the ring.
    Control,
}

impl Route {
    /// The chat whose members alone may see the event.
    pub const fn chat(&self) -> Option<ChatId> {
        match self {
            Self::Chat(chat)
            | Self::ChatDeleted(chat)
            | Self::ChatCreated { chat, .. }
            | Self::MemberAdded { chat, .. }
            | Self::MemberRemoved { chat, .. }
            | Self::Read { chat, .. } => Some(*chat),
            Self::User { .. } | Self::SessionRevoked { .. } | Self::Control => None,
        }
    }
}

/// An event, encoded once.
#[derive(Debug)]
pub struct Entry {
    pub sequence: u64,
    pub route: Route,
    /// The whole SSE frame.
    pub frame: Bytes,
    /// When it happened, by the database's clock.
    pub time: OffsetDateTime,
    /// The request that caused it, where that is being recorded.
    pub context: Option<SpanContext>,
}

/// Memory of an entry beside its frame, about.
const ENTRY_BYTES: usize = size_of::<Entry>() + 48;

impl Entry {
    /// Memory that keeping this entry takes, about.
    pub fn weight(&self) -> usize {
        let members = match &self.route {
            Route::ChatCreated { members, .. } => members.len() * size_of::<UserId>(),
            _ => 0,
        };
        ENTRY_BYTES + members + self.frame.len()
    }

    /// A control event: `ready`, `resumed`, `gap`, `caught_up`, `reauth`.
    pub fn control(name: &str, data: &serde_json::Value, id: Option<Cursor>) -> Self {
        Self {
            sequence: 0,
            route: Route::Control,
            frame: frame(id, name, &data.to_string()),
            time: OffsetDateTime::UNIX_EPOCH,
            context: None,
        }
    }

    /// The first event of a stream without a cursor.
    pub fn ready(at: Cursor) -> Self {
        Self::control("ready", &json!({}), Some(at))
    }

    /// The first event of a stream that goes on where the client was; the cursor stays the client's own, so that a
    /// connection that breaks before the backlog loses none of it.
    pub fn resumed(count: usize, cursor: Cursor) -> Self {
        Self::control("resumed", &json!({"count": count}), Some(cursor))
    }

    /// Tells the client to reload by the API.
    pub fn gap(reason: &str, at: Cursor) -> Self {
        Self::control("gap", &json!({"reason": reason}), Some(at))
    }

    /// The backlog is over.
    pub fn caught_up(at: Cursor) -> Self {
        Self::control("caught_up", &json!({}), Some(at))
    }

    /// The stream ends because its token does; the client's cursor stays.
    pub fn reauth(reason: &str) -> Self {
        Self::control("reauth", &json!({"reason": reason}), None)
    }
}

/// Where an event stands: what its headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    pub epoch: Uuid,
    pub shard: i16,
    pub position: i64,
}

impl Headers {
    /// Reads the relay's headers.
    pub fn of(headers: &async_nats::HeaderMap) -> Result<Self, UnreadableEvent> {
        fn read<T: std::str::FromStr>(headers: &async_nats::HeaderMap, name: &str) -> Result<T, UnreadableEvent> {
            headers
                .get(name)
                .and_then(|value| value.as_str().parse().ok())
                .ok_or_else(|| UnreadableEvent::Malformed(format!("no valid header {name}")))
        }
        Ok(Self {
            epoch: read(headers, HEADER_EPOCH)?,
            shard: read(headers, HEADER_SHARD)?,
            position: read(headers, HEADER_POSITION)?,
        })
    }
}

/// Reads a stored event and encodes it for its receivers.
pub fn decode(at: Cursor, headers: &async_nats::HeaderMap, body: &[u8]) -> Result<Entry, UnreadableEvent> {
    let (event_type, event) = Event::parse(body)?;
    let route = route(event_type, &event)?;
    let context = headers
        .get("traceparent")
        .and_then(|value| span_context_from_traceparent(value.as_str()))
        .filter(SpanContext::is_sampled);
    Ok(Entry {
        sequence: at.sequence,
        route,
        frame: frame(Some(at), event_type.as_str(), event.data.get()),
        time: event.time,
        context,
    })
}

/// Whether an event of ours that cannot be read may have changed who is in which chat, by its subject. A type that is
/// not known may.
pub fn may_move_members(subject: &str) -> bool {
    let event_type = subject.splitn(5, '.').nth(4).and_then(|name| name.parse().ok());
    !matches!(
        event_type,
        Some(
            EventType::MessageCreated
                | EventType::MessageUpdated
                | EventType::MessageDeleted
                | EventType::ChatUpdated
                | EventType::ReadUpdated
                | EventType::SessionRevoked
        )
    )
}

/// Whose sessions an event of ours concerns, by its subject.
pub fn owner_of_sessions(subject: &str) -> Option<UserId> {
    let mut tokens = subject.split('.').skip(2);
    if tokens.next() != Some("session") {
        return None;
    }
    tokens.next()?.parse().ok().map(UserId)
}

fn route(event_type: EventType, event: &Event) -> Result<Route, UnreadableEvent> {
    Ok(match event_type {
        EventType::MessageCreated | EventType::MessageUpdated | EventType::MessageDeleted => {
            Route::Chat(event.payload::<MessageEvent>()?.chat.id)
        }
        EventType::ChatCreated => {
            let data: ChatEvent = event.payload()?;
            Route::ChatCreated {
                chat: data.chat.id,
                version: data.membership_version,
                members: data.member_ids.into(),
            }
        }
        EventType::ChatUpdated => Route::Chat(event.payload::<ChatEvent>()?.chat.id),
        EventType::ChatDeleted => Route::ChatDeleted(event.payload::<ChatEvent>()?.chat.id),
        EventType::MemberAdded => {
            let data: MemberEvent = event.payload()?;
            Route::MemberAdded {
                chat: data.chat.id,
                version: data.membership_version,
                user: data.member.user_id,
            }
        }
        EventType::MemberRemoved => {
            let data: MemberEvent = event.payload()?;
            Route::MemberRemoved {
                chat: data.chat.id,
                version: data.membership_version,
                user: data.member.user_id,
            }
        }
        EventType::ReadUpdated => {
            let data: ReadEvent = event.payload()?;
            Route::Read {
                chat: data.chat_id,
                reader: data.user_id,
                shared: matches!(data.kind, ChatKind::Single | ChatKind::Group),
            }
        }
        EventType::UserUpdated => {
            let data: UserEvent = event.payload()?;
            Route::User {
                workspace: event.workspaceid,
                user: data.user.id,
                deactivated: data.deactivated,
            }
        }
        EventType::SessionRevoked => {
            let data: SessionRevokedEvent = event.payload()?;
            Route::SessionRevoked {
                session: data.session_id,
                user: data.user_id,
            }
        }
    })
}

/// An SSE frame. `data` is JSON, in which line breaks are mere space.
pub fn frame(id: Option<Cursor>, name: &str, data: &str) -> Bytes {
    let mut text = String::with_capacity(data.len() + 96);
    if let Some(id) = id {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "id: {id}");
    }
    text.push_str("event: ");
    text.push_str(name);
    text.push_str("\ndata: ");
    if data.contains(['\n', '\r']) {
        text.extend(data.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
    } else {
        text.push_str(data);
    }
    text.push_str("\n\n");
    text.into()
}

/// A heartbeat: a comment, and the id alone, which moves the client's cursor past what did not concern it without
/// being an event.
pub fn heartbeat(at: Option<Cursor>) -> Bytes {
    match at {
        Some(at) => format!(":\nid: {at}\n\n").into(),
        None => Bytes::from_static(b":\n\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fechatter_core::chat::ChatKind;
    use fechatter_core::wire::{ChatRef, MessageView};
    use time::macros::datetime;

    fn message(content: &str) -> Event<MessageEvent> {
        let time = datetime!(2026-11-23 10:00:00 UTC);
        Event::new(
            EventType::MessageCreated,
            WorkspaceId(7),
            12,
            time,
            MessageEvent {
                message: MessageView {
                    id: 99.into(),
                    chat_id: 12.into(),
                    seq: 3,
                    sender_id: 5.into(),
                    content: Some(content.to_owned()),
                    created_at: time,
                    edited_at: None,
                    deleted_at: None,
                },
                version: 1,
                chat: ChatRef {
                    id: 12.into(),
                    name: None,
                    kind: ChatKind::Group,
                },
            },
        )
    }

    #[test]
    fn a_message_becomes_a_frame_with_id_type_and_one_line_of_data() {
        let at = Cursor {
            epoch: Uuid::nil(),
            sequence: 8,
        };
        let body = serde_json::to_vec_pretty(&message("two\nlines")).unwrap();
        let entry = decode(at, &async_nats::HeaderMap::new(), &body).unwrap();
        assert_eq!(entry.route, Route::Chat(ChatId(12)));
        let text = std::str::from_utf8(&entry.frame).unwrap();
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[0], "id: 00000000000000000000000000000000.8");
        assert_eq!(lines[1], "event: message.created");
        let data: MessageEvent = serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data.message.content.as_deref(), Some("two\nlines"));
    }

    #[test]
    fn the_subject_tells_whether_members_may_have_moved() {
        for (event_type, may) in [
            (EventType::MessageCreated, false),
            (EventType::ReadUpdated, false),
            (EventType::MemberRemoved, true),
            (EventType::ChatDeleted, true),
            (EventType::UserUpdated, true),
        ] {
            let subject = event_type.subject(WorkspaceId(7), 12);
            assert_eq!(may_move_members(&subject), may, "{subject}");
        }
        assert!(may_move_members("fechatter.7.chat.12.member.promoted"));
        assert!(may_move_members("fechatter.7"));
    }

    #[test]
    fn the_subject_tells_whose_sessions_are_concerned() {
        let of = |event_type: EventType| owner_of_sessions(&event_type.subject(WorkspaceId(7), 12));
        assert_eq!(of(EventType::SessionRevoked), Some(UserId(12)));
        assert_eq!(of(EventType::UserUpdated), None);
        assert_eq!(of(EventType::MessageCreated), None);
        assert_eq!(owner_of_sessions("fechatter.7.session.x.session.revoked"), None);
    }

    #[test]
    fn headers_are_read_strictly() {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(HEADER_EPOCH, Uuid::nil().to_string());
        headers.insert(HEADER_SHARD, "3");
        assert!(Headers::of(&headers).unwrap_err().to_string().contains(HEADER_POSITION));
        headers.insert(HEADER_POSITION, "17");
        assert_eq!(
            Headers::of(&headers).unwrap(),
            Headers {
                epoch: Uuid::nil(),
                shard: 3,
                position: 17
            }
        );
    }

    #[test]
    fn only_sampled_contexts_are_kept() {
        let at = Cursor {
            epoch: Uuid::nil(),
            sequence: 1,
        };
        let body = serde_json::to_vec(&message("x")).unwrap();
        for (flags, kept) in [("00", false), ("01", true)] {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(
                "traceparent",
                format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"),
            );
            assert_eq!(decode(at, &headers, &body).unwrap().context.is_some(), kept);
        }
    }
}
