//! A whole small world for one test: PostgreSQL, NATS with the stream as chat_service makes it, a JWKS endpoint, and the
//! indexer as the real process.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use dev::child::{Process, Program};
use dev::postgres::TestDatabase;
use fechatter_core::chat::ChatKind;
use fechatter_core::events::{
    Event, EventType, HEADER_EPOCH, HEADER_MESSAGE_ID, HEADER_POSITION, HEADER_SHARD, METADATA_EPOCH, STREAM, SUBJECTS,
    shard_of,
};
use fechatter_core::token::Claims;
use fechatter_core::user::Role;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// Longest wait for a state that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A user of the world.
#[derive(Debug, Clone, Copy)]
pub struct User {
    pub id: i64,
    pub workspace: i64,
}

/// A chat of the world.
#[derive(Debug, Clone, Copy)]
pub struct Chat {
    pub id: i64,
    pub workspace: i64,
    pub kind: ChatKind,
}

/// A running world.
pub struct World {
    pub pool: PgPool,
    database: TestDatabase,
    pub nats: dev::nats::Server,
    context: jetstream::Context,
    pub epoch: Uuid,
    positions: HashMap<i16, i64>,
    signing: Vec<u8>,
    jwks_url: String,
    pub folder: tempfile::TempDir,
    port: u16,
    pub admin_port: u16,
    pub indexer: Option<Process>,
    pub http: reqwest::Client,
    settings: Vec<(String, String)>,
}

impl World {
    /// A world with an indexer that runs.
    pub async fn new() -> Self {
        let mut world = Self::without_indexer().await;
        world.start().await;
        world
    }

    /// A world whose indexer is not started yet.
    pub async fn without_indexer() -> Self {
        Self::on(dev::postgres::Server::shared()).await
    }

    /// Such a world on a PostgreSQL server of the test's own.
    pub async fn on(server: &dev::postgres::Server) -> Self {
        let database = server.database().expect("a database");
        let pool = PgPool::connect(&database.owner_url()).await.expect("a connection");
        migrations::MIGRATOR.run(&pool).await.expect("the schema");
        let nats = dev::nats::Server::temporary().expect("a NATS server");
        let client = async_nats::connect(nats.url()).await.expect("a NATS connection");
        let pair = Ed25519KeyPair::generate().expect("a key");
        let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let jwks =
            json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "k1", "x": x}]});
        let mut world = Self {
            pool,
            database,
            nats,
            context: jetstream::new(client),
            epoch: Uuid::now_v7(),
            positions: HashMap::new(),
            signing: pair.to_pkcs8().expect("a key").as_ref().to_vec(),
            jwks_url: serve_jwks(jwks).await,
            folder: dev::scratch::folder().expect("a folder"),
            port: dev::ports::free().expect("a port"),
            admin_port: dev::ports::free().expect("a port"),
            indexer: None,
            http: reqwest::Client::new(),
            settings: Vec::new(),
        };
        world.make_stream().await;
        world
    }

    /// Sets a variable of the indexer, without its prefix.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings
            .push((format!("FECHATTER_INDEXER__{name}"), value.to_owned()));
    }

    /// Makes the stream, with a history of its own.
    pub async fn make_stream(&mut self) {
        self.epoch = Uuid::now_v7();
        self.positions.clear();
        self.context
            .create_stream(stream::Config {
                name: STREAM.to_owned(),
                subjects: vec![SUBJECTS.to_owned()],
                metadata: HashMap::from([(METADATA_EPOCH.to_owned(), self.epoch.to_string())]),
                ..stream::Config::default()
            })
            .await
            .expect("the stream");
    }

    /// Destroys the stream with everything in it, consumers included.
    pub async fn destroy_stream(&self) {
        self.context.delete_stream(STREAM).await.expect("the stream is gone");
    }

    pub fn index_folder(&self) -> PathBuf {
        self.folder.path().join("index")
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut environment: Vec<(String, String)> = [
            ("LISTEN", format!("127.0.0.1:{}", self.port)),
            ("ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin_port)),
            ("DATABASE__URL", self.database.url("indexer")),
            ("NATS__URL", self.nats.url()),
            ("AUTH__JWKS_URL", self.jwks_url.clone()),
            ("ENGINE__PATH", self.index_folder().display().to_string()),
            ("ENGINE__WRITER_MEMORY_MB", "15".to_owned()),
            ("DRAIN_SECONDS", "2".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (format!("FECHATTER_INDEXER__{name}"), value))
        .collect();
        environment.extend(self.settings.clone());
        environment
    }

    fn program(&self, args: &[&str], log: &str) -> Program {
        Program {
            name: "indexer".to_owned(),
            path: PathBuf::from(env!("CARGO_BIN_EXE_indexer")),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: self.environment(),
            log: self.folder.path().join(log),
            user: None,
            dir: self.folder.path().to_owned(),
        }
    }

    /// Starts the indexer and waits until it is ready.
    pub async fn start(&mut self) {
        self.indexer = Some(Process::start(&self.program(&[], "indexer.log")).expect("the indexer"));
        let url = format!("http://127.0.0.1:{}/ready", self.admin_port);
        self.eventually("the indexer to be ready", async || {
            self.http
                .get(&url)
                .send()
                .await
                .is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.indexer.take().expect("a running indexer").kill();
    }

    /// Runs a command of the indexer to its end and returns its output.
    pub async fn command(&self, args: &[&str]) -> String {
        let mut process = Process::start(&self.program(args, "command.log")).expect("the command");
        tokio::task::spawn_blocking(move || {
            let status = dev::wait::until(PATIENCE, "the command to end", || process.ended()).expect("an end");
            assert!(status.success(), "{}", process.log_tail());
            process.log_tail()
        })
        .await
        .expect("a result")
    }

    /// The end of the indexer's log.
    pub fn log(&self) -> String {
        dev::child::log_tail(&self.folder.path().join("indexer.log"))
    }

    /// Waits for a state that must come, with a bound.
    pub async fn eventually(&self, what: &str, state: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !state().await {
            assert!(
                tokio::time::Instant::now() < deadline,
                "waited in vain for {what}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    // What chat_service does.

    pub async fn workspace(&self, name: &str) -> User {
        let mut transaction = self.pool.begin().await.expect("a transaction");
        let (workspace, id): (i64, i64) = sqlx::query_as(
            "WITH ids AS (SELECT nextval('workspaces_id_seq') AS w, nextval('users_id_seq') AS u),
                  made AS (INSERT INTO workspaces (id, name, owner_id) OVERRIDING SYSTEM VALUE
                           SELECT w, $1, u FROM ids)
             INSERT INTO users (id, workspace_id, fullname, email, password_hash, role) OVERRIDING SYSTEM VALUE
             SELECT u, w, 'Owner of ' || $1, 'owner@' || $1 || '.test', 'x', 'owner' FROM ids
             RETURNING workspace_id, id",
        )
        .bind(name)
        .fetch_one(&mut *transaction)
        .await
        .expect("a workspace");
        transaction.commit().await.expect("a commit");
        User { id, workspace }
    }

    pub async fn user(&self, workspace: i64, fullname: &str) -> User {
        let email = format!("{}@users.test", Uuid::now_v7().simple());
        let id = sqlx::query_scalar(
            "INSERT INTO users (workspace_id, fullname, email, password_hash) VALUES ($1, $2, $3, 'x') RETURNING id",
        )
        .bind(workspace)
        .bind(fullname)
        .bind(email)
        .fetch_one(&self.pool)
        .await
        .expect("a user");
        User { id, workspace }
    }

    pub async fn chat(&self, kind: ChatKind, name: &str, members: &[User]) -> Chat {
        let owner = members[0];
        let name = kind.needs_name().then(|| name.to_owned());
        let mut transaction = self.pool.begin().await.expect("a transaction");
        let pair =
            (kind == ChatKind::Single).then(|| (members[0].id.min(members[1].id), members[0].id.max(members[1].id)));
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO chats (workspace_id, kind, name, owner_id, pair_low, pair_high)
             VALUES ($1, $2::chat_kind, $3, $4, $5, $6) RETURNING id",
        )
        .bind(owner.workspace)
        .bind(kind.as_str())
        .bind(name)
        .bind(owner.id)
        .bind(pair.map(|pair| pair.0))
        .bind(pair.map(|pair| pair.1))
        .fetch_one(&mut *transaction)
        .await
        .expect("a chat");
        for member in members {
            sqlx::query("INSERT INTO chat_members (chat_id, user_id, workspace_id) VALUES ($1, $2, $3)")
                .bind(id)
                .bind(member.id)
                .bind(member.workspace)
                .execute(&mut *transaction)
                .await
                .expect("a member");
        }
        transaction.commit().await.expect("a commit");
        Chat {
            id,
            workspace: owner.workspace,
            kind,
        }
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

    /// Events that were delivered or wait, and are not acknowledged yet.
    pub async fn unacknowledged(&self) -> u64 {
        match self
            .context
            .get_stream(STREAM)
            .await
            .expect("the stream")
            .consumer_info("indexer")
            .await
        {
            Ok(info) => info.num_pending + info.num_ack_pending as u64,
            Err(_) => u64::MAX,
        }
    }

    /// Takes every waiting event as the indexer would, and gives it back at once.
    pub async fn take_and_give_back(&self) {
        use futures::StreamExt;
        let stream = self.context.get_stream(STREAM).await.expect("the stream");
        let consumer: jetstream::consumer::PullConsumer = stream.get_consumer("indexer").await.expect("the consumer");
        let mut messages = consumer.fetch().max_messages(100).messages().await.expect("messages");
        let mut taken = 0;
        while let Some(message) = messages.next().await {
            let message = message.expect("a message");
            message
                .ack_with(jetstream::AckKind::Nak(None))
                .await
                .expect("given back");
            taken += 1;
        }
        assert!(taken > 0, "no event was waiting");
        self.context.client().flush().await.expect("a flush");
    }

    /// Waits until everything published is acknowledged.
    pub async fn settled(&self) {
        self.eventually("all events to be acknowledged", async || {
            self.unacknowledged().await == 0
        })
        .await;
    }

    /// Waits until the indexer has its consumer and its first rebuild is over.
    pub async fn settled_after_start(&self) {
        let url = format!("http://127.0.0.1:{}/reindex", self.admin_port);
        self.settled().await;
        self.eventually("the first rebuild", async || {
            let progress: Value = self
                .http
                .get(&url)
                .send()
                .await
                .expect("an answer")
                .json()
                .await
                .expect("JSON");
            progress["state"] == "done"
        })
        .await;
    }

    // What a client does.

    pub fn token(&self, user: User) -> String {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claims = Claims {
            iss: "fechatter".to_owned(),
            aud: "fechatter".to_owned(),
            sub: user.id.to_string(),
            ws: user.workspace.into(),
            role: Role::Member,
            sid: Uuid::now_v7(),
            jti: Uuid::now_v7(),
            iat: now,
            exp: now + 900,
        };
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
        header.kid = Some("k1".to_owned());
        let key = jsonwebtoken::EncodingKey::from_ed_der(&self.signing);
        jsonwebtoken::encode(&header, &claims, &key).expect("a token")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Status and body of a search.
    pub async fn ask(&self, user: User, params: &[(&str, &str)]) -> (u16, Value) {
        let answer = self
            .http
            .get(self.url("/api/search/messages"))
            .query(params)
            .bearer_auth(self.token(user))
            .send()
            .await
            .expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    /// The ids found, sorted.
    pub async fn find(&self, user: User, q: &str) -> Vec<i64> {
        let (status, body) = self.ask(user, &[("q", q)]).await;
        assert_eq!(status, 200, "{body}");
        let mut ids: Vec<i64> = body["hits"]
            .as_array()
            .expect("hits")
            .iter()
            .map(|hit| hit["message"]["id"].as_i64().expect("an id"))
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Waits until a search finds exactly this.
    pub async fn finds(&self, user: User, q: &str, expected: &[i64]) {
        self.eventually(&format!("{q:?} to find {expected:?}"), async || {
            self.find(user, q).await == expected
        })
        .await;
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

async fn serve_jwks(jwks: Value) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/jwks.json", listener.local_addr().expect("an address"));
    let router = axum::Router::new().route(
        "/jwks.json",
        axum::routing::get(move || {
            let jwks = jwks.clone();
            async move { axum::Json(jwks) }
        }),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}
