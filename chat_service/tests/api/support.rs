//! A running service and people who use it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use chat_service::AppState;
use chat_service::config::{Auth, Config, Passwords};
use chat_service::outbox_relay::{self, Wake};
use chat_service::services::inheritance::Inheritance;
use chat_service::services::messages::MessageService;
use chat_service::services::sessions::SessionService;
use chat_service::signing_keys::{self, SigningKeys};
use fechatter_core::health::Status;
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use service_runtime::{config, health, serve};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

pub const PASSWORD: &str = "correct horse battery";

/// One service on a database of its own.
pub struct App {
    pub url: String,
    /// The schema's owner, to look behind the API.
    pub owner: PgPool,
    pub keys: SigningKeys,
    pub sessions: SessionService,
    pub inheritance: Inheritance,
    pub messages: MessageService,
    pub http: reqwest::Client,
    shutdown: CancellationToken,
    _keys_dir: tempfile::TempDir,
}

impl Drop for App {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A signed-in user.
#[derive(Clone)]
pub struct User {
    url: String,
    http: reqwest::Client,
    pub id: i64,
    pub email: String,
    pub workspace: String,
    pub token: String,
    pub refresh_token: String,
}

/// Status and body of an answer; the body is `null` when there is none.
pub type Answer = (StatusCode, Value);

impl App {
    pub async fn start() -> Self {
        Self::on(dev::postgres::Server::shared()).await
    }

    pub async fn on(server: &dev::postgres::Server) -> Self {
        log_errors();
        let database = server.database().unwrap();
        let owner = PgPool::connect(&database.owner_url()).await.unwrap();
        migrations::MIGRATOR.run(&owner).await.unwrap();
        let keys_dir = tempfile::tempdir().unwrap();
        signing_keys::generate(keys_dir.path()).unwrap();
        let config = configuration(&database.url("chat"), keys_dir.path().to_owned());
        let pool = migrations::open(&database.url("chat"), 16).await.unwrap();
        let keys = SigningKeys::open(&config.auth.keys_dir, 60).unwrap();
        let state = AppState::new(&config, pool.clone(), Arc::new(Wake::default()), keys.clone()).unwrap();
        let (sessions, inheritance) = (state.sessions.clone(), state.users.inheritance.clone());
        let messages = state.messages.clone();
        let checks = health::Checks::default().with("postgres", Status::Down, move || migrations::check(pool.clone()));
        let router = chat_service::router(state, checks.routes(CancellationToken::new()));
        let listener = serve::bind(([127, 0, 0, 1], 0).into(), "listen").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        tokio::spawn(serve::serve(
            listener,
            router,
            shutdown.clone(),
            serve::Options::default(),
        ));
        Self {
            url,
            owner,
            keys,
            sessions,
            inheritance,
            messages,
            http: reqwest::Client::new(),
            shutdown,
            _keys_dir: keys_dir,
        }
    }

    /// Sends without a token.
    pub async fn anonymous(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        request(&self.http, method, &format!("{}{path}", self.url), None, body).await
    }

    /// Signs up the owner of a new workspace.
    pub async fn owner(&self) -> User {
        let number = next();
        self.sign_up(&format!("Workspace {number}"), None).await
    }

    /// Signs up a member by an invitation of `inviter`.
    pub async fn member(&self, inviter: &User) -> User {
        let (status, invitation) = inviter.post("/api/workspace/invitations", json!({})).await;
        assert_eq!(status, StatusCode::CREATED, "{invitation}");
        self.sign_up(&inviter.workspace, invitation["token"].as_str()).await
    }

    /// Signs up many members by one invitation.
    pub async fn members(&self, inviter: &User, count: usize) -> Vec<User> {
        let (status, invitation) = inviter
            .post("/api/workspace/invitations", json!({"max_uses": count}))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{invitation}");
        let token = invitation["token"].as_str();
        futures::future::join_all((0..count).map(|_| self.sign_up(&inviter.workspace, token))).await
    }

    /// A member whom the owner made an admin, signed in as one.
    pub async fn admin(&self, owner: &User) -> User {
        let member = self.member(owner).await;
        let (status, body) = owner
            .patch(&format!("/api/users/{}", member.id), json!({"role": "admin"}))
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
        self.sign_in(&member).await
    }

    /// Opens another session of a user.
    pub async fn sign_in(&self, user: &User) -> User {
        let body = json!({"email": user.email, "password": PASSWORD});
        let (status, tokens) = self.anonymous(Method::POST, "/api/signin", Some(body)).await;
        assert_eq!(status, StatusCode::OK, "{tokens}");
        self.user(&tokens, &user.email, &user.workspace)
    }

    async fn sign_up(&self, workspace: &str, invitation: Option<&str>) -> User {
        let email = format!("user{}@example.org", next());
        let body = json!({
            "fullname": "Test User", "email": email, "password": PASSWORD,
            "workspace": workspace, "invitation": invitation,
        });
        let (status, tokens) = self.anonymous(Method::POST, "/api/signup", Some(body)).await;
        assert_eq!(status, StatusCode::CREATED, "{tokens}");
        self.user(&tokens, &email, workspace)
    }

    fn user(&self, tokens: &Value, email: &str, workspace: &str) -> User {
        User {
            url: self.url.clone(),
            http: self.http.clone(),
            id: tokens["user"]["id"].as_i64().unwrap(),
            email: email.to_owned(),
            workspace: workspace.to_owned(),
            token: tokens["access_token"].as_str().unwrap().to_owned(),
            refresh_token: tokens["refresh_token"].as_str().unwrap().to_owned(),
        }
    }

    /// The outbox's events of a chat or user in order, as (type, data).
    pub async fn events(&self, scope_id: i64) -> Vec<(String, Value)> {
        sqlx::query_as("SELECT event_type, data::jsonb FROM outbox WHERE scope_id = $1 ORDER BY shard, position")
            .bind(scope_id)
            .fetch_all(&self.owner)
            .await
            .unwrap()
    }
}

/// What a handler hides from the client is said on standard output.
fn log_errors() {
    static LOG: OnceLock<Option<observability::Telemetry>> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = observability::LogConfig {
            filter: "error,request=off".to_owned(),
            ..observability::LogConfig::default()
        };
        observability::init("chat_service_tests", &log).ok()
    });
}

fn next() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn configuration(url: &str, keys_dir: std::path::PathBuf) -> Config {
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 1).into(),
        drain_seconds: 1,
        drain_delay_ms: 0,
        log: observability::LogConfig::default(),
        database: config::Database {
            url: SecretString::from(url),
            max_connections: 16,
        },
        nats: config::Nats::default(),
        auth: Auth {
            keys_dir,
            issuer: "fechatter".into(),
            audience: "fechatter".into(),
            access_seconds: 900,
            refresh_seconds: 86_400,
            session_seconds: 864_000,
            key_activation_seconds: 60,
        },
        passwords: Passwords::default(),
        outbox: outbox_relay::Config::default(),
    }
}

impl User {
    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        request(
            &self.http,
            method,
            &format!("{}{path}", self.url),
            Some(&self.token),
            body,
        )
        .await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }

    /// Makes a chat and returns its id.
    pub async fn chat(&self, kind: &str, others: &[&User]) -> i64 {
        let ids: Vec<i64> = others.iter().map(|user| user.id).collect();
        let name = kind.ends_with("channel").then(|| format!("{kind} {}", next()));
        let (status, chat) = self
            .post("/api/chat", json!({"kind": kind, "name": name, "member_ids": ids}))
            .await;
        assert!(status.is_success(), "{chat}");
        chat["id"].as_i64().unwrap()
    }

    /// Sends a message and returns it.
    pub async fn say(&self, chat: i64, content: &str) -> Value {
        let (status, message) = self
            .post(&format!("/api/chat/{chat}/messages"), json!({"content": content}))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{message}");
        message
    }
}

/// Sends one request.
pub async fn request(
    http: &reqwest::Client,
    method: Method,
    url: &str,
    token: Option<&str>,
    body: Option<Value>,
) -> Answer {
    let mut request = http.request(method, url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    answer(request).await
}

/// Sends a prepared request; the document must know the answer.
pub async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let (http, request) = request.build_split();
    let request = request.unwrap();
    let (method, path) = (request.method().clone(), request.url().path().to_owned());
    let response = http.execute(request).await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    dev::documented::assert_documented(method.as_str(), &path, status.as_u16(), &body);
    (status, body)
}

/// Asserts that an answer is a problem with this status and code.
#[track_caller]
pub fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.0.as_u16(), answer.1["code"].as_str()),
        (status, Some(code)),
        "{}",
        answer.1
    );
    assert!(answer.1["request_id"].is_string(), "{}", answer.1);
}
