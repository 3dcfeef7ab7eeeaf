//! `search`: somebody who is in thousands of chats searches many messages.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dev::platform::Service;
use http::Method;
use serde_json::{Value, json};

use super::messages::to_float;
use super::{Meter, Setting, until};
use crate::arrivals::Arrival;
use crate::client::{Answer, Call, Kept};
use crate::machine::{self, Machine};
use crate::outcome::Outcomes;
use crate::population::Population;
use crate::progress::{Counters, is_stopped, say};
use crate::report::{Report, Series};
use crate::target::Target;
use crate::workers::{Job, Load, Work, Workers};

/// Options of `search`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Messages in the index before it begins.
    #[arg(long, default_value_t = 1_000_000)]
    pub messages: u64,
    /// Chats that the searcher is in; as many again hold messages that are none of their business.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub chats: u32,
    /// Searches per second.
    #[arg(long, default_value_t = 20)]
    pub rate: u32,
    /// Messages that are sent and searched until they are found.
    #[arg(long, default_value_t = 50)]
    pub fresh: u32,
}

/// What people search for: frequent and rare words, a prefix, a typo, a phrase.
const QUERIES: [&str; 6] = [
    "budget",
    "quarterly%20rel",
    "relaese",
    "kettle",
    "%22nightly%20build%22",
    "word123",
];

/// How often a line says how far indexing is.
const PROGRESS: Duration = Duration::from_secs(5);

struct Searches {
    token: Arc<str>,
    /// Chats that the searcher is in.
    own: std::collections::HashSet<i64>,
    leaks: AtomicU64,
    hits: AtomicU64,
}

impl Job for Searches {
    fn prepare(&self, arrival: Arrival) -> Work {
        let query = QUERIES[usize::try_from(arrival.number).unwrap_or_default() % QUERIES.len()];
        Work {
            method: Method::GET,
            path: format!("/api/search/messages?q={query}").into(),
            token: Arc::clone(&self.token),
            body: None,
        }
    }

    fn succeeded(&self, _: Arrival, answer: &Answer) {
        use std::sync::atomic::Ordering::Relaxed;
        let found: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let is_foreign = |chat: Option<i64>| chat.is_none_or(|chat| !self.own.contains(&chat));
        let hits = found["hits"].as_array().map_or(&[][..], Vec::as_slice);
        let counted = found["facets"]["chat_id"].as_object();
        let leaked_hits = hits.iter().filter(|hit| is_foreign(hit["message"]["chat_id"].as_i64()));
        let leaked_counts = counted
            .into_iter()
            .flatten()
            .filter(|(chat, _)| is_foreign(chat.parse().ok()));
        self.hits.fetch_add(hits.len() as u64, Relaxed);
        self.leaks
            .fetch_add((leaked_hits.count() + leaked_counts.count()) as u64, Relaxed);
    }
}

/// Latency of searches, time until a message is found, and hits of chats that one is not in.
pub async fn search(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let mut target = Target::start(&setting.binaries, &[Service::Indexer], &[])?;
    let population = Population::settle(&target.platform, &target.data, 3)?;
    let count = args.chats as usize;
    say(&format!("making {} messages", args.messages));
    // The first person is the searcher; the other half of the chats belongs to the other two.
    let groups: Vec<Vec<usize>> = (0..count * 2)
        .map(|chat| if chat % 2 == 0 { vec![0, 1] } else { vec![1, 2] })
        .collect();
    let chats = population.chats(&groups)?;
    fill(&population, &chats, args.messages)?;
    let mut report = Report::new("search", machine);
    report.durability = machine::durability(&mut target.platform, &target.data);
    report.set("messages", args.messages);
    report.set("chats_of_the_searcher", count);
    let rate = index(&mut target, args.messages).await?;
    report.figure("indexed_messages_per_second", rate);
    let bytes = size_of(&target.platform.index_folder())?;
    report.figure("index_megabytes", to_float(bytes) / 1e6);
    report.figure(
        "index_bytes_per_message",
        to_float(bytes) / to_float(args.messages.max(1)),
    );

    let address = target.gateway()?;
    let job = Arc::new(Searches {
        token: population.people[0].token.as_str().into(),
        own: chats.iter().copied().step_by(2).collect(),
        leaks: AtomicU64::default(),
        hits: AtomicU64::default(),
    });
    let first = job.prepare(Arrival {
        number: 0,
        due: Instant::now(),
    });
    let mut workers = Workers::open(&address, setting.connections, &first).await?;
    let rate = f64::from(args.rate);
    let load = |length| Load {
        rate: Some(rate),
        length,
    };
    workers
        .run("warm-up", load(setting.warmup), job.clone(), Arc::default())
        .await?;
    let meter = Meter::start(&target.watched())?;
    let started = Instant::now();
    let outcomes = workers
        .run("search", load(setting.length), job.clone(), Arc::<Counters>::default())
        .await?;
    let length = started.elapsed().max(setting.length);
    let series = Series::new("search", Some(rate), length, &outcomes, Some(meter.stop()?));
    report.at_most("p95", series.p95_ms, 30.0, "ms");
    report.at_most("errors", to_float(series.error_count()), 0.0, "");
    report.series.push(series);
    let hits = job.hits.load(std::sync::atomic::Ordering::Relaxed);
    report.at_least("hits", to_float(hits), 1.0, "");

    let (fresh, took) = find_fresh(&target, &population, chats[0], args.fresh).await?;
    let series = Series::new("commit to findable", None, took, &fresh, None);
    report.at_most("commit to findable, p99", series.p99_ms, 1_000.0, "ms");
    report.series.push(series);
    let leaks = job.leaks.load(std::sync::atomic::Ordering::Relaxed);
    report.at_most("leaks", to_float(leaks), 0.0, "");
    if is_stopped() {
        report.partial = Some("interrupted".to_owned());
    }
    Ok(report)
}

/// Writes messages straight into the database, as after years of talk; the index is built from there.
fn fill(population: &Population, chats: &[i64], messages: u64) -> anyhow::Result<()> {
    let workspace = population.workspace;
    let (first, count) = (chats.first().context("no chats")?, chats.len());
    let sender = population.people[1].id;
    population
        .database()
        .run(&format!(
            "INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content, created_at)
             SELECT {workspace}, {first} + n % {count}, n / {count} + 1, {sender},
                    (ARRAY['The quarterly release','The budget','The nightly build','The kettle','A proof','The meeting'])[(1 + n % 6)::int]
                    || ' word' || (n * 7919) % 20000 || ' concerns word' || (n * 104729) % 50000 || ' and number ' || n,
                    now() - (n % 1000000) * interval '1 minute'
             FROM generate_series(0::bigint, {last}) AS n;
             UPDATE chats SET last_seq = made.last FROM
                (SELECT chat_id, max(seq) AS last FROM messages GROUP BY chat_id) AS made WHERE made.chat_id = chats.id;
             ANALYZE messages;",
            last = messages.saturating_sub(1)
        ))
        .map(|_| ())
}

/// Starts the indexer on what is in the database and waits until everything is in the index; messages per second.
async fn index(target: &mut Target, messages: u64) -> anyhow::Result<f64> {
    say("indexing them");
    let began = Instant::now();
    target.platform.start_service(Service::Indexer)?;
    target.platform.wait_until_ready(Service::Indexer)?;
    let admin = target.platform.ports().indexer_admin;
    let bound = Duration::from_secs(60 + messages / 500);
    let mut progress = Value::Null;
    let mut shown = Instant::now();
    let done = until(bound, || {
        progress = dev::http::request(admin, "GET", "/reindex", None, None)
            .map(|answer| answer.json())
            .unwrap_or_default();
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            say(&format!(
                "{} of {messages} messages are in the index",
                progress["loaded"]
            ));
        }
        progress["state"] == "done"
    })
    .await;
    if !done {
        bail!("the index was not built within {} s: {progress}", bound.as_secs());
    }
    Ok(to_float(messages) / began.elapsed().as_secs_f64())
}

/// Bytes of the files in a folder and those below it.
fn size_of(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        // A merge may remove a file between the list of names and the look at one.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() {
            size_of(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}

/// Sends messages one at a time and searches each until it is found.
async fn find_fresh(
    target: &Target,
    population: &Population,
    chat: i64,
    count: u32,
) -> anyhow::Result<(Outcomes, Duration)> {
    let token = population.people[0].token.as_str();
    let (mut sender, mut searcher) = (Kept::new(target.gateway()?), Kept::new(target.gateway()?));
    let started = Instant::now();
    let mut outcomes = Outcomes::new();
    for number in 0..count {
        if is_stopped() {
            break;
        }
        let word = format!("fresh{}x{number}", population.workspace);
        let body = json!({"content": format!("Something {word}")}).to_string();
        let path = format!("/api/chat/{chat}/messages");
        let sent = sender.call(&Call::post(&path, Some(token), body.into_bytes())).await;
        if let Err(fault) = sent {
            bail!("sending failed ({fault:?}): {}", fault.advice());
        }
        let committed = Instant::now();
        // The exact word: a typo's neighbours would be found, too.
        let query = format!("/api/search/messages?q=%22{word}%22");
        loop {
            let answer = searcher
                .call(&Call::get(&query, token))
                .await
                .map_err(|fault| anyhow::anyhow!("searching failed ({fault:?}): {}", fault.advice()))?;
            let found: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            if found["hits"].as_array().is_some_and(|hits| !hits.is_empty()) {
                outcomes.succeed(committed.elapsed());
                break;
            }
            if committed.elapsed() > Duration::from_secs(30) {
                bail!("a message was not found within 30 s");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok((outcomes, started.elapsed()))
}
