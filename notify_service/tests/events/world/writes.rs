//! What chat_service does: rows, and events as its relay publishes them.

use std::collections::HashMap;

use async_nats::jetstream;
use fechatter_core::WorkspaceId;
use fechatter_core::chat::ChatKind;
use fechatter_core::events::{
    Event, EventType, HEADER_EPOCH, HEADER_MESSAGE_ID, HEADER_POSITION, HEADER_SHARD, shard_of,
};
use migrations::rows;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{PATIENCE, World};

/// Somebody in a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub id: i64,
    pub workspace: i64,
}

/// A chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chat {
    pub id: i64,
    pub workspace: i64,
    pub kind: ChatKind,
}

/// Publishes like the relay: positions without a gap per shard, each acknowledged before the next.
#[derive(Debug, Clone)]
pub struct Publisher {
    pub context: jetstream::Context,
    pub epoch: Uuid,
    pub positions: HashMap<i16, i64>,
    /// What [`publish`](Self::publish) has sent: type, scope, event, position.
    sent: Vec<(EventType, i64, Event<Value>, i64)>,
}

impl Publisher {
    pub fn new(context: jetstream::Context) -> Self {
        Self {
            context,
            epoch: Uuid::nil(),
            positions: HashMap::new(),
            sent: Vec::new(),
        }
    }

    /// A new history.
    pub fn begin(&mut self, epoch: Uuid) {
        self.epoch = epoch;
    }

    /// Publishes the next event of a shard; gives its sequence in the stream.
    pub async fn publish(&mut self, event_type: EventType, workspace: i64, scope: i64, data: Value) -> u64 {
        let shard = shard_of(scope);
        let position = self.positions.entry(shard).or_default();
        *position += 1;
        let position = *position;
        let event = Event::new(
            event_type,
            WorkspaceId(workspace),
            scope,
            OffsetDateTime::now_utc(),
            data,
        );
        let sequence = self.put(event_type, scope, &event, position).await;
        self.sent.push((event_type, scope, event, position));
        sequence
    }

    /// Publishes all events again, as they were, in the history of now.
    pub async fn publish_again(&self) {
        for (event_type, scope, event, position) in &self.sent {
            self.put(*event_type, *scope, event, *position).await;
        }
    }

    /// Publishes an event at this position, again if the answer does not come.
    pub async fn put(&self, event_type: EventType, scope: i64, event: &Event<Value>, position: i64) -> u64 {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(
            HEADER_MESSAGE_ID,
            format!("{}.{}", event.id.simple(), self.epoch.simple()),
        );
        headers.insert(HEADER_EPOCH, self.epoch.to_string());
        headers.insert(HEADER_SHARD, shard_of(scope).to_string());
        headers.insert(HEADER_POSITION, position.to_string());
        let body = serde_json::to_vec(event).expect("JSON");
        loop {
            let sent = self
                .context
                .publish_with_headers(
                    event_type.subject(event.workspaceid, scope),
                    headers.clone(),
                    body.clone().into(),
                )
                .await;
            match async { sent?.await }.await {
                Ok(ack) => return ack.sequence,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
        }
    }

    /// Publishes a message with this text.
    pub async fn message(&mut self, chat: Chat, sender: User, seq: i64, content: &str) -> u64 {
        let data = json!({
            "message": {
                "id": chat.id * 1_000_000 + seq, "chat_id": chat.id, "seq": seq, "sender_id": sender.id,
                "content": content, "created_at": "2026-11-23T10:00:00Z", "edited_at": null, "deleted_at": null,
            },
            "version": 1,
            "chat": {"id": chat.id, "name": null, "kind": chat.kind},
        });
        self.publish(EventType::MessageCreated, chat.workspace, chat.id, data)
            .await
    }
}

impl World {
    /// A workspace with its owner.
    pub async fn workspace(&self, name: &str) -> User {
        let (workspace, id) = rows::workspace(&self.pool, name).await;
        User { id, workspace }
    }

    pub async fn user(&self, workspace: i64) -> User {
        let id = rows::user(&self.pool, workspace, "Somebody").await;
        User { id, workspace }
    }

    /// A chat's rows, without an event.
    pub async fn chat(&self, kind: ChatKind, members: &[User]) -> Chat {
        let workspace = members[0].workspace;
        let ids: Vec<i64> = members.iter().map(|member| member.id).collect();
        let name = kind.needs_name().then_some("a chat");
        let id = rows::chat(&self.pool, workspace, kind.as_str(), name, &ids).await;
        Chat { id, workspace, kind }
    }

    /// Adds or removes a member; gives the payload of the event.
    pub async fn change_member(&self, chat: Chat, user: User, add: bool) -> Value {
        let mut transaction = self.pool.begin().await.expect("a transaction");
        let sql = if add {
            "INSERT INTO chat_members (chat_id, user_id, workspace_id) VALUES ($1, $2, $3)"
        } else {
            "DELETE FROM chat_members WHERE chat_id = $1 AND user_id = $2 AND workspace_id = $3"
        };
        sqlx::query(sql)
            .bind(chat.id)
            .bind(user.id)
            .bind(user.workspace)
            .execute(&mut *transaction)
            .await
            .expect("a change");
        let version: i64 = sqlx::query_scalar(
            "UPDATE chats SET membership_version = membership_version + 1 WHERE id = $1 RETURNING membership_version",
        )
        .bind(chat.id)
        .fetch_one(&mut *transaction)
        .await
        .expect("a version");
        transaction.commit().await.expect("a commit");
        json!({
            "chat": shared_chat(chat),
            "member": {
                "user_id": user.id, "fullname": "Somebody", "role": "member",
                "joined_at": "2026-11-23T10:00:00Z", "last_read_seq": 0,
            },
            "membership_version": version,
        })
    }

    /// Adds or removes a member and publishes it.
    pub async fn member(&mut self, chat: Chat, user: User, add: bool) {
        let data = self.change_member(chat, user, add).await;
        let event_type = if add {
            EventType::MemberAdded
        } else {
            EventType::MemberRemoved
        };
        self.publisher.publish(event_type, chat.workspace, chat.id, data).await;
    }

    /// Publishes a message.
    pub async fn send(&mut self, chat: Chat, sender: User, seq: i64, content: &str) -> u64 {
        self.publisher.message(chat, sender, seq, content).await
    }

    /// Publishes an event about the chat itself.
    pub async fn chat_event(&mut self, event_type: EventType, chat: Chat, members: &[User]) {
        let ids: Vec<i64> = members.iter().map(|member| member.id).collect();
        let data = json!({"chat": shared_chat(chat), "membership_version": 1, "member_ids": ids});
        self.publisher.publish(event_type, chat.workspace, chat.id, data).await;
    }
}

fn shared_chat(chat: Chat) -> Value {
    json!({
        "id": chat.id, "workspace_id": chat.workspace, "kind": chat.kind, "name": null, "description": null,
        "owner_id": 1, "member_count": 2, "last_seq": 0,
        "created_at": "2026-11-23T10:00:00Z", "updated_at": "2026-11-23T10:00:00Z",
    })
}
