//! What events mean for the index, and how those of one batch collapse.

use std::collections::{BTreeMap, HashSet};

use fechatter_core::ChatId;
use fechatter_core::events::{ChatEvent, Event, EventType, MessageEvent, UnreadableEvent};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::engine::{Change, MessageDocument, StreamPosition};

/// The epoch of an event that did not say one.
pub const UNKNOWN_EPOCH: Uuid = Uuid::nil();

/// An event as it was delivered.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Its place in the stream.
    pub position: StreamPosition,
    pub subject: String,
    /// How many times it has been delivered, this one included.
    pub deliveries: i64,
    pub body: bytes::Bytes,
}

/// What an event means for the index.
#[derive(Debug, Clone)]
pub(super) struct Effect<'a> {
    pub(super) event: &'a Incoming,
    pub(super) change: Option<Change>,
    pub(super) happened_at: OffsetDateTime,
}

/// Reads an event; those that do not concern the index, by their subject or their type, have no change.
pub(super) fn read(event: &Incoming) -> Result<Effect<'_>, UnreadableEvent> {
    if !concerns_index(&event.subject) {
        return Ok(Effect {
            event,
            change: None,
            happened_at: OffsetDateTime::now_utc(),
        });
    }
    let (event_type, envelope) = Event::parse(&event.body)?;
    let change = match event_type {
        EventType::MessageCreated | EventType::MessageUpdated | EventType::MessageDeleted => {
            let MessageEvent { message, version, .. } = envelope.payload()?;
            Some(match message.content {
                Some(content) if event_type != EventType::MessageDeleted => Change::Upsert(MessageDocument {
                    id: message.id,
                    workspace_id: envelope.workspaceid,
                    chat_id: message.chat_id,
                    sender_id: message.sender_id,
                    content,
                    created_at: message.created_at,
                    version,
                }),
                _ => Change::Delete {
                    id: message.id,
                    version,
                },
            })
        }
        EventType::ChatDeleted => {
            let ChatEvent { chat, .. } = envelope.payload()?;
            Some(Change::DeleteChat(chat.id))
        }
        _ => None,
    };
    Ok(Effect {
        event,
        change,
        happened_at: envelope.time,
    })
}

/// Whether the index is made of such events: those of messages, also of types to come, and of deleted chats.
fn concerns_index(subject: &str) -> bool {
    // fechatter.WORKSPACE.chat.CHAT.TYPE
    let mut tokens = subject.splitn(5, '.').skip(2);
    let (scope, what) = (tokens.next(), tokens.nth(1).unwrap_or_default());
    scope == Some("chat") && (what.starts_with("message.") || what == EventType::ChatDeleted.as_str())
}

/// The last state of each message; a chat that is deleted anywhere in the batch takes its messages along, since it never
/// comes back.
pub(super) fn collapse(effects: &[Effect<'_>]) -> Vec<Change> {
    let changes = || effects.iter().filter_map(|effect| effect.change.as_ref());
    let deleted_chats: HashSet<ChatId> = changes()
        .filter_map(|change| match change {
            Change::DeleteChat(chat) => Some(*chat),
            _ => None,
        })
        .collect();
    let mut latest: BTreeMap<i64, (i64, &Change)> = BTreeMap::new();
    for change in changes() {
        let (id, version) = match change {
            Change::Upsert(message) if deleted_chats.contains(&message.chat_id) => continue,
            Change::Upsert(message) => (message.id.0, message.version),
            Change::Delete { id, version } => (id.0, *version),
            Change::DeleteChat(_) => continue,
        };
        if latest.get(&id).is_none_or(|(known, _)| *known < version) {
            latest.insert(id, (version, change));
        }
    }
    let mut collapsed: Vec<Change> = latest.into_values().map(|(_, change)| change.clone()).collect();
    collapsed.extend(deleted_chats.into_iter().map(Change::DeleteChat));
    collapsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(event: &Incoming, change: Change) -> Effect<'_> {
        Effect {
            event,
            change: Some(change),
            happened_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn incoming(body: &str) -> Incoming {
        Incoming {
            position: StreamPosition::default(),
            subject: "fechatter.1.chat.1.message.created".to_owned(),
            deliveries: 1,
            body: body.to_owned().into(),
        }
    }

    fn upsert(id: i64, chat: i64, version: i64) -> Change {
        Change::Upsert(MessageDocument {
            id: id.into(),
            workspace_id: 1.into(),
            chat_id: chat.into(),
            sender_id: 1.into(),
            content: format!("version {version}"),
            created_at: OffsetDateTime::UNIX_EPOCH,
            version,
        })
    }

    fn delete(id: i64, version: i64) -> Change {
        Change::Delete { id: id.into(), version }
    }

    #[test]
    fn create_edit_and_delete_collapse_to_the_last_state() {
        let event = incoming("");
        let effects: Vec<_> = [
            upsert(1, 1, 1),
            upsert(2, 1, 1),
            upsert(1, 1, 2),
            delete(1, 3),
            upsert(2, 1, 2),
        ]
        .into_iter()
        .map(|change| effect(&event, change))
        .collect();
        assert_eq!(collapse(&effects), [delete(1, 3), upsert(2, 1, 2)]);
        // In whatever order they come.
        let reversed: Vec<_> = effects.into_iter().rev().collect();
        assert_eq!(collapse(&reversed), [delete(1, 3), upsert(2, 1, 2)]);
    }

    #[test]
    fn a_deleted_chat_takes_its_messages_along() {
        let event = incoming("");
        let effects: Vec<_> = [Change::DeleteChat(7.into()), upsert(1, 7, 1), upsert(2, 8, 1)]
            .into_iter()
            .map(|change| effect(&event, change))
            .collect();
        assert_eq!(collapse(&effects), [upsert(2, 8, 1), Change::DeleteChat(7.into())]);
    }

    #[test]
    fn events_are_read_or_say_why_not() {
        let event = Event::new(
            EventType::MessageDeleted,
            1.into(),
            2,
            OffsetDateTime::UNIX_EPOCH,
            serde_json::json!({
                "message": {"id": 5, "chat_id": 2, "seq": 1, "sender_id": 3, "content": null,
                            "created_at": "2026-01-01T00:00:00Z", "edited_at": null,
                            "deleted_at": "2026-01-02T00:00:00Z"},
                "version": 2, "chat": {"id": 2, "name": null, "kind": "group"}
            }),
        );
        let good = incoming(&serde_json::to_string(&event).unwrap());
        assert_eq!(read(&good).unwrap().change, Some(delete(5, 2)));
        for bad in ["", "{}", "\u{0}"] {
            assert!(read(&incoming(bad)).is_err(), "{bad:?}");
        }
        let unrelated = Event::new(EventType::ReadUpdated, 1.into(), 2, OffsetDateTime::UNIX_EPOCH, ());
        let unrelated = incoming(&serde_json::to_string(&unrelated).unwrap());
        assert!(read(&unrelated).unwrap().change.is_none());
    }

    #[test]
    fn what_does_not_concern_the_index_is_not_even_read() {
        let of = |kind: EventType| concerns_index(&kind.subject(1.into(), 2));
        let concerning: Vec<EventType> = EventType::ALL.into_iter().filter(|kind| of(*kind)).collect();
        let expected = [
            EventType::MessageCreated,
            EventType::MessageUpdated,
            EventType::MessageDeleted,
            EventType::ChatDeleted,
        ];
        assert_eq!(concerning.len(), expected.len());
        assert!(expected.iter().all(|kind| concerning.contains(kind)), "{concerning:?}");
        assert!(concerns_index("fechatter.1.chat.2.message.pinned"), "a type to come");
        for foreign in [
            "",
            "fechatter",
            "fechatter.1.user.2.message.created",
            "fechatter.1.chat.2",
        ] {
            assert!(!concerns_index(foreign), "{foreign:?}");
        }
        let of_the_future = Incoming {
            subject: "fechatter.1.chat.2.reaction.added".to_owned(),
            ..incoming("{}")
        };
        assert!(read(&of_the_future).unwrap().change.is_none());
    }
}
