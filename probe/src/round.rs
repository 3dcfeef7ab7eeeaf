//! One round: sign in, send, receive, find, and leave nothing readable behind.

use std::time::{Duration, Instant};

use fechatter_core::problem::Code;
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{Client, Fault};
use crate::config::Config;
use crate::events::Events;
use crate::metrics::Metrics;

/// Name of the probe's chat.
const CHAT: &str = "Probe";
/// Messages that are looked through for what earlier rounds could not delete.
const LEFT_MAX: usize = 100;
/// Between two searches: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The steps of a round, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Connect and open a session.
    SignIn,
    /// Find the chat, or make it.
    Chat,
    /// Open the stream, up to its first event.
    Stream,
    /// From sending a message to its answer.
    Send,
    /// From sending it to its event on the stream.
    Receive,
    /// From sending it to the search that finds it.
    Find,
    /// Delete the message and what earlier rounds left, and end the session.
    Clean,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SignIn,
        Self::Chat,
        Self::Stream,
        Self::Send,
        Self::Receive,
        Self::Find,
        Self::Clean,
    ];

    /// Its name in metrics and log lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignIn => "sign_in",
            Self::Chat => "chat",
            Self::Stream => "stream",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Find => "find",
            Self::Clean => "clean",
        }
    }
}

/// Where a round failed, and why.
#[derive(Debug)]
pub struct Failure {
    pub step: Step,
    pub fault: Fault,
}

/// A session of the probe's.
struct Session {
    client: Client,
    token: SecretString,
}

/// Runs rounds.
#[derive(Debug)]
pub struct Probe {
    config: Config,
    metrics: Metrics,
    /// Whether the last round failed.
    is_failing: bool,
}

impl Probe {
    /// A probe that has not begun; telemetry must be up.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            metrics: Metrics::new(),
            is_failing: false,
        }
    }

    /// One round, counted and logged. It ends within the steps' longest times, whatever the platform does.
    pub async fn round(&mut self) -> Result<(), Failure> {
        let result = self.run().await;
        self.metrics.round(result.as_ref().err().map(|failure| failure.step));
        match &result {
            Ok(()) if self.is_failing => tracing::info!("the probe's rounds pass again"),
            Ok(()) => tracing::debug!("a round passed"),
            Err(Failure { step, fault }) => tracing::warn!(
                step = step.name(),
                reason = fault.reason,
                request_id = fault.request_id,
                trace_id_of_request = fault.trace_id,
                "a round of the probe failed"
            ),
        }
        self.is_failing = result.is_err();
        result
    }

    async fn run(&self) -> Result<(), Failure> {
        let session = self.step(Step::SignIn, Instant::now(), self.sign_in()).await?;
        let chat = self.step(Step::Chat, Instant::now(), session.chat()).await;
        let talked = match &chat {
            Ok(chat) => self.talk(&session, *chat).await,
            Err(_) => Ok(()),
        };
        // Also after a failure; then that is what is reported.
        let cleaning = session.clean(chat.as_ref().ok().copied());
        let cleaned = self.step(Step::Clean, Instant::now(), cleaning).await;
        chat.and(talked).and(cleaned)
    }

    async fn talk(&self, session: &Session, chat: i64) -> Result<(), Failure> {
        let open = async {
            let mut events = Events::open(&session.client, session.token.expose_secret()).await?;
            events.find(|_| true).await?;
            Ok(events)
        };
        let mut events = self.step(Step::Stream, Instant::now(), open).await?;
        // One word, so that a search for it finds this message alone.
        let word = format!("probe{}", Uuid::new_v4().simple());
        let sent_at = Instant::now();
        let id = self.step(Step::Send, sent_at, session.send(chat, &word)).await?;
        let receive = async {
            let is_it = |data: &Value| data["message"]["id"].as_i64() == Some(id);
            events
                .find(|event| event.kind == "message.created" && is_it(&event.data))
                .await
        };
        self.step(Step::Receive, sent_at, receive).await?;
        self.step(Step::Find, sent_at, session.find(id, &word)).await
    }

    /// Does a step within its time, which is measured from `since`.
    async fn step<T>(
        &self,
        step: Step,
        since: Instant,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Failure> {
        let timeout = self.config.timeout();
        let late = || Fault::new(format!("not done within {} s", timeout.as_secs()));
        let result = tokio::time::timeout(timeout, work)
            .await
            .unwrap_or_else(|_| Err(late()));
        if result.is_ok() {
            self.metrics.step(step, since.elapsed());
        }
        result.map_err(|fault| Failure { step, fault })
    }

    /// Opens a session; with an account that nobody has, makes it.
    async fn sign_in(&self) -> Result<Session, Fault> {
        let config = &self.config;
        let client = Client::new(config).await?;
        let password = config.password.expose_secret();
        let body = json!({"email": config.email, "password": password});
        let tokens = match client.call(Method::POST, "/api/signin", None, Some(&body)).await {
            Err(fault) if fault.code == Some(Code::InvalidCredentials) => {
                let body = json!({
                    "fullname": "Probe", "email": config.email, "password": password, "workspace": config.workspace,
                });
                let signed_up = client.call(Method::POST, "/api/signup", None, Some(&body)).await;
                signed_up.map_err(|why_not| Fault {
                    reason: format!("{}; and the account cannot be made: {}", fault.reason, why_not.reason),
                    ..fault
                })?
            }
            answer => answer?,
        };
        let token = tokens["access_token"].as_str();
        let token = token.ok_or_else(|| Fault::new("the answer holds no access token"))?;
        Ok(Session {
            client,
            token: token.into(),
        })
    }
}

impl Session {
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Fault> {
        let token = Some(self.token.expose_secret());
        self.client.call(method, path, token, body).await
    }

    /// The probe's chat: private, and nobody else in it.
    async fn chat(&self) -> Result<i64, Fault> {
        let chats = self.call(Method::GET, "/api/chat?limit=100", None).await?;
        let mut chats = chats["items"].as_array().into_iter().flatten();
        let ours = chats.find(|chat| chat["kind"] == "private_channel" && chat["name"] == CHAT);
        if let Some(chat) = ours {
            return id_of(chat);
        }
        let body = json!({"kind": "private_channel", "name": CHAT});
        id_of(&self.call(Method::POST, "/api/chat", Some(&body)).await?)
    }

    async fn send(&self, chat: i64, word: &str) -> Result<i64, Fault> {
        let body = json!({"content": format!("A round of the probe: {word}")});
        let path = format!("/api/chat/{chat}/messages");
        id_of(&self.call(Method::POST, &path, Some(&body)).await?)
    }

    /// Searches until the message is found.
    async fn find(&self, id: i64, word: &str) -> Result<(), Fault> {
        let mut pause = FIRST_PAUSE;
        loop {
            let path = format!("/api/search/messages?q={word}");
            let found = self.call(Method::GET, &path, None).await?;
            let mut hits = found["hits"].as_array().into_iter().flatten();
            if hits.any(|hit| hit["message"]["id"].as_i64() == Some(id)) {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    /// Deletes the messages that can be read, which are those of this round and of rounds that were interrupted, and logs out.
    async fn clean(&self, chat: Option<i64>) -> Result<(), Fault> {
        if let Some(chat) = chat {
            let messages = format!("/api/chat/{chat}/messages");
            let newest = self
                .call(Method::GET, &format!("{messages}?limit={LEFT_MAX}"), None)
                .await?;
            for message in newest["items"].as_array().into_iter().flatten() {
                if message["deleted_at"].is_null() {
                    let path = format!("{messages}/{}", id_of(message)?);
                    self.call(Method::DELETE, &path, None).await?;
                }
            }
        }
        self.call(Method::POST, "/api/logout", None).await.map(drop)
    }
}

fn id_of(answer: &Value) -> Result<i64, Fault> {
    answer["id"]
        .as_i64()
        .ok_or_else(|| Fault::new("the answer holds no id"))
}
