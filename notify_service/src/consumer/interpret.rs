//! What an event means here: who gets it, and what it changes.

use fechatter_core::chat::ChatKind;
use fechatter_core::events::{
    ChatEvent, Event, EventType, MemberEvent, MessageEvent, ReadEvent, SessionRevokedEvent, UnreadableEvent, UserEvent,
};
use fechatter_core::{UserId, WorkspaceId};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::frame::{self, Cursor};
use crate::hub::{Change, Entry, Scope};

/// An event, understood.
#[derive(Debug)]
pub enum Meaning {
    Deliver {
        entry: Entry,
        change: Change,
        /// Their streams end after the event.
        deactivated: Option<UserId>,
        /// When it happened.
        time: OffsetDateTime,
    },
    /// A session ended; nobody is told but its own streams.
    Revoke { user: UserId, session: Uuid },
}

/// Reads an event from the stream.
pub fn interpret(body: &[u8], cursor: Cursor) -> Result<Meaning, UnreadableEvent> {
    let (event_type, event) = Event::parse(body)?;
    let mut deactivated = None;
    let (scope, change) = match event_type {
        EventType::MessageCreated | EventType::MessageUpdated | EventType::MessageDeleted => {
            (Scope::Chat(event.payload::<MessageEvent>()?.chat.id), Change::None)
        }
        EventType::ChatUpdated => (Scope::Chat(event.payload::<ChatEvent>()?.chat.id), Change::None),
        EventType::ChatCreated => {
            let created: ChatEvent = event.payload()?;
            let change = Change::Joined {
                chat: created.chat.id,
                users: created.member_ids,
                version: created.membership_version,
                time: event.time,
            };
            (Scope::Chat(created.chat.id), change)
        }
        EventType::ChatDeleted => {
            let chat = event.payload::<ChatEvent>()?.chat.id;
            (Scope::Deleted(chat), Change::Deleted { chat })
        }
        EventType::MemberAdded => {
            let added: MemberEvent = event.payload()?;
            let change = Change::Joined {
                chat: added.chat.id,
                users: vec![added.member.user_id],
                version: added.membership_version,
                time: event.time,
            };
            (Scope::Chat(added.chat.id), change)
        }
        EventType::MemberRemoved => {
            let removed: MemberEvent = event.payload()?;
            let (chat, user) = (removed.chat.id, removed.member.user_id);
            let version = removed.membership_version;
            (Scope::ChatAnd(chat, user), Change::Left { chat, user, version })
        }
        EventType::ReadUpdated => {
            let read: ReadEvent = event.payload()?;
            let scope = match read.kind {
                ChatKind::Single | ChatKind::Group => Scope::Chat(read.chat_id),
                ChatKind::PrivateChannel | ChatKind::PublicChannel => Scope::User(read.user_id),
            };
            (scope, Change::None)
        }
        EventType::UserUpdated => {
            let updated: UserEvent = event.payload()?;
            deactivated = updated.deactivated.then_some(updated.user.id);
            (Scope::Workspace, Change::None)
        }
        EventType::SessionRevoked => {
            let revoked: SessionRevokedEvent = event.payload()?;
            return Ok(Meaning::Revoke {
                user: revoked.user_id,
                session: revoked.session_id,
            });
        }
    };
    Ok(Meaning::Deliver {
        entry: entry(&event, event_type, event.workspaceid, scope, cursor),
        change,
        deactivated,
        time: event.time,
    })
}

fn entry(event: &Event, event_type: EventType, workspace: WorkspaceId, scope: Scope, cursor: Cursor) -> Entry {
    Entry {
        sequence: cursor.sequence,
        workspace,
        scope,
        frame: frame::event(cursor, event_type.as_str(), event.data.get()),
    }
}
