//! The one contract between services: CloudEvents 1.0 in structured JSON, their payloads, NATS subjects and headers.
//!
//! Every state change appends an event to the outbox in its own transaction; the relay of chat_service publishes it to
//! the JetStream stream [`STREAM`]. Order holds per shard: a shard's events carry [`HEADER_POSITION`] 1, 2, 3 … without
//! a gap, so that a consumer drops what it has seen and notices what it has not.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::chat::ChatKind;
use crate::ids::{ChatId, UserId, WorkspaceId};
use crate::wire::{ChatRef, MemberView, MessageView, SharedChat, UserView};

/// Name of the JetStream stream.
pub const STREAM: &str = "FECHATTER_EVENTS";
/// Subjects of the stream: `fechatter.{workspace}.{scope}.{scope id}.{type}`.
pub const SUBJECTS: &str = "fechatter.>";
/// Prefix of what is never stored (typing, presence): `ephemeral.{workspace}.{…}`.
pub const EPHEMERAL_PREFIX: &str = "ephemeral";
/// Revoked sessions of every workspace, the only subject the gateway reads.
pub const SESSION_SUBJECTS: &str = "fechatter.*.session.>";
/// Key of the stream's metadata that holds its epoch, a UUID: another epoch means another history.
pub const METADATA_EPOCH: &str = "fechatter_epoch";

/// Deduplication id of JetStream: `{event id}.{epoch}`, both without hyphens. A purged stream still remembers the ids it
/// had, so that an event published again in a new history needs another. Consumers go by the CloudEvent's `id`.
pub const HEADER_MESSAGE_ID: &str = "Nats-Msg-Id";
/// Epoch of the history that the event was published in. A consumer drops an event of another epoch than the stream's
/// ([`METADATA_EPOCH`]), after asking the stream whether it has a new one: `docs/events.md` holds the whole contract.
pub const HEADER_EPOCH: &str = "Fct-Epoch";
/// Outbox shard of the event, `0..SHARDS`.
pub const HEADER_SHARD: &str = "Fct-Shard";
/// Gapless position of the event in its shard, from 1. A consumer drops what is not above the highest it has seen of this
/// shard in this epoch; there is never a hole above it.
pub const HEADER_POSITION: &str = "Fct-Position";

/// Number of outbox shards. Changing it needs a migration that drains the outbox first.
pub const SHARDS: i16 = 16;

/// The outbox shard of everything that must stay in order with `key` (a chat id, else a user id).
///
/// SQL computes the same as `(key % 16)::smallint`; keys are positive.
#[expect(clippy::cast_possible_truncation, reason = "the remainder is below 16")]
pub const fn shard_of(key: i64) -> i16 {
    (key % SHARDS as i64) as i16
}

/// Version of the payloads this code writes and the newest it can read.
pub const SCHEMA_VERSION: u32 = 1;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventType {
    #[serde(rename = "message.created")]
    MessageCreated,
    #[serde(rename = "message.updated")]
    MessageUpdated,
    #[serde(rename = "message.deleted")]
    MessageDeleted,
    #[serde(rename = "chat.created")]
    ChatCreated,
    #[serde(rename = "chat.updated")]
    ChatUpdated,
    #[serde(rename = "chat.deleted")]
    ChatDeleted,
    #[serde(rename = "member.added")]
    MemberAdded,
    #[serde(rename = "member.removed")]
    MemberRemoved,
    #[serde(rename = "read.updated")]
    ReadUpdated,
    #[serde(rename = "user.updated")]
    UserUpdated,
    #[serde(rename = "session.revoked")]
    SessionRevoked,
}

impl EventType {
    /// All stored types.
    pub const ALL: [Self; 11] = [
        Self::MessageCreated,
        Self::MessageUpdated,
        Self::MessageDeleted,
        Self::ChatCreated,
        Self::ChatUpdated,
        Self::ChatDeleted,
        Self::MemberAdded,
        Self::MemberRemoved,
        Self::ReadUpdated,
        Self::UserUpdated,
        Self::SessionRevoked,
    ];

    /// The CloudEvents `type`, also the SSE `event:` name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessageCreated => "message.created",
            Self::MessageUpdated => "message.updated",
            Self::MessageDeleted => "message.deleted",
            Self::ChatCreated => "chat.created",
            Self::ChatUpdated => "chat.updated",
            Self::ChatDeleted => "chat.deleted",
            Self::MemberAdded => "member.added",
            Self::MemberRemoved => "member.removed",
            Self::ReadUpdated => "read.updated",
            Self::UserUpdated => "user.updated",
            Self::SessionRevoked => "session.revoked",
        }
    }

    /// The scope token of the subject: what the event's order belongs to.
    pub const fn scope(self) -> &'static str {
        match self {
            Self::UserUpdated => "user",
            Self::SessionRevoked => "session",
            _ => "chat",
        }
    }

    /// The NATS subject; `scope_id` is the chat's id, or the user's for `user.*` and `session.*`.
    pub fn subject(self, workspace_id: WorkspaceId, scope_id: i64) -> String {
        format!("fechatter.{workspace_id}.{}.{scope_id}.{}", self.scope(), self.as_str())
    }

    /// `dataschema` of the payloads this code writes.
    pub fn schema(self) -> String {
        format!("urn:fechatter:event:{}:{SCHEMA_VERSION}", self.as_str())
    }
}

impl std::str::FromStr for EventType {
    type Err = UnreadableEvent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnreadableEvent::UnknownType(text.chars().take(64).collect()))
    }
}

/// A CloudEvent. `D` is the payload: raw while it is only carried, typed where it is read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event<D = Box<RawValue>> {
    /// Always `1.0`.
    pub specversion: String,
    /// UUIDv7; the deduplication id everywhere.
    pub id: Uuid,
    /// Always `/chat_service`.
    pub source: String,
    #[serde(rename = "type")]
    pub event_type: String,
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// `chat/{id}`, `user/{id}` or `session/{user id}`.
    pub subject: String,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// `urn:fechatter:event:{type}:{version}`.
    pub dataschema: String,
    /// The tenant (a CloudEvents extension attribute).
    pub workspaceid: WorkspaceId,
    pub data: D,
}

/// Why an event cannot be processed, now or by a retry: it goes to the dead letters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableEvent {
    #[error("not a CloudEvent in JSON: {0}")]
    Malformed(String),
    #[error("unknown event type {0:?}")]
    UnknownType(String),
    #[error("schema {0:?} is newer than this process can read")]
    FutureVersion(String),
}

impl<D> Event<D> {
    /// A new event of now with a fresh UUIDv7.
    pub fn new(event_type: EventType, workspace_id: WorkspaceId, scope_id: i64, time: OffsetDateTime, data: D) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id: Uuid::now_v7(),
            source: "/chat_service".to_owned(),
            event_type: event_type.as_str().to_owned(),
            time,
            subject: format!("{}/{scope_id}", event_type.scope()),
            datacontenttype: "application/json".to_owned(),
            dataschema: event_type.schema(),
            workspaceid: workspace_id,
            data,
        }
    }
}

impl Event {
    /// Parses an envelope and leaves the payload raw.
    pub fn parse(bytes: &[u8]) -> Result<(EventType, Self), UnreadableEvent> {
        let event: Self =
            serde_json::from_slice(bytes).map_err(|error| UnreadableEvent::Malformed(error.to_string()))?;
        let event_type: EventType = event.event_type.parse()?;
        let version: Option<u32> = event.dataschema.rsplit(':').next().and_then(|v| v.parse().ok());
        match version {
            Some(version) if version <= SCHEMA_VERSION => Ok((event_type, event)),
            _ => Err(UnreadableEvent::FutureVersion(event.dataschema)),
        }
    }

    /// Reads the payload as the type that goes with the event's type.
    pub fn payload<T: serde::de::DeserializeOwned>(&self) -> Result<T, UnreadableEvent> {
        serde_json::from_str(self.data.get()).map_err(|error| UnreadableEvent::Malformed(error.to_string()))
    }
}

/// Payload of `message.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageEvent {
    pub message: MessageView,
    /// 1 at creation, one more at each edit and at deletion: the newest wins.
    pub version: i64,
    pub chat: ChatRef,
}

/// Payload of `chat.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatEvent {
    pub chat: SharedChat,
    /// Counts membership changes of the chat; a smaller one is older.
    pub membership_version: i64,
    /// Everybody in the chat at its creation; empty in `chat.updated` and `chat.deleted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub member_ids: Vec<UserId>,
}

/// Payload of `member.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEvent {
    pub chat: SharedChat,
    pub member: MemberView,
    pub membership_version: i64,
}

/// Payload of `read.updated`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadEvent {
    pub chat_id: ChatId,
    pub kind: ChatKind,
    pub user_id: UserId,
    pub last_read_seq: i64,
}

/// Payload of `user.updated`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEvent {
    pub user: UserView,
    /// A deactivated user's streams end and its tokens are refused.
    pub deactivated: bool,
}

/// Payload of `session.revoked`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRevokedEvent {
    pub session_id: Uuid,
    pub user_id: UserId,
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn message_event() -> Event<MessageEvent> {
        let mut event = Event::new(
            EventType::MessageCreated,
            WorkspaceId(7),
            12,
            datetime!(2026-11-23 10:00:00 UTC),
            MessageEvent {
                message: MessageView {
                    id: 99.into(),
                    chat_id: 12.into(),
                    seq: 3,
                    sender_id: 5.into(),
                    content: Some("hi".to_owned()),
                    created_at: datetime!(2026-11-23 10:00:00.123456 UTC),
                    edited_at: None,
                    deleted_at: None,
                },
                version: 1,
                chat: ChatRef {
                    id: 12.into(),
                    name: Some("general".to_owned()),
                    kind: ChatKind::PublicChannel,
                },
            },
        );
        event.id = Uuid::nil();
        event
    }

    #[test]
    fn the_envelope_on_the_wire() {
        insta::assert_json_snapshot!(message_event(), @r#"
        {
          "specversion": "1.0",
          "id": "00000000-0000-0000-0000-000000000000",
          "source": "/chat_service",
          "type": "message.created",
          "time": "2026-11-23T10:00:00Z",
          "subject": "chat/12",
          "datacontenttype": "application/json",
          "dataschema": "urn:fechatter:event:message.created:1",
          "workspaceid": 7,
          "data": {
            "message": {
              "id": 99,
              "chat_id": 12,
              "seq": 3,
              "sender_id": 5,
              "content": "hi",
              "created_at": "2026-11-23T10:00:00.123456Z",
              "edited_at": null,
              "deleted_at": null
            },
            "version": 1,
            "chat": {
              "id": 12,
              "name": "general",
              "kind": "public_channel"
            }
          }
        }
        "#);
    }

    #[test]
    fn parse_reads_what_new_wrote() {
        let bytes = serde_json::to_vec(&message_event()).unwrap();
        let (event_type, event) = Event::parse(&bytes).unwrap();
        assert_eq!(event_type, EventType::MessageCreated);
        assert_eq!(event.payload::<MessageEvent>().unwrap(), message_event().data);
    }

    #[test]
    fn unreadable_events_say_why() {
        assert!(matches!(Event::parse(b"{"), Err(UnreadableEvent::Malformed(_))));
        let mut future = message_event();
        future.dataschema = "urn:fechatter:event:message.created:2".to_owned();
        let bytes = serde_json::to_vec(&future).unwrap();
        assert!(matches!(Event::parse(&bytes), Err(UnreadableEvent::FutureVersion(_))));
        let mut unknown = message_event();
        unknown.event_type = "message.exploded".to_owned();
        let bytes = serde_json::to_vec(&unknown).unwrap();
        assert!(matches!(Event::parse(&bytes), Err(UnreadableEvent::UnknownType(_))));
    }

    #[test]
    fn subjects_begin_with_the_workspace_and_name_the_type() {
        assert_eq!(
            EventType::MessageCreated.subject(WorkspaceId(7), 12),
            "fechatter.7.chat.12.message.created"
        );
        assert_eq!(
            EventType::SessionRevoked.subject(WorkspaceId(7), 5),
            "fechatter.7.session.5.session.revoked"
        );
        for event_type in EventType::ALL {
            assert_eq!(event_type.as_str().parse(), Ok(event_type));
        }
    }

    #[test]
    fn shards_cover_the_range() {
        assert_eq!(shard_of(1), 1);
        assert_eq!(shard_of(16), 0);
        assert!((1..1000).all(|key| (0..SHARDS).contains(&shard_of(key))));
    }
}
