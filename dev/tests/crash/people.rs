//! The people of a run, and how each talks to the gateway: as a patient client would.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dev::platform::Platform;
use reqwest::Method;
use serde_json::{Value, json};

use crate::evidence::{Absence, Answered, Change};

const PASSWORD: &str = "correct horse battery";
/// Longest time that the platform may need for one answer, whatever is killed meanwhile.
const PATIENCE: Duration = Duration::from_mins(3);
/// Longest wait for one attempt.
const ATTEMPT: Duration = Duration::from_secs(10);

/// What all clients count, and what they tell the verdict.
#[derive(Debug, Default)]
pub struct Ledger {
    pub sends: AtomicU64,
    /// Attempts after the first of any request.
    pub retries: AtomicU64,
    /// Sends that a retry found done already (200 instead of 201).
    pub found_done: AtomicU64,
    pub edits: AtomicU64,
    pub deletions: AtomicU64,
    pub member_changes: AtomicU64,
    pub connects: AtomicU64,
    pub tickets: AtomicU64,
    pub resumed: AtomicU64,
    /// Events that came from before a reconnection.
    pub replayed: AtomicU64,
    pub gaps: Mutex<BTreeMap<String, u64>>,
    pub delivered: AtomicU64,
    /// Edits and deletions in streams.
    pub changes_delivered: AtomicU64,
    pub changes: Mutex<Vec<Change>>,
    pub answered: Mutex<Vec<Answered>>,
    pub absences: Mutex<Vec<Absence>>,
    pub wrong_answers: Mutex<Vec<String>>,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a counter says.
pub fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Somebody with an account.
#[derive(Debug)]
pub struct Person {
    pub name: String,
    pub id: i64,
    pub http: reqwest::Client,
    pub url: String,
    email: String,
    token: Mutex<String>,
}

/// A request that is repeated until it is answered.
#[derive(Debug)]
pub struct Request<'a> {
    pub method: Method,
    pub path: &'a str,
    pub key: Option<&'a str>,
    pub body: Option<Value>,
    /// Statuses that end it well.
    pub wanted: &'a [u16],
}

impl Person {
    /// Signs up: the owner of a new workspace, or by invitation.
    pub async fn sign_up(
        platform: &Platform,
        name: &str,
        workspace: &str,
        invitation: Option<&str>,
    ) -> Result<Self, String> {
        let pem = std::fs::read(platform.ca()).map_err(|error| format!("certificate authority: {error}"))?;
        let ca = reqwest::Certificate::from_pem(&pem).map_err(|error| error.to_string())?;
        let http = reqwest::Client::builder()
            .tls_certs_only([ca])
            .connect_timeout(Duration::from_secs(2))
            .build()
            .map_err(|error| error.to_string())?;
        let mut person = Self {
            name: name.to_owned(),
            id: 0,
            http,
            url: platform.url(),
            email: format!("{name}@{workspace}.example.org"),
            token: Mutex::default(),
        };
        let body = json!({
            "fullname": name, "email": person.email, "password": PASSWORD, "workspace": workspace, "invitation": invitation,
        });
        let (status, tokens) = person.attempt(&Method::POST, "/api/signup", None, Some(&body)).await?;
        person.id = tokens["user"]["id"]
            .as_i64()
            .ok_or(format!("sign up: {status} {tokens}"))?;
        person.keep_token(&tokens);
        Ok(person)
    }

    pub fn token(&self) -> String {
        self.token.lock().expect("no panic holds it").clone()
    }

    fn keep_token(&self, tokens: &Value) {
        if let Some(token) = tokens["access_token"].as_str() {
            token.clone_into(&mut self.token.lock().expect("no panic holds it"));
        }
    }

    /// A new token; whoever needs it sees by the next answer whether that worked.
    pub async fn sign_in(&self) {
        let body = json!({"email": self.email, "password": PASSWORD});
        if let Ok((200, tokens)) = self.attempt(&Method::POST, "/api/signin", None, Some(&body)).await {
            self.keep_token(&tokens);
        }
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.url));
        request = request.timeout(ATTEMPT);
        let token = self.token();
        if !token.is_empty() && !path.starts_with("/api/sign") {
            request = request.bearer_auth(token);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Repeats a request until it is answered with a wanted status; one that no retry can mend is an error.
    pub async fn call(&self, ledger: &Ledger, request: Request<'_>) -> Result<(u16, Value), String> {
        let started = Instant::now();
        let what = || format!("{}: {} {}", self.name, request.method, request.path);
        let mut pause = Duration::from_millis(50);
        loop {
            let last = self
                .attempt(&request.method, request.path, request.key, request.body.as_ref())
                .await;
            match &last {
                Ok((status, body)) if request.wanted.contains(status) => return Ok((*status, body.clone())),
                Ok((401, _)) => self.sign_in().await,
                Ok((408 | 425 | 429 | 500..=599, _)) | Err(_) => {}
                Ok((status, body)) => return Err(format!("{}: {status} {body}", what())),
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("{}: no answer in {PATIENCE:?}, last {last:?}", what()));
            }
            count(&ledger.retries);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// [`Self::call`] with GET for 200.
    pub async fn get(&self, ledger: &Ledger, path: &str) -> Result<Value, String> {
        let request = Request {
            method: Method::GET,
            path,
            key: None,
            body: None,
            wanted: &[200],
        };
        self.call(ledger, request).await.map(|(_, body)| body)
    }

    /// [`Self::call`] with POST.
    pub async fn post(&self, ledger: &Ledger, path: &str, body: Value, wanted: &[u16]) -> Result<Value, String> {
        let request = Request {
            method: Method::POST,
            path,
            key: None,
            body: Some(body),
            wanted,
        };
        self.call(ledger, request).await.map(|(_, body)| body)
    }
}
