//! Messages that arrive while statements are under way, and what became of them in the database.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::task::Poll;

use chat_service::error::Error;
use chat_service::services::Actor;
use chat_service::services::messages::Sent;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use futures::future::join_all;
use sqlx::{PgPool, Postgres, Transaction};

use crate::support::{App, User};

pub type Sending = Pin<Box<dyn Future<Output = Result<Sent, Error>> + Send>>;

/// A message to send.
#[derive(Debug, Clone)]
pub struct Message {
    pub sender: i64,
    pub chat: i64,
    pub content: String,
    pub key: Option<String>,
}

impl Message {
    pub fn new(sender: &User, chat: i64, content: impl Into<String>) -> Self {
        Self {
            sender: sender.id,
            chat,
            content: content.into(),
            key: None,
        }
    }

    pub fn keyed(self, key: impl Into<String>) -> Self {
        Self {
            key: Some(key.into()),
            ..self
        }
    }

    pub async fn send(&self, app: &App) -> Result<Sent, Error> {
        let workspace = workspace_of(app, self.sender).await;
        self.sending(app, workspace).await
    }

    /// Arrives at the first poll.
    pub fn sending(&self, app: &App, workspace: i64) -> Sending {
        let actor = Actor {
            user: UserId(self.sender),
            workspace: WorkspaceId(workspace),
            session: uuid::Uuid::nil(),
        };
        let (service, message) = (app.messages.clone(), self.clone());
        Box::pin(async move {
            service
                .send(actor, ChatId(message.chat), &message.content, message.key.as_deref())
                .await
        })
    }
}

/// Statements that wait at the outbox, so that what arrives meanwhile waits for its turn.
pub struct Jam<'a> {
    app: &'a App,
    pub holder: Transaction<'static, Postgres>,
    pub openers: Vec<Sending>,
}

impl<'a> Jam<'a> {
    /// Has as many statements under way as there may be, each in a chat of its own.
    pub async fn new(app: &'a App, user: &User) -> Self {
        let mut chats = Vec::new();
        for _ in 0..4 {
            let chat = user.chat("private_channel", &[]).await;
            user.say(chat, "first").await;
            chats.push(chat);
        }
        let holder = hold(&app.owner, "SELECT FROM outbox_shards FOR UPDATE").await;
        let workspace = workspace_of(app, user.id).await;
        let mut openers: Vec<Sending> = Vec::new();
        for chat in chats {
            let message = Message::new(user, chat, "opener");
            openers.push(message.sending(app, workspace));
        }
        for opener in &mut openers {
            assert!(futures::poll!(opener).is_pending());
        }
        Self { app, holder, openers }
    }

    /// Lets `messages` arrive, in this order.
    pub async fn arrive(&self, messages: &[Message]) -> Vec<Sending> {
        let mut sendings: Vec<Sending> = Vec::new();
        for message in messages {
            let workspace = workspace_of(self.app, message.sender).await;
            sendings.push(message.sending(self.app, workspace));
        }
        for sending in &mut sendings {
            // Who takes no part may be answered at once.
            if let Poll::Ready(result) = futures::poll!(&mut *sending) {
                *sending = Box::pin(std::future::ready(result));
            }
        }
        sendings
    }

    /// Lets everything go on.
    pub async fn open(self, sendings: Vec<Sending>) -> Vec<Result<Sent, Error>> {
        self.holder.rollback().await.unwrap();
        let (opened, sent) = tokio::join!(join_all(self.openers), join_all(sendings));
        for result in opened {
            assert!(result.unwrap().is_new);
        }
        sent
    }
}

pub async fn hold(pool: &PgPool, statement: &'static str) -> Transaction<'static, Postgres> {
    let mut holder = pool.begin().await.unwrap();
    sqlx::query(statement).execute(&mut *holder).await.unwrap();
    holder
}

pub async fn hold_chat(app: &App, chat: i64) -> Transaction<'static, Postgres> {
    let mut holder = app.owner.begin().await.unwrap();
    sqlx::query("SELECT FROM chats WHERE id = $1 FOR UPDATE")
        .bind(chat)
        .execute(&mut *holder)
        .await
        .unwrap();
    holder
}

pub async fn workspace_of(app: &App, user: i64) -> i64 {
    sqlx::query_scalar("SELECT workspace_id FROM users WHERE id = $1")
        .bind(user)
        .fetch_one(&app.owner)
        .await
        .unwrap()
}

/// Has everybody who will send say something first: only then do they take part.
pub async fn introduce(app: &App, messages: &[Message]) {
    let mut seen = HashSet::new();
    for message in messages {
        if seen.insert((message.sender, message.chat)) {
            let first = Message {
                content: "hello".to_owned(),
                key: None,
                ..message.clone()
            };
            // Not everybody may.
            drop(first.send(app).await);
        }
    }
}

/// Seq and content of a chat's messages but the introductions, in order.
pub async fn said(app: &App, chat: i64) -> Vec<(i64, String)> {
    sqlx::query_as("SELECT seq, content FROM messages WHERE chat_id = $1 AND content <> 'hello' ORDER BY seq")
        .bind(chat)
        .fetch_all(&app.owner)
        .await
        .unwrap()
}

/// How many of a chat's messages each statement stored: those of one have one transaction.
pub async fn statements(app: &App, chats: &[i64]) -> Vec<i64> {
    sqlx::query_scalar("SELECT count(*) FROM messages WHERE chat_id = ANY($1) AND content <> 'hello' GROUP BY xmin::text ORDER BY min(id)")
        .bind(chats)
        .fetch_all(&app.owner)
        .await
        .unwrap()
}

/// Events of all chats have the order of their chat, and their shards have no hole.
pub async fn assert_outbox_agrees(app: &App) {
    let rows: Vec<(i16, i64, i64, i64)> = sqlx::query_as(
        "SELECT shard, position, scope_id, (data #>> '{message,seq}')::bigint FROM outbox
         WHERE event_type = 'message.created' ORDER BY shard, position",
    )
    .fetch_all(&app.owner)
    .await
    .unwrap();
    let mut seqs = HashMap::new();
    for (shard, _, chat, seq) in rows {
        assert_eq!(i64::from(shard), chat % 16);
        let last = seqs.insert(chat, seq).unwrap_or(0);
        assert_eq!(seq, last + 1, "the outbox has the order of chat {chat}");
    }
    let holes: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM outbox_shards AS s
         WHERE s.last_position <> (SELECT count(*) FROM outbox AS o WHERE o.shard = s.shard)
            OR s.last_position <> (SELECT coalesce(max(o.position), 0) FROM outbox AS o WHERE o.shard = s.shard)",
    )
    .fetch_one(&app.owner)
    .await
    .unwrap();
    assert_eq!(holes, 0);
    let last_seqs: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT c.last_seq, (SELECT coalesce(max(m.seq), 0) FROM messages AS m WHERE m.chat_id = c.id) FROM chats AS c",
    )
    .fetch_all(&app.owner)
    .await
    .unwrap();
    assert!(last_seqs.iter().all(|(kept, found)| kept == found), "{last_seqs:?}");
}
