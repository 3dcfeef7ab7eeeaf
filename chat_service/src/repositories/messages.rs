//! Messages: one statement sends, one or many, with the chats' next seqs and the events.

use fechatter_core::events::EventType;
use fechatter_core::wire::MessageView;
use fechatter_core::{ChatId, MessageId, UserId, WorkspaceId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

pub struct Messages<'c>(pub(super) &'c mut PgConnection);

/// A message with its version.
#[derive(Debug, Clone)]
pub struct MessageRow {
    pub view: MessageView,
    pub version: i64,
}

/// What a new message needs.
#[derive(Debug)]
pub struct NewMessage<'a> {
    pub workspace_id: WorkspaceId,
    pub chat_id: ChatId,
    pub sender_id: UserId,
    pub content: &'a str,
    /// Key and SHA-256 of the content.
    pub idempotency: Option<(&'a str, &'a [u8])>,
    /// W3C trace context of the request, which its event carries on.
    pub traceparent: Option<&'a str>,
}

/// An earlier content of a message.
#[derive(Debug, Clone)]
pub struct EditRow {
    pub version: i64,
    pub content: String,
    pub written_at: OffsetDateTime,
}

struct Row {
    id: i64,
    chat_id: i64,
    seq: i64,
    sender_id: i64,
    content: Option<String>,
    version: i64,
    created_at: OffsetDateTime,
    edited_at: Option<OffsetDateTime>,
    deleted_at: Option<OffsetDateTime>,
}

impl From<Row> for MessageRow {
    fn from(row: Row) -> Self {
        Self {
            version: row.version,
            view: MessageView {
                id: row.id.into(),
                chat_id: row.chat_id.into(),
                seq: row.seq,
                sender_id: row.sender_id.into(),
                content: row.content,
                created_at: row.created_at,
                edited_at: row.edited_at,
                deleted_at: row.deleted_at,
            },
        }
    }
}

impl Messages<'_> {
    /// Sends a message: takes the chat's next seq, writes the row and appends the event, in one statement and one
    /// round trip. `None` when the sender is not a member of such a chat; a reused idempotency key violates
    /// `messages_idempotency` and leaves nothing behind, not even a hole in `seq`.
    ///
    /// The sender's membership row is held first, so a removal that commits before this cannot be overtaken; as strongly as the
    /// read cursor on it needs, which moves to the new message: who writes has read. It moves by `ON CONFLICT`, which looks for the
    /// row as it is now. An `UPDATE` begins at the version that its snapshot sees, and may there wait behind somebody who leaves,
    /// who waits for somebody who joins, who waits for this chat.
    pub async fn insert(&mut self, new: &NewMessage<'_>) -> Result<Option<MessageRow>, Error> {
        let (key, digest) = new.idempotency.unzip();
        Ok(sqlx::query_as!(
            Row,
            r#"
            WITH member AS MATERIALIZED (
                SELECT chat_id FROM chat_members WHERE chat_id = $2 AND user_id = $3 FOR NO KEY UPDATE
            ), chat AS (
                UPDATE chats AS c SET last_seq = c.last_seq + 1
                FROM member WHERE c.id = member.chat_id AND c.workspace_id = $1 AND c.deleted_at IS NULL
                RETURNING c.id, c.name, c.kind, c.last_seq
            ), message AS (
                INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content, idempotency_key,
                                      idempotency_digest, created_at)
                SELECT $1, chat.id, chat.last_seq, $3, $4, $5, $6, clock_timestamp() FROM chat
                RETURNING id, chat_id, seq, sender_id, content, version, created_at
            ), own_cursor AS (
                INSERT INTO chat_members (chat_id, user_id, workspace_id, last_read_seq)
                SELECT chat_id, sender_id, $1, seq FROM message
                ON CONFLICT (chat_id, user_id) DO UPDATE SET last_read_seq = excluded.last_read_seq
            ), shard AS (
                UPDATE outbox_shards AS s SET last_position = s.last_position + 1
                FROM message WHERE s.shard = (message.chat_id % 16)::smallint
                RETURNING s.shard, s.last_position
            ), event AS (
                INSERT INTO outbox (shard, position, event_id, event_type, workspace_id, scope_id, data, traceparent)
                SELECT shard.shard, shard.last_position, $7, $8, $1, chat.id,
                       json_build_object(
                           'message', json_build_object(
                               'id', message.id, 'chat_id', message.chat_id, 'seq', message.seq,
                               'sender_id', message.sender_id, 'content', message.content,
                               -- As Rust writes it: no zeros at the end of the fraction.
                               'created_at', rtrim(rtrim(to_char(message.created_at AT TIME ZONE 'UTC',
                                                                 'YYYY-MM-DD"T"HH24:MI:SS.US'), '0'), '.') || 'Z',
                               'edited_at', NULL, 'deleted_at', NULL),
                           'version', message.version,
                           'chat', json_build_object('id', chat.id, 'name', chat.name, 'kind', chat.kind)),
                       $9
                FROM message, chat, shard
            )
            SELECT id AS "id!", chat_id AS "chat_id!", seq AS "seq!", sender_id AS "sender_id!", content,
                   version AS "version!", created_at AS "created_at!",
                   NULL::timestamptz AS edited_at, NULL::timestamptz AS deleted_at
            FROM message
            "#,
            new.workspace_id.0,
            new.chat_id.0,
            new.sender_id.0,
            new.content,
            key,
            digest,
            Uuid::now_v7(),
            EventType::MessageCreated.as_str(),
            new.traceparent
        )
        .fetch_optional(&mut *self.0)
        .await?
        .map(MessageRow::from))
    }

    /// Sends several messages in one statement, in their order: what [`Self::insert`] does for one, at a fifth of its cost each.
    ///
    /// `None` for a message that it leaves out, and then nothing of it is written: whose sender is no member, whose chat is
    /// deleted, whose idempotency key was used before, and whose membership or chat somebody else holds. Why, and what follows
    /// from it, [`Self::insert`] tells. An error leaves nothing behind of any of them.
    ///
    /// It waits for no membership and no chat, so it may hold many of them; shards it waits for in their order. A key may occur
    /// once per chat and sender.
    pub async fn insert_all(&mut self, new: &[NewMessage<'_>]) -> Result<Vec<Option<MessageRow>>, Error> {
        let workspaces: Vec<i64> = new.iter().map(|message| message.workspace_id.0).collect();
        let chats: Vec<i64> = new.iter().map(|message| message.chat_id.0).collect();
        let senders: Vec<i64> = new.iter().map(|message| message.sender_id.0).collect();
        let contents: Vec<&str> = new.iter().map(|message| message.content).collect();
        let (keys, digests): (Vec<Option<&str>>, Vec<Option<&[u8]>>) =
            new.iter().map(|message| message.idempotency.unzip()).unzip();
        let events: Vec<Uuid> = new.iter().map(|_| Uuid::now_v7()).collect();
        let traceparents: Vec<Option<&str>> = new.iter().map(|message| message.traceparent).collect();
        let rows = sqlx::query!(
            r#"
            -- The parameters by subqueries: planned for any number of messages, once.
            WITH input AS MATERIALIZED (
                SELECT *
                FROM unnest((SELECT $1::bigint[]), (SELECT $2::bigint[]), (SELECT $3::bigint[]), (SELECT $4::text[]),
                            (SELECT $5::text[]), (SELECT $6::bytea[]), (SELECT $7::uuid[]), (SELECT $9::text[]))
                    WITH ORDINALITY AS i (workspace_id, chat_id, sender_id, content, key, digest, event_id, traceparent, ordinal)
            ), member AS MATERIALIZED (
                SELECT held.chat_id, held.user_id
                FROM (SELECT DISTINCT workspace_id, chat_id, sender_id FROM input) AS sender
                CROSS JOIN LATERAL (
                    SELECT m.chat_id, m.user_id FROM chat_members AS m
                    WHERE m.chat_id = sender.chat_id AND m.user_id = sender.sender_id AND m.workspace_id = sender.workspace_id
                    FOR NO KEY UPDATE SKIP LOCKED
                ) AS held
            ), chat AS MATERIALIZED (
                SELECT held.id
                FROM (SELECT DISTINCT chat_id FROM member) AS wanted
                CROSS JOIN LATERAL (
                    SELECT c.id FROM chats AS c WHERE c.id = wanted.chat_id AND c.deleted_at IS NULL
                    FOR NO KEY UPDATE SKIP LOCKED
                ) AS held
            ), accepted AS MATERIALIZED (
                SELECT input.*, row_number() OVER (PARTITION BY input.chat_id ORDER BY input.ordinal) AS place
                FROM input
                JOIN member ON member.chat_id = input.chat_id AND member.user_id = input.sender_id
                JOIN chat ON chat.id = input.chat_id
                WHERE input.key IS NULL OR NOT EXISTS (
                    SELECT FROM messages AS earlier
                    WHERE earlier.chat_id = input.chat_id AND earlier.sender_id = input.sender_id
                      AND earlier.idempotency_key = input.key)
            ), raised AS (
                UPDATE chats AS c SET last_seq = c.last_seq + counted.messages
                FROM (SELECT chat_id, count(*) AS messages FROM accepted GROUP BY chat_id) AS counted
                WHERE c.id = counted.chat_id
                RETURNING c.id, c.name, c.kind, c.last_seq - counted.messages AS before
            ), placed AS MATERIALIZED (
                SELECT accepted.*, raised.before + accepted.place AS seq, raised.name, raised.kind,
                       (accepted.chat_id % 16)::smallint AS shard
                FROM accepted JOIN raised ON raised.id = accepted.chat_id
            ), message AS (
                INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content, idempotency_key,
                                      idempotency_digest, created_at)
                SELECT workspace_id, chat_id, seq, sender_id, content, key, digest, clock_timestamp()
                FROM placed ORDER BY ordinal
                RETURNING id, chat_id, seq, sender_id, version, created_at
            ), own_cursor AS (
                INSERT INTO chat_members (chat_id, user_id, workspace_id, last_read_seq)
                SELECT chat_id, sender_id, min(workspace_id), max(seq) FROM placed GROUP BY chat_id, sender_id
                ON CONFLICT (chat_id, user_id) DO UPDATE SET last_read_seq = excluded.last_read_seq
            ), held_shard AS MATERIALIZED (
                SELECT held.shard, counted.messages
                FROM (SELECT (chat_id % 16)::smallint AS shard, count(*) AS messages FROM message GROUP BY 1 ORDER BY 1) AS counted
                CROSS JOIN LATERAL (
                    SELECT s.shard FROM outbox_shards AS s WHERE s.shard = counted.shard FOR NO KEY UPDATE
                ) AS held
            ), shard AS (
                UPDATE outbox_shards AS s SET last_position = s.last_position + held_shard.messages
                FROM held_shard WHERE s.shard = held_shard.shard
                RETURNING s.shard, s.last_position - held_shard.messages AS before
            ), event AS (
                INSERT INTO outbox (shard, position, event_id, event_type, workspace_id, scope_id, data, traceparent)
                SELECT shard.shard,
                       shard.before + row_number() OVER (PARTITION BY shard.shard ORDER BY placed.ordinal),
                       placed.event_id, $8, placed.workspace_id, placed.chat_id,
                       json_build_object(
                           'message', json_build_object(
                               'id', message.id, 'chat_id', message.chat_id, 'seq', message.seq,
                               'sender_id', message.sender_id, 'content', placed.content,
                               'created_at', rtrim(rtrim(to_char(message.created_at AT TIME ZONE 'UTC',
                                                                 'YYYY-MM-DD"T"HH24:MI:SS.US'), '0'), '.') || 'Z',
                               'edited_at', NULL, 'deleted_at', NULL),
                           'version', message.version,
                           'chat', json_build_object('id', placed.chat_id, 'name', placed.name, 'kind', placed.kind)),
                       placed.traceparent
                FROM placed
                JOIN message ON message.chat_id = placed.chat_id AND message.seq = placed.seq
                JOIN shard ON shard.shard = placed.shard
            )
            SELECT placed.ordinal AS "ordinal!", message.id AS "id!", message.seq AS "seq!", message.version AS "version!",
                   message.created_at AS "created_at!"
            FROM placed JOIN message ON message.chat_id = placed.chat_id AND message.seq = placed.seq
            "#,
            &workspaces,
            &chats,
            &senders,
            &contents as &[&str],
            &keys as &[Option<&str>],
            &digests as &[Option<&[u8]>],
            &events,
            EventType::MessageCreated.as_str(),
            &traceparents as &[Option<&str>]
        )
        .fetch_all(&mut *self.0)
        .await?;
        let mut stored: Vec<Option<MessageRow>> = new.iter().map(|_| None).collect();
        for row in rows {
            let index = usize::try_from(row.ordinal - 1).ok();
            let (Some(slot), Some(message)) = (
                index.and_then(|index| stored.get_mut(index)),
                index.and_then(|index| new.get(index)),
            ) else {
                return Err(Error::Inconsistent(format!(
                    "a message number {} of a batch",
                    row.ordinal
                )));
            };
            *slot = Some(MessageRow {
                version: row.version,
                view: MessageView {
                    id: row.id.into(),
                    chat_id: message.chat_id,
                    seq: row.seq,
                    sender_id: message.sender_id,
                    content: Some(message.content.to_owned()),
                    created_at: row.created_at,
                    edited_at: None,
                    deleted_at: None,
                },
            });
        }
        Ok(stored)
    }

    /// The message first sent under an idempotency key, and the digest of what was sent.
    pub async fn find_by_key(
        &mut self,
        chat: ChatId,
        sender: UserId,
        key: &str,
    ) -> Result<Option<(MessageRow, Vec<u8>)>, Error> {
        let row = sqlx::query!(
            r#"
            SELECT id, chat_id, seq, sender_id, content, version, created_at, edited_at, deleted_at,
                   idempotency_digest AS "digest!"
            FROM messages WHERE chat_id = $1 AND sender_id = $2 AND idempotency_key = $3
            "#,
            chat.0,
            sender.0,
            key
        )
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(row.map(|row| {
            let message = Row {
                id: row.id,
                chat_id: row.chat_id,
                seq: row.seq,
                sender_id: row.sender_id,
                content: row.content,
                version: row.version,
                created_at: row.created_at,
                edited_at: row.edited_at,
                deleted_at: row.deleted_at,
            };
            (message.into(), row.digest)
        }))
    }

    /// Newest first, of seq below `before`.
    pub async fn list_before(&mut self, chat: ChatId, before: i64, limit: i64) -> Result<Vec<MessageRow>, Error> {
        Ok(sqlx::query_as!(
            Row,
            "SELECT id, chat_id, seq, sender_id, content, version, created_at, edited_at, deleted_at
             FROM messages WHERE chat_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3",
            chat.0,
            before,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?
        .into_iter()
        .map(MessageRow::from)
        .collect())
    }

    /// Oldest first, of seq above `after`.
    pub async fn list_after(&mut self, chat: ChatId, after: i64, limit: i64) -> Result<Vec<MessageRow>, Error> {
        Ok(sqlx::query_as!(
            Row,
            "SELECT id, chat_id, seq, sender_id, content, version, created_at, edited_at, deleted_at
             FROM messages WHERE chat_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            chat.0,
            after,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?
        .into_iter()
        .map(MessageRow::from)
        .collect())
    }

    pub async fn find(&mut self, chat: ChatId, message: MessageId) -> Result<Option<MessageRow>, Error> {
        Ok(sqlx::query_as!(
            Row,
            "SELECT id, chat_id, seq, sender_id, content, version, created_at, edited_at, deleted_at
             FROM messages WHERE chat_id = $1 AND id = $2",
            chat.0,
            message.0
        )
        .fetch_optional(&mut *self.0)
        .await?
        .map(MessageRow::from))
    }

    /// Replaces the content and keeps the old one in the history; the chat is locked by the caller.
    pub async fn edit(&mut self, message: MessageId, content: &str) -> Result<MessageRow, Error> {
        self.keep_history(message).await?;
        Ok(sqlx::query_as!(
            Row,
            "UPDATE messages SET content = $2, version = version + 1, edited_at = clock_timestamp() WHERE id = $1
             RETURNING id, chat_id, seq, sender_id, content, version, created_at, edited_at, deleted_at",
            message.0,
            content
        )
        .fetch_one(&mut *self.0)
        .await?
        .into())
    }

    /// Leaves a tombstone; the chat is locked by the caller.
    pub async fn delete(&mut self, message: MessageId) -> Result<MessageRow, Error> {
        self.keep_history(message).await?;
        Ok(sqlx::query_as!(
            Row,
            "UPDATE messages SET content = NULL, version = version + 1, deleted_at = clock_timestamp() WHERE id = $1
             RETURNING id, chat_id, seq, sender_id, content, version, created_at, edited_at, deleted_at",
            message.0
        )
        .fetch_one(&mut *self.0)
        .await?
        .into())
    }

    async fn keep_history(&mut self, message: MessageId) -> Result<(), Error> {
        sqlx::query!(
            "INSERT INTO message_edits (message_id, version, content, written_at)
             SELECT id, version, content, coalesce(edited_at, created_at) FROM messages
             WHERE id = $1 AND content IS NOT NULL",
            message.0
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Earlier contents after a version, oldest first.
    pub async fn history(&mut self, message: MessageId, after: i64, limit: i64) -> Result<Vec<EditRow>, Error> {
        Ok(sqlx::query_as!(
            EditRow,
            "SELECT version, content, written_at FROM message_edits WHERE message_id = $1 AND version > $2
             ORDER BY version LIMIT $3",
            message.0,
            after,
            limit
        )
        .fetch_all(&mut *self.0)
        .await?)
    }
}
