//! Measures the embedded engine: `cargo run --release -p indexer --example measure_engine -- 1000000`.
//!
//! Words follow a Zipf-like law over a vocabulary of 50,000; the searcher is in 5,000 of 10,000 chats.

use std::time::{Duration, Instant};

use fechatter_core::ChatId;
use indexer::engine::embedded::{EmbeddedEngine, Options};
use indexer::engine::{Change, EngineQuery, MessageDocument, SearchEngine, Sort};
use indexer::query;
use time::OffsetDateTime;

const CHATS: u64 = 10_000;
const VOCABULARY: u64 = 50_000;
const WORDS: u64 = 12;
const BATCH: usize = 1_000;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Small numbers often, large ones rarely.
    fn word(&mut self) -> String {
        let spread = self.below(VOCABULARY) + 1;
        let rank = self.below(spread);
        let mut word = String::new();
        let mut rest = rank + 26;
        while rest > 0 {
            word.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or_default()));
            rest /= 26;
        }
        format!(
            "{word}{}",
            ["ing", "er", "ation", "s", "", "ly"][usize::try_from(rank % 6).unwrap_or_default()]
        )
    }

    fn message(&mut self, id: i64, now: OffsetDateTime) -> MessageDocument {
        // What a sixth of all talk is about, and another sixth.
        let subject =
            ["the budget ", "the nightly build ", "", "", "", ""][usize::try_from(id % 6).unwrap_or_default()];
        let words: Vec<String> = (0..=self.below(WORDS * 2)).map(|_| self.word()).collect();
        MessageDocument {
            id: id.into(),
            workspace_id: 1.into(),
            chat_id: (self.below(CHATS).cast_signed() + 1).into(),
            sender_id: (self.below(1_000).cast_signed() + 1).into(),
            content: format!("{subject}{}", words.join(" ")),
            created_at: now - Duration::from_secs(self.below(86_400 * 365)),
            version: 1,
        }
    }
}

fn quantile(times: &mut [Duration], at: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * at / 100).min(times.len() - 1)]
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a measurement for people")]
#[expect(clippy::cast_precision_loss, reason = "rates need no more")]
async fn main() -> anyhow::Result<()> {
    let count: usize = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let engine = EmbeddedEngine::open(Options {
        folder: folder.path().to_owned(),
        writer_memory: 64_000_000,
        concurrent_searches: 8,
        min_free: 0,
    })?;
    let (mut random, now) = (Random(0x9E37_79B9_7F4A_7C15), OffsetDateTime::now_utc());
    let started = Instant::now();
    let mut id = 0;
    while id < i64::try_from(count)? {
        let batch = (0..BATCH)
            .map(|_| {
                id += 1;
                Change::Upsert(random.message(id, now))
            })
            .collect();
        engine.apply(batch, None).await?;
    }
    let elapsed = started.elapsed().as_secs_f64();
    println!(
        "{id} messages in {elapsed:.1} s, {:.0}/s, batches of {BATCH}, each durable",
        id as f64 / elapsed
    );

    let mut commits = Vec::new();
    for _ in 0..100 {
        id += 1;
        let started = Instant::now();
        engine
            .apply(vec![Change::Upsert(random.message(id, now))], None)
            .await?;
        commits.push(started.elapsed());
    }
    let (median, slow) = (quantile(&mut commits, 50), quantile(&mut commits, 99));
    println!("one message to findable: p50 {median:?}, p99 {slow:?}");

    let chats: std::sync::Arc<[ChatId]> = (1..=10_000).step_by(2).map(ChatId).collect();
    for (name, words, suffix) in [
        ("one word", 1, ""),
        ("two words", 2, ""),
        ("a word of a sixth of all messages", 0, "budget"),
        ("a phrase of a sixth of all messages", 0, "\"nightly build\""),
        ("prefix", 0, "c"),
        ("newest", 1, " has:link"),
    ] {
        let mut times = Vec::new();
        let mut total = 0;
        for _ in 0..50 {
            let text: Vec<String> = (0..words).map(|_| random.word()).collect();
            let parsed =
                query::parse(&format!("{}{suffix}", text.join(" "))).map_err(|fault| anyhow::anyhow!(fault.detail))?;
            let started = Instant::now();
            let found = engine
                .search(EngineQuery {
                    workspace_id: 1.into(),
                    text: parsed.text,
                    chats: chats.clone(),
                    preferred_chats: [].into(),
                    senders: None,
                    created: parsed.created,
                    has_link: parsed.has_link,
                    sort: Sort::Relevance,
                    offset: 0,
                    limit: 50,
                    now,
                })
                .await?;
            total += found.total;
            times.push(started.elapsed());
        }
        let (median, slow) = (quantile(&mut times, 50), quantile(&mut times, 95));
        println!(
            "{name} in 5,000 chats: p50 {median:?}, p95 {slow:?}, {} matches on average",
            total / 50
        );
    }
    let bytes: u64 = walk(folder.path())?;
    println!(
        "index: {:.1} MB, {:.0} bytes a message",
        bytes as f64 / 1e6,
        bytes as f64 / id as f64
    );
    Ok(())
}

fn walk(folder: &std::path::Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            walk(&entry.path())?
        } else {
            entry.metadata()?.len()
        };
    }
    Ok(bytes)
}
