//! Messages in many chats, numbered so that each is recognised where it arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde_json::json;

use crate::arrivals::Arrival;
use crate::ledger::Ledger;
use crate::modes::{Meter, SETTLE, Setting, until};
use crate::processes::Watched;
use crate::progress::Counters;
use crate::report::Series;
use crate::screens::{self, Frame, Watch};
use crate::workers::{Job, Load, Work, Workers};

/// Method, path and body by which a server takes the message of a number in a chat.
pub type Wording = fn(chat: &Arc<str>, number: u64) -> (Method, Arc<str>, Bytes);

/// Ours: the chat is the path of its messages.
pub fn wording(chat: &Arc<str>, number: u64) -> (Method, Arc<str>, Bytes) {
    let body = json!({"content": screens::content(number)}).to_string();
    (Method::POST, Arc::clone(chat), body.into())
}

/// Sends messages, each in the next chat.
pub struct Sender {
    /// Chat and sender's token.
    pub chats: Vec<(Arc<str>, Arc<str>)>,
    pub wording: Wording,
    pub ledger: Option<Arc<Ledger>>,
    /// Number of the first message of this run.
    pub first: u64,
}

impl Job for Sender {
    fn prepare(&self, arrival: Arrival) -> Work {
        let number = self.first + arrival.number;
        if let Some(ledger) = &self.ledger {
            ledger.is_due(number, arrival.due);
        }
        let place = usize::try_from(number).unwrap_or_default() % self.chats.len();
        let (chat, token) = &self.chats[place];
        let (method, path, body) = (self.wording)(chat, number);
        Work {
            method,
            path,
            token: Arc::clone(token),
            body: Some(body),
        }
    }
}

/// Notes in the ledger what comes.
pub struct Receiver {
    pub ledger: Arc<Ledger>,
    pub counters: Arc<Counters>,
    /// Bytes of the last message's data.
    pub size: AtomicUsize,
}

impl Receiver {
    pub fn new(ledger: &Arc<Ledger>, counters: &Arc<Counters>) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            counters: Arc::clone(counters),
            size: AtomicUsize::new(0),
        }
    }
}

impl Watch for Receiver {
    fn frame(&self, screen: usize, frame: &Frame<'_>, at: Instant) {
        if frame.kind == b"message.created"
            && let Some(number) = screens::number_in(frame.data)
            && self.ledger.is_seen(number, screen, at)
        {
            self.counters.delivered.fetch_add(1, Ordering::Relaxed);
            self.size.store(frame.data.len(), Ordering::Relaxed);
        }
    }
}

/// Somebody talks in many chats of one server, at one rate after the other.
pub struct Talk {
    pub chats: Vec<(Arc<str>, Arc<str>)>,
    pub wording: Wording,
    pub workers: Workers,
    /// The server's processes.
    pub watched: Watched,
    /// Number of the next message: no two of one server are alike.
    pub next: u64,
}

/// What became of messages on other screens.
#[derive(Debug)]
pub struct Delivered {
    /// Due to seen.
    pub arrived: Series,
    /// Due to answered.
    pub accepted: Series,
    pub lost: u64,
    pub doubled: u64,
}

impl Talk {
    fn sender(&self, ledger: Option<&Arc<Ledger>>) -> Arc<Sender> {
        Arc::new(Sender {
            chats: self.chats.clone(),
            wording: self.wording,
            ledger: ledger.cloned(),
            first: self.next,
        })
    }

    /// From due to answered, after a warm-up.
    pub async fn send(&mut self, name: &str, rate: f64, setting: &Setting) -> anyhow::Result<Series> {
        let load = |length| Load {
            rate: Some(rate),
            length,
        };
        let sender = self.sender(None);
        let warm = self
            .workers
            .run("warm-up", load(setting.warmup), sender, Arc::default())
            .await?;
        self.next += warm.count() + warm.error_count();
        let meter = Meter::start(&self.watched)?;
        let started = Instant::now();
        let sender = self.sender(None);
        let outcomes = self
            .workers
            .run(name, load(setting.length), sender, Arc::default())
            .await?;
        self.next += outcomes.count() + outcomes.error_count();
        let length = started.elapsed().max(setting.length);
        Ok(Series::new(name, Some(rate), length, &outcomes, Some(meter.stop()?)))
    }

    /// From due to seen, after a warm-up. Screens that note in the ledger are open.
    pub async fn deliver(
        &mut self,
        name: &str,
        rate: f64,
        setting: &Setting,
        ledger: &Arc<Ledger>,
        counters: &Arc<Counters>,
    ) -> anyhow::Result<Delivered> {
        let load = |length| Load {
            rate: Some(rate),
            length,
        };
        let sender = self.sender(Some(ledger));
        let warm = self
            .workers
            .run("warm-up", load(setting.warmup), sender, Arc::default())
            .await?;
        let first = self.next + warm.count() + warm.error_count();
        settle(ledger, self.next..first, Duration::from_secs(5)).await;
        self.next = first;
        // One ledger for all rates: another one would need streams of its own.
        let before = ledger.latencies();
        let meter = Meter::start(&self.watched)?;
        let started = Instant::now();
        let sender = self.sender(Some(ledger));
        let sent = self
            .workers
            .run(name, load(setting.length), sender, Arc::clone(counters))
            .await?;
        let length = started.elapsed().max(setting.length);
        let numbers = first..first + sent.count() + sent.error_count();
        self.next = numbers.end;
        settle(ledger, numbers.clone(), SETTLE).await;
        let cpu = meter.stop()?;
        let mut arrived = ledger.latencies();
        arrived.subtract(&before);
        let seen: Vec<u32> = numbers.map(|number| ledger.times_seen(number)).collect();
        let missing = seen.iter().filter(|times| **times == 0).count() as u64;
        Ok(Delivered {
            arrived: Series::new(name, Some(rate), length, &arrived, Some(cpu)),
            accepted: Series::new(&format!("{name}, accepted"), Some(rate), length, &sent, None),
            lost: missing.saturating_sub(sent.error_count()),
            doubled: seen.iter().filter(|times| **times > 1).count() as u64,
        })
    }
}

/// Waits until all of these messages were seen, or for as long as they may take.
async fn settle(ledger: &Ledger, numbers: std::ops::Range<u64>, bound: Duration) {
    until(bound, || {
        numbers.clone().rev().all(|number| ledger.times_seen(number) > 0)
    })
    .await;
}
