//! What chat_service does: rows, and events as the relay publishes them.

use fechatter_core::chat::ChatKind;
use fechatter_core::events::{
    Event, EventType, HEADER_EPOCH, HEADER_MESSAGE_ID, HEADER_POSITION, HEADER_SHARD, shard_of,
};
use migrations::rows;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{Chat, User, World};

impl World {
    pub async fn workspace(&self, name: &str) -> User {
        let (workspace, id) = rows::workspace(&self.pool, name).await;
        User { id, workspace }
    }

    pub async fn user(&self, workspace: i64, fullname: &str) -> User {
        let id = rows::user(&self.pool, workspace, fullname).await;
        User { id, workspace }
    }

    pub async fn chat(&self, kind: ChatKind, name: &str, members: &[User]) -> Chat {
        let workspace = members[0].workspace;
        let ids: Vec<i64> = members.iter().map(|member| member.id).collect();
        let name = kind.needs_name().then_some(name);
        let id = rows::chat(&self.pool, workspace, kind.as_str(), name, &ids).await;
        Chat { id, workspace, kind }
    }

    pub async fn join(&self, chat: Chat, user: User) {
        sqlx::query("INSERT INTO chat_members (chat_id, user_id, workspace_id) VALUES ($1, $2, $3)")
            .bind(chat.id)
            .bind(user.id)
            .bind(user.workspace)
            .execute(&self.pool)
            .await
            .expect("a member");
    }

    pub async fn remove(&self, chat: Chat, user: User) {
        sqlx::query("DELETE FROM chat_members WHERE chat_id = $1 AND user_id = $2")
            .bind(chat.id)
            .bind(user.id)
            .execute(&self.pool)
            .await
            .expect("a removal");
    }

    /// Writes a message without its event.
    pub async fn write(&self, chat: Chat, sender: User, content: &str) -> i64 {
        let mut transaction = self.pool.begin().await.expect("a transaction");
        let seq: i64 = sqlx::query_scalar("UPDATE chats SET last_seq = last_seq + 1 WHERE id = $1 RETURNING last_seq")
            .bind(chat.id)
            .fetch_one(&mut *transaction)
            .await
            .expect("a seq");
        let id = sqlx::query_scalar(
            "INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content) VALUES ($1, $2, $3, $4, $5)
             RETURNING id",
        )
        .bind(chat.workspace)
        .bind(chat.id)
        .bind(seq)
        .bind(sender.id)
        .bind(content)
        .fetch_one(&mut *transaction)
        .await
        .expect("a message");
        transaction.commit().await.expect("a commit");
        id
    }

    /// Writes a message and publishes its event.
    pub async fn send(&mut self, chat: Chat, sender: User, content: &str) -> i64 {
        let id = self.write(chat, sender, content).await;
        let event = self.message_event(EventType::MessageCreated, chat, id).await;
        self.publish(EventType::MessageCreated, chat, &event).await;
        id
    }

    pub async fn edit(&mut self, chat: Chat, id: i64, content: &str) {
        sqlx::query("UPDATE messages SET content = $2, version = version + 1, edited_at = now() WHERE id = $1")
            .bind(id)
            .bind(content)
            .execute(&self.pool)
            .await
            .expect("an edit");
        let event = self.message_event(EventType::MessageUpdated, chat, id).await;
        self.publish(EventType::MessageUpdated, chat, &event).await;
    }

    pub async fn delete(&mut self, chat: Chat, id: i64) {
        sqlx::query("UPDATE messages SET content = NULL, version = version + 1, deleted_at = now() WHERE id = $1")
            .bind(id)
            .execute(&self.pool)
            .await
            .expect("a deletion");
        let event = self.message_event(EventType::MessageDeleted, chat, id).await;
        self.publish(EventType::MessageDeleted, chat, &event).await;
    }

    pub async fn delete_chat(&mut self, chat: Chat) {
        sqlx::query("UPDATE chats SET deleted_at = now() WHERE id = $1")
            .bind(chat.id)
            .execute(&self.pool)
            .await
            .expect("a deletion");
        let now = OffsetDateTime::now_utc().format(&Rfc3339).expect("a time");
        let data = json!({
            "chat": {"id": chat.id, "workspace_id": chat.workspace, "kind": chat.kind, "name": null,
                     "description": null, "owner_id": 1, "member_count": 0, "last_seq": 0,
                     "created_at": now, "updated_at": now},
            "membership_version": 1,
        });
        self.publish(
            EventType::ChatDeleted,
            chat,
            &envelope(EventType::ChatDeleted, chat, data),
        )
        .await;
    }

    /// The event that tells of a message as it is now.
    pub async fn message_event(&self, event_type: EventType, chat: Chat, id: i64) -> Event<Value> {
        let (message, version): (Value, i64) = sqlx::query_as(
            "SELECT json_build_object('id', id, 'chat_id', chat_id, 'seq', seq, 'sender_id', sender_id,
                                      'content', content, 'created_at', created_at, 'edited_at', edited_at,
                                      'deleted_at', deleted_at), version
             FROM messages WHERE id = $1",
        )
        .bind(id)
        .fetch_one(&self.pool)
        .await
        .expect("a message");
        let data = json!({
            "message": message, "version": version,
            "chat": {"id": chat.id, "name": null, "kind": chat.kind},
        });
        envelope(event_type, chat, data)
    }

    /// Publishes an event as the relay does.
    pub async fn publish(&mut self, event_type: EventType, chat: Chat, event: &Event<Value>) -> u64 {
        let body = serde_json::to_vec(event).expect("an event");
        self.publish_bytes(event_type, chat, event.id, body).await
    }

    /// Publishes any bytes in the place of an event.
    pub async fn publish_bytes(&mut self, event_type: EventType, chat: Chat, id: Uuid, body: Vec<u8>) -> u64 {
        let shard = shard_of(chat.id);
        let position = self.positions.entry(shard).or_insert(0);
        *position += 1;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(HEADER_MESSAGE_ID, id.to_string());
        headers.insert(HEADER_EPOCH, self.epoch.to_string());
        headers.insert(HEADER_SHARD, shard.to_string());
        headers.insert(HEADER_POSITION, position.to_string());
        headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        self.context
            .publish_with_headers(event_type.subject(chat.workspace.into(), chat.id), headers, body.into())
            .await
            .expect("published")
            .await
            .expect("stored")
            .sequence
    }
}

/// The envelope of chat_service.
pub fn envelope(event_type: EventType, chat: Chat, data: Value) -> Event<Value> {
    Event::new(
        event_type,
        chat.workspace.into(),
        chat.id,
        OffsetDateTime::now_utc(),
        data,
    )
}
