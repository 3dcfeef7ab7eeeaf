//! A device that reads the stream of events as the documentation says: by cursor, and by the API after a `gap`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fechatter_core::events::MessageEvent;
use fechatter_core::wire::MessageView;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::evidence::{Device, Observation, Screen};
use crate::people::{Ledger, Person, count};

/// A stream that says nothing for longer is taken for broken: heartbeats come every 2 to 3 s in this run.
const SILENCE: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(100);

/// What the devices are told when nothing is sent any more.
#[derive(Debug, Clone, Default)]
pub struct Finish {
    /// The last `seq` of each chat that each user is a member of.
    pub ends: Arc<BTreeMap<i64, BTreeMap<i64, i64>>>,
    /// What the messages of the chats that each user never leaves say at the end.
    pub screens: Arc<BTreeMap<i64, Screen>>,
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
    /// Reads as a browser's `EventSource` does: with a ticket, which its reconnections use again.
    pub uses_tickets: bool,
    ticket: Option<String>,
    log: Vec<Observation>,
    cursor: Option<String>,
    /// What is known of each chat.
    high: BTreeMap<i64, i64>,
    /// What is shown, and of when it is.
    shown: BTreeMap<i64, BTreeMap<i64, Shown>>,
    is_done: bool,
}

/// A message as it is shown.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    is_deleted: bool,
    edited_at: Option<OffsetDateTime>,
    content: Option<String>,
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
            uses_tickets: false,
            ticket: None,
            log: Vec::new(),
            cursor: None,
            high: BTreeMap::new(),
            shown: BTreeMap::new(),
            is_done: false,
        }
    }

    /// The same device with tickets instead of tokens.
    pub fn with_tickets(self) -> Self {
        Self {
            uses_tickets: true,
            ..self
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
        let texts = |chat: BTreeMap<i64, Shown>| chat.into_iter().map(|(id, shown)| (id, shown.content)).collect();
        Device {
            name: self.name,
            user: self.person.id,
            log: self.log,
            screen: self
                .shown
                .into_iter()
                .map(|(chat, shown)| (chat, texts(shown)))
                .collect(),
        }
    }

    /// Whether this device and all others have what is due, or time is over.
    fn is_finished(&mut self) -> bool {
        let finish = self.finish.borrow().clone();
        let Some(deadline) = finish.deadline else { return false };
        if !self.is_done && self.has_all(&finish) {
            self.is_done = true;
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.waiting.load(Ordering::SeqCst) == 0 || Instant::now() > deadline
    }

    fn has_all(&self, finish: &Finish) -> bool {
        let mut ends = finish.ends.get(&self.person.id).into_iter().flatten();
        let mut screens = finish.screens.get(&self.person.id).into_iter().flatten();
        let is_up_to = |(chat, end): (&i64, &i64)| self.high.get(chat).is_some_and(|high| high >= end);
        let is_shown = |(chat, due): (&i64, &BTreeMap<i64, Option<String>>)| {
            let shown = self.shown.get(chat);
            due.iter().all(|(id, content)| {
                let shown = shown.and_then(|shown| shown.get(id));
                shown.is_some_and(|shown| shown.content == *content)
            })
        };
        ends.all(is_up_to) && screens.all(is_shown)
    }

    async fn read_stream(&mut self) -> Result<End, String> {
        let person = Arc::clone(&self.person);
        let url = format!("{}/events", person.url);
        let mut request = if self.uses_tickets {
            person.http.get(format!("{url}?ticket={}", self.ticket().await?))
        } else {
            person.http.get(url).bearer_auth(person.token())
        };
        if let Some(cursor) = &self.cursor {
            request = request.header("last-event-id", cursor);
        }
        // Bound by its first use: without a cursor there is no second.
        let ticket = self.ticket.take();
        let Ok(Ok(mut response)) = tokio::time::timeout(SILENCE, request.send()).await else {
            return Ok(End::Broken);
        };
        match response.status().as_u16() {
            200 => count(&self.ledger.connects),
            // The ticket's time was over, or its bucket was lost: the next one is of a token that works.
            401 if self.uses_tickets => return Ok(End::Broken),
            401 => return Ok(End::Reauth),
            429 | 500..=599 => return Ok(End::Broken),
            status => return Err(format!("/events: {status}")),
        }
        self.ticket = ticket;
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
                    self.ticket = None;
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

    /// The ticket of this stream, or a new one.
    async fn ticket(&mut self) -> Result<String, String> {
        if let Some(ticket) = self.ticket.clone().filter(|_| self.cursor.is_some()) {
            return Ok(ticket);
        }
        let made = self
            .person
            .post(&self.ledger, "/events/ticket", json!({}), &[201])
            .await?;
        count(&self.ledger.tickets);
        let ticket = made["ticket"]
            .as_str()
            .ok_or(format!("no ticket in {made}"))?
            .to_owned();
        self.ticket = Some(ticket.clone());
        Ok(ticket)
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
            kind @ ("message.created" | "message.updated" | "message.deleted") => {
                let event: MessageEvent =
                    serde_json::from_value(data.clone()).map_err(|error| format!("{kind}: {error} in {data}"))?;
                self.see(kind == "message.created", &event);
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
                    let known = self.high.get(&chat).copied().unwrap_or_default();
                    self.reload_chat(chat, known).await?;
                }
            }
        }
        Ok(())
    }

    fn see(&mut self, is_new: bool, event: &MessageEvent) {
        let (chat, seq, id) = (event.message.chat_id.0, event.message.seq, event.message.id.0);
        let at = Instant::now();
        if is_new {
            count(&self.ledger.delivered);
            self.log.push(Observation::Message { chat, seq, id, at });
            let high = self.high.entry(chat).or_default();
            *high = seq.max(*high);
        } else {
            count(&self.ledger.changes_delivered);
            self.log.push(Observation::Changed {
                chat,
                seq,
                id,
                version: event.version,
                at,
            });
        }
        self.show(&event.message);
    }

    /// The newest version stays on the screen, whichever way it came first.
    fn show(&mut self, message: &MessageView) {
        let news = Shown {
            is_deleted: message.deleted_at.is_some(),
            edited_at: message.edited_at,
            content: message.content.clone(),
        };
        let chat = self.shown.entry(message.chat_id.0).or_default();
        let when = |shown: &Shown| (shown.is_deleted, shown.edited_at);
        if chat.get(&message.id.0).is_none_or(|known| when(known) <= when(&news)) {
            chat.insert(message.id.0, news);
        }
    }

    /// What a client does that was told to reload: edits and deletions may have been missed too.
    async fn reload(&mut self) -> Result<(), String> {
        let chats = self.person.get(&self.ledger, "/api/chat?limit=100").await?;
        let ids: BTreeSet<i64> = chats["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|chat| chat["id"].as_i64())
            .collect();
        for chat in ids {
            self.reload_chat(chat, 0).await?;
        }
        Ok(())
    }

    /// Reads what comes after `known`.
    async fn reload_chat(&mut self, chat: i64, known: i64) -> Result<(), String> {
        let mut upto = known;
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
            for item in page["items"].as_array().into_iter().flatten() {
                let message: MessageView =
                    serde_json::from_value(item.clone()).map_err(|error| format!("{path}: {error} in {item}"))?;
                let (seq, id) = (message.seq, message.id.0);
                if seq != upto + 1 {
                    return Err(format!("{path}: {seq} comes after {upto}"));
                }
                self.log.push(Observation::Fetched { chat, seq, id });
                self.show(&message);
                upto = seq;
            }
            if page["has_more"] != true {
                break;
            }
        }
        let high = self.high.entry(chat).or_default();
        *high = upto.max(*high);
        self.log.push(Observation::Reloaded { chat, upto });
        Ok(())
    }
}
