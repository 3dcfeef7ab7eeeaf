//! The operator's command. Exit codes: 0 all agree, 1 something differs (still), 2 could not look.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use async_nats::connection::State;
use async_nats::jetstream;
use secrecy::ExposeSecret;
use serde_json::json;
use service_runtime::nats;

use super::index::{IndexReport, Indexer};
use super::{Difference, Reconcile, StreamReport};
use crate::config::Config;

/// Something differs.
const EXIT_DIFFERENT: u8 = 1;
/// Longest wait for NATS.
const CONNECT: Duration = Duration::from_secs(10);
/// A relay that publishes nothing for so long does not run.
const RELAY_PATIENCE: Duration = Duration::from_mins(1);
/// What differs is looked at again after so long, so often: both sides go on changing.
const AGAIN: Duration = Duration::from_secs(2);
const LOOKS: u32 = 3;
const POLL: Duration = Duration::from_millis(200);
/// How often long work says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Options of `chat_service reconcile`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Mend what differs: publish everything that the outbox holds in a new history, mark what is published, rebuild the index.
    #[arg(long)]
    repair: bool,
    /// JSON instead of a table; how far it is still goes to standard error.
    #[arg(long)]
    json: bool,
    /// The indexer's admin listener.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:9689",
        env = "FECHATTER_INDEXER_ADMIN_URL"
    )]
    indexer: String,
    /// Leave the index out.
    #[arg(long)]
    no_index: bool,
}

/// What was found, and what was done about it.
struct Findings {
    stream: StreamReport,
    index: Option<IndexReport>,
    repairs: Vec<String>,
}

impl Findings {
    fn is_right(&self) -> bool {
        self.stream.is_right() && self.index.as_ref().is_none_or(IndexReport::is_right)
    }
}

/// Carries the command out and returns its exit code.
pub async fn run(config: Config, args: Args) -> anyhow::Result<u8> {
    let indexer = if args.no_index {
        None
    } else {
        Some(Indexer::new(&args.indexer)?)
    };
    let pool = migrations::open(config.database.url.expose_secret(), 4).await?;
    let client = nats::connect(&config.nats, "chat").await?;
    wait_for(&client).await?;
    let reconcile = Reconcile {
        pool,
        context: jetstream::new(client),
        config: config.outbox,
        stream_replicas: config.nats.stream_replicas,
    };
    let teller = Teller::default();
    let mut findings = Findings {
        stream: look(&reconcile, &teller).await?,
        index: None,
        repairs: Vec::new(),
    };
    if args.repair && !findings.stream.is_right() {
        show_before(&findings.stream, args.json);
        findings.repairs = reconcile.repair(&findings.stream).await?;
        wait_until_published(&reconcile, &teller).await?;
        findings.stream = look(&reconcile, &teller).await?;
    }
    if let Some(indexer) = &indexer {
        let mut report = indexer.compare(|line| teller.tell(line)).await?;
        if args.repair && !report.is_right() {
            if !args.json {
                show_index(&report);
            }
            indexer.rebuild(|line| teller.tell(line)).await?;
            findings.repairs.push("the index was rebuilt".to_owned());
            report = indexer.compare(|line| teller.tell(line)).await?;
        }
        findings.index = Some(report);
    }
    show(&findings, args.json);
    Ok(if findings.is_right() { 0 } else { EXIT_DIFFERENT })
}

async fn wait_for(client: &async_nats::Client) -> anyhow::Result<()> {
    let deadline = Instant::now() + CONNECT;
    while client.connection_state() != State::Connected {
        if Instant::now() >= deadline {
            bail!(
                "NATS does not answer within {} s (nats.url, nats.user, nats.password)",
                CONNECT.as_secs()
            );
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Compares; what differs is looked at again, for it may have changed while it was read.
async fn look(reconcile: &Reconcile, teller: &Teller) -> anyhow::Result<StreamReport> {
    let mut looks = 1;
    loop {
        let report = reconcile
            .examine(|read, all| teller.tell(&format!("stream: {read} of {all} events")))
            .await?;
        if report.is_right() || looks == LOOKS {
            return Ok(report);
        }
        looks += 1;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Waits until the relays have published what waits.
async fn wait_until_published(reconcile: &Reconcile, teller: &Teller) -> anyhow::Result<()> {
    let mut lowest = u64::MAX;
    let mut moved = Instant::now();
    loop {
        let waiting = reconcile.unpublished().await.context("cannot count what waits")?;
        if waiting == 0 {
            return Ok(());
        }
        if waiting < lowest {
            (lowest, moved) = (waiting, Instant::now());
        }
        if moved.elapsed() >= RELAY_PATIENCE {
            bail!(
                "{waiting} events wait and nothing was published for {} s: start chat_service, whose relay does it, and run this again",
                RELAY_PATIENCE.as_secs()
            );
        }
        teller.tell(&format!("publishing: {waiting} events wait"));
        tokio::time::sleep(POLL).await;
    }
}

fn show_before(stream: &StreamReport, json: bool) {
    if !json {
        show_stream(stream);
    }
}

fn show(findings: &Findings, json: bool) {
    if json {
        let report = json!({
            "agrees": findings.is_right(),
            "stream": findings.stream,
            "index": findings.index,
            "repairs": findings.repairs,
        });
        print(&report.to_string());
        return;
    }
    for repair in &findings.repairs {
        print(&format!("repaired: {repair}"));
    }
    show_stream(&findings.stream);
    if let Some(index) = &findings.index {
        show_index(index);
    }
    print(if findings.is_right() {
        "all agree"
    } else if findings.repairs.is_empty() {
        "they differ; `chat_service reconcile --repair` mends it"
    } else {
        "they still differ; run it again, and look at the log of chat_service and of the indexer if that does not help"
    });
}

fn show_stream(stream: &StreamReport) {
    match stream.epoch {
        None => print("stream     there is none"),
        Some(epoch) => print(&format!(
            "stream     {} events of history {epoch}; {} copies and {} latecomers, which consumers drop",
            stream.events, stream.copies, stream.latecomers
        )),
    }
    if stream.is_lost {
        print("lost       it is not the history that was published into, or it has lost its end");
    }
    for (name, meaning, difference) in [
        ("missing", "marked as published, not in the stream", &stream.missing),
        ("foreign", "in the stream, not in the outbox", &stream.foreign),
        ("unmarked", "in the stream, not marked as published", &stream.unmarked),
        (
            "ahead",
            "marked as published, never written: the database went back",
            &stream.ahead,
        ),
    ] {
        show_difference(name, meaning, difference);
    }
    if stream.waiting > 0 {
        let verdict = if stream.is_stale() {
            "; no relay publishes them: start chat_service"
        } else {
            ""
        };
        print(&format!(
            "waiting    {} not published yet, the oldest for {:.1} s{verdict}",
            stream.waiting, stream.waiting_seconds
        ));
    }
}

fn show_difference(name: &str, meaning: &str, difference: &Difference) {
    if difference.count > 0 {
        let examples = difference.examples.join(" ");
        print(&format!("{name:<10} {} {meaning}: {examples}", difference.count));
    }
}

fn show_index(index: &IndexReport) {
    print(&format!(
        "index      {} messages should be findable, {} are",
        index.expected, index.findable
    ));
    for (name, documents) in [
        ("missing", &index.missing),
        ("outdated", &index.outdated),
        ("leftover", &index.leftover),
    ] {
        if documents.count > 0 {
            print(&format!(
                "{name:<10} {} messages, such as {:?}",
                documents.count, documents.examples
            ));
        }
    }
}

/// Says on standard error how far long work is, once a second.
#[derive(Debug, Default)]
struct Teller(std::sync::Mutex<Option<Instant>>);

impl Teller {
    #[expect(clippy::print_stderr, reason = "standard output is the command's answer")]
    fn tell(&self, line: &str) {
        let mut told = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            eprintln!("{line}");
            *told = Some(Instant::now());
        }
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command for operators")]
fn print(line: &str) {
    println!("{line}");
}
