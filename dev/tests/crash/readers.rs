//! A device that reads the stream of events as the documentation says: by cursor, and by the API after a `gap`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;
use tokio::sync::watch;

use crate::evidence::{Device, Observation};
use crate::people::{Ledger, Person, count};

/// A stream that says nothing for longer is taken for broken: heartbeats come every 2 to 3 s in this run.
const SILENCE: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(100);

/// What the devices are told when nothing is sent any more.
#[derive(Debug, Clone, Default)]
pub struct Finish {
    /// The last `seq` of each chat that each user is a member of.
    pub ends: BTreeMap<i64, BTreeMap<i64, i64>>,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// A device.
pub struct Reader {
    pub person: Arc<Person>,
    pub name: String,
    pub random: StdRng,
    pub ledger: Arc<Ledger>,
    pub finish: watch::Receiver<Finish>,
    /// Devices that still wait for something.
    pub waiting: Arc<AtomicUsize>,
    log: Vec<Observation>,
    cursor: Option<String>,
    /// What is known of each chat.
    high: BTreeMap<i64, i64>,
    is_done: bool,
}

/// One event of the stream.
struct Frame {
    kind: String,
    data: Value,
}

/// Why reading a stream ended.
enum End {
    /// Come again.
    Broken,
    /// The token is at its end.
    Reauth,
    /// Nothing more is to come.
    Finished,
}

impl Reader {
    pub fn new(
        person: Arc<Person>,
        name: &str,
        random: StdRng,
        ledger: Arc<Ledger>,
        finish: watch::Receiver<Finish>,
        waiting: Arc<AtomicUsize>,
    ) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self {
            person,
            name: name.to_owned(),
            random,
            ledger,
            finish,
            waiting,
            log: Vec::new(),
            cursor: None,
            high: BTreeMap::new(),
            is_done: false,
        }
    }

    /// Reads until everything that is due has come, to all devices.
    pub async fn run(mut self) -> Device {
        loop {
            match self.read_stream().await {
                Ok(End::Finished) => break,
                Ok(End::Broken) => {}
                Ok(End::Reauth) => self.person.sign_in().await,
                Err(error) => {
                    let mut wrong = self.ledger.wrong_answers.lock().expect("no panic holds it");
                    wrong.push(format!("{}: {error}", self.name));
                    break;
                }
            }
            if self.is_finished() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        if !self.is_done {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        Device {
            name: self.name,
            user: self.person.id,
            log: self.log,
        }
    }

    /// Whether this device and all others have what is due, or time is over.
    fn is_finished(&mut self) -> bool {
        let finish = self.finish.borrow().clone();
        let Some(deadline) = finish.deadline else { return false };
        let empty = BTreeMap::new();
        let mut due = finish.ends.get(&self.person.id).unwrap_or(&empty).iter();
        if !self.is_done && due.all(|(chat, end)| self.high.get(chat).is_some_and(|high| high >= end)) {
            self.is_done = true;
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.waiting.load(Ordering::SeqCst) == 0 || Instant::now() > deadline
    }

    async fn read_stream(&mut self) -> Result<End, String> {
        let person = Arc::clone(&self.person);
        let mut request = person
            .http
            .get(format!("{}/events", person.url))
            .bearer_auth(person.token());
        if let Some(cursor) = &self.cursor {
            request = request.header("last-event-id", cursor);
        }
        let Ok(Ok(mut response)) = tokio::time::timeout(SILENCE, request.send()).await else {
            return Ok(End::Broken);
        };
        match response.status().as_u16() {
            200 => count(&self.ledger.connects),
            401 => return Ok(End::Reauth),
            429 | 500..=599 => return Ok(End::Broken),
            status => return Err(format!("/events: {status}")),
        }
        // Some devices go in and out all the time, as telephones do.
        let mut stay = self.random.random_range(20..400);
        let mut buffer = Vec::new();
        let mut is_first = true;
        loop {
            while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = buffer.drain(..end + 2).collect();
                let Some(frame) = self.parse(&block) else { continue };
                if std::mem::take(&mut is_first) && !matches!(frame.kind.as_str(), "ready" | "resumed" | "gap") {
                    return Err(format!("the first event is {}", frame.kind));
                }
                if frame.kind == "reauth" {
                    return Ok(End::Reauth);
                }
                self.take(&frame).await?;
                stay -= 1;
            }
            if self.is_finished() {
                return Ok(End::Finished);
            }
            if stay < 0 && self.finish.borrow().deadline.is_none() {
                return Ok(End::Broken);
            }
            let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE, response.chunk()).await else {
                return Ok(End::Broken);
            };
            buffer.extend_from_slice(&chunk);
        }
    }

    /// One block of lines; an `id:` moves the cursor, with or without data.
    fn parse(&mut self, block: &[u8]) -> Option<Frame> {
        let text = std::str::from_utf8(block).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let Some(id) = field("id:") {
            self.cursor = Some(id.to_owned());
        }
        Some(Frame {
            kind: field("event:")?.to_owned(),
            data: serde_json::from_str(field("data:")?).ok()?,
        })
    }

    async fn take(&mut self, frame: &Frame) -> Result<(), String> {
        let data = &frame.data;
        let id_of = |value: &Value| value["id"].as_i64();
        match frame.kind.as_str() {
            "ready" => self.reload().await?,
            "gap" => {
                let reason = data["reason"].as_str().unwrap_or("none").to_owned();
                *self
                    .ledger
                    .gaps
                    .lock()
                    .expect("no panic holds it")
                    .entry(reason)
                    .or_default() += 1;
                self.reload().await?;
            }
            "resumed" => {
                count(&self.ledger.resumed);
                let replayed = data["count"].as_u64().unwrap_or_default();
                self.ledger.replayed.fetch_add(replayed, Ordering::Relaxed);
            }
            "message.created" => {
                let message = &data["message"];
                let number = |name: &str| message[name].as_i64().ok_or(format!("no {name} in {data}"));
                let (chat, seq, id) = (number("chat_id")?, number("seq")?, number("id")?);
                count(&self.ledger.delivered);
                let at = Instant::now();
                self.log.push(Observation::Message { chat, seq, id, at });
                let high = self.high.entry(chat).or_default();
                *high = seq.max(*high);
            }
            kind => {
                let chat = data["message"]["chat_id"]
                    .as_i64()
                    .or_else(|| id_of(&data["chat"]))
                    .or_else(|| data["chat_id"].as_i64());
                let Some(chat) = chat else { return Ok(()) };
                self.log.push(Observation::Other {
                    chat,
                    kind: kind.to_owned(),
                });
                let concerns_me = kind == "chat.created" || data["member"]["user_id"].as_i64() == Some(self.person.id);
                if concerns_me && kind != "member.removed" {
                    self.reload_chat(chat).await?;
                }
            }
        }
        Ok(())
    }

    /// What a client does that was told to reload.
    async fn reload(&mut self) -> Result<(), String> {
        let chats = self.person.get(&self.ledger, "/api/chat?limit=100").await?;
        let ids: BTreeSet<i64> = chats["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|chat| chat["id"].as_i64())
            .collect();
        for chat in ids {
            self.reload_chat(chat).await?;
        }
        Ok(())
    }

    async fn reload_chat(&mut self, chat: i64) -> Result<(), String> {
        let mut upto = self.high.get(&chat).copied().unwrap_or_default();
        loop {
            let path = format!("/api/chat/{chat}/messages?after={upto}&limit=100");
            let request = crate::people::Request {
                method: reqwest::Method::GET,
                path: &path,
                key: None,
                body: None,
                // 403 and 404: removed meanwhile.
                wanted: &[200, 403, 404],
            };
            let (status, page) = self.person.call(&self.ledger, request).await?;
            if status != 200 {
                return Ok(());
            }
            for message in page["items"].as_array().into_iter().flatten() {
                let number = |name: &str| message[name].as_i64().ok_or(format!("{path}: no {name} in {message}"));
                let (seq, id) = (number("seq")?, number("id")?);
                if seq != upto + 1 {
                    return Err(format!("{path}: {seq} comes after {upto}"));
                }
                self.log.push(Observation::Fetched { chat, seq, id });
                upto = seq;
            }
            if page["has_more"] != true {
                break;
            }
        }
        self.high.insert(chat, upto);
        self.log.push(Observation::Reloaded { chat, upto });
        Ok(())
    }
}
