//! `storm`: every client vanishes and comes back with its cursor while messages go on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dev::platform::Service;
use serde_json::json;

use super::messages::to_float;
use super::{Meter, SETTLE, Setting, until};
use crate::client::{Call, Kept};
use crate::limits;
use crate::machine::{self, Machine};
use crate::population::Population;
use crate::progress::{Counters, Live, is_stopped, say};
use crate::report::Report;
use crate::screens::{self, Frame, Screen, Screens, Watch};
use crate::target::Target;

/// Options of `storm`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Clients.
    #[arg(long, alias = "streams", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Members of each chat; every client is in one.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub members: u32,
    /// Messages per second, before, while and after they are away.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rate: u32,
    /// Seconds that they are away.
    #[arg(long, default_value_t = 5)]
    pub away: u64,
}

/// What one client has seen.
#[derive(Default)]
struct Memory {
    cursor: Option<String>,
    seen: HashMap<u64, u32>,
    /// A `gap` tells to reload: not lost, but not replayed either.
    gaps: u32,
    caught_up: u32,
}

struct Memories {
    clients: Vec<Mutex<Memory>>,
    counters: Arc<Counters>,
}

impl Watch for Memories {
    fn frame(&self, screen: usize, frame: &Frame<'_>, _: Instant) {
        let Ok(mut memory) = self.clients[screen].lock() else {
            return;
        };
        if !frame.id.is_empty() {
            memory.cursor = Some(String::from_utf8_lossy(frame.id).into_owned());
        }
        match frame.kind {
            b"gap" => memory.gaps += 1,
            b"caught_up" => memory.caught_up += 1,
            b"message.created" => {
                if let Some(number) = screens::number_in(frame.data) {
                    *memory.seen.entry(number).or_default() += 1;
                    self.counters.delivered.fetch_add(1, Ordering::Relaxed);
                }
            }
            _ => {}
        }
    }
}

/// Nothing lost, nothing doubled, PostgreSQL left alone.
pub async fn storm(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let clients = args.clients as usize;
    let members = (args.members as usize).min(clients);
    limits::require_descriptors(u64::from(args.clients), "--clients", "a client each")?;
    let mut target = Target::start(&setting.binaries, &[], &[])?;
    let population = Population::settle(&target.platform, &target.data, clients)?;
    let groups: Vec<Vec<usize>> = (0..clients)
        .collect::<Vec<_>>()
        .chunks(members)
        .map(<[usize]>::to_vec)
        .collect();
    let chats = population.chats(&groups)?;
    let mut report = Report::new("storm", machine);
    report.durability = machine::durability(&mut target.platform, &target.data);
    report.set("clients", clients);
    report.set("members_per_chat", members);
    report.set("messages_per_second", args.rate);
    report.set("away_seconds", args.away);
    log_statements(&mut target)?;

    let counters = Arc::<Counters>::default();
    let memories = Arc::new(Memories {
        clients: (0..clients).map(|_| Mutex::default()).collect(),
        counters: Arc::clone(&counters),
    });
    let screens = |memories: &Memories| -> Vec<Screen> {
        population
            .people
            .iter()
            .enumerate()
            .map(|(number, person)| Screen {
                number,
                token: person.token.as_str().into(),
                cursor: memories.clients[number]
                    .lock()
                    .ok()
                    .and_then(|memory| memory.cursor.clone()),
            })
            .collect()
    };
    let address = target.gateway()?;
    say(&format!("opening {clients} streams"));
    let mut open = Screens::open(&address, "/events", screens(&memories), memories.clone()).await?;

    let sent = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let talk = {
        let (sent, over, counters) = (Arc::clone(&sent), Arc::clone(&over), Arc::clone(&counters));
        let tokens: Vec<String> = groups
            .iter()
            .map(|group| population.people[group[0]].token.clone())
            .collect();
        let (chats, chat, rate) = (chats.clone(), target.chat(), args.rate);
        tokio::spawn(async move {
            let mut sender = Kept::new(chat);
            let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
            while !over.load(Ordering::Relaxed) {
                tick.tick().await;
                let number = sent.load(Ordering::Relaxed);
                let place = usize::try_from(number)? % chats.len();
                let path = format!("/api/chat/{}/messages", chats[place]);
                let body = json!({"content": screens::content(number)}).to_string();
                if let Err(fault) = sender
                    .call(&Call::post(&path, Some(&tokens[place]), body.into_bytes()))
                    .await
                {
                    bail!("sending failed ({fault:?}): {}", fault.advice());
                }
                sent.store(number + 1, Ordering::Relaxed);
                counters.done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        })
    };
    // Everybody has a cursor only when everybody has seen something.
    let all_have = || {
        memories
            .clients
            .iter()
            .all(|client| client.lock().is_ok_and(|memory| memory.cursor.is_some()))
    };
    let bound = SETTLE + Duration::from_secs(clients as u64 / u64::from(args.rate));
    if !until(bound, all_have).await {
        bail!("not every client got a first message within {} s", bound.as_secs());
    }
    let live = Live::show("storm", Duration::from_secs(args.away) + SETTLE, Arc::clone(&counters));
    say("all vanish");
    open.close();
    until(Duration::from_secs(args.away), || false).await;
    let log = target.data.join("logs/postgres.log");
    let log_before = std::fs::metadata(&log).map_or(0, |meta| meta.len());
    let meter = Meter::start(&target.watched())?;
    say("all come back");
    let began = Instant::now();
    let mut back = Screens::open(&address, "/events", screens(&memories), memories.clone()).await?;
    let opened = began.elapsed();
    let caught_up = until(SETTLE, || {
        memories
            .clients
            .iter()
            .all(|client| client.lock().is_ok_and(|memory| memory.caught_up + memory.gaps > 0))
    })
    .await;
    let whole = began.elapsed();
    let reads = statements_since(&log, log_before)?;
    let cpu = meter.stop()?;
    drop(live);
    over.store(true, Ordering::Relaxed);
    talk.await.context("the sender failed")??;
    let total = sent.load(Ordering::Relaxed);
    let lost_and_doubled = || count(&memories, &groups, total);
    until(SETTLE, || lost_and_doubled().0 == 0).await;
    let (lost, doubled) = lost_and_doubled();
    let gaps: u64 = memories
        .clients
        .iter()
        .filter_map(|client| client.lock().ok().map(|memory| u64::from(memory.gaps)))
        .sum();

    report.figure("messages_sent", to_float(total));
    report.figure("seconds_until_all_were_back", opened.as_secs_f64());
    report.figure("seconds_until_all_had_caught_up", whole.as_secs_f64());
    for usage in &cpu.processes {
        report.figure(
            &format!("cpu_micros_per_return_{}", usage.name),
            usage.cpu_seconds * 1e6 / f64::from(args.clients),
        );
    }
    report.at_most("lost", to_float(lost), 0.0, "");
    report.at_most("doubled", to_float(doubled), 0.0, "");
    report.at_most("told to reload", to_float(gaps), 0.0, "");
    report.at_most(
        "statements of notify_service in PostgreSQL",
        to_float(reads.len() as u64),
        0.0,
        "",
    );
    report.at_most("all back", opened.as_secs_f64(), 10.0, "s");
    for (number, statement) in reads.iter().take(3).enumerate() {
        report.set(&format!("statement_{number}"), statement);
    }
    if !caught_up {
        report.partial = Some(format!("not everybody had caught up after {} s", SETTLE.as_secs()));
    }
    if is_stopped() {
        report.partial = Some("interrupted".to_owned());
    }
    back.close();
    Ok(report)
}

/// Messages that a member did not see, and those that one saw more than once.
fn count(memories: &Memories, groups: &[Vec<usize>], total: u64) -> (u64, u64) {
    let (mut lost, mut doubled) = (0, 0);
    for (place, group) in groups.iter().enumerate() {
        for member in group {
            let Ok(memory) = memories.clients[*member].lock() else {
                continue;
            };
            for number in (place as u64..total).step_by(groups.len()) {
                match memory.seen.get(&number).copied().unwrap_or_default() {
                    0 => lost += 1,
                    1 => {}
                    _ => doubled += 1,
                }
            }
        }
    }
    (lost, doubled)
}

/// What its log line begins with when notify_service asks PostgreSQL something.
const ASKED: &str = "fechatter_notify_login LOG:";

/// Lets PostgreSQL write down every statement of notify_service, which begins again so that it holds for all its connections.
fn log_statements(target: &mut Target) -> anyhow::Result<()> {
    let server = target.platform.postgres().context("no PostgreSQL of our own")?;
    server.psql(
        "postgres",
        "ALTER ROLE fechatter_notify_login SET log_statement = 'all'; ALTER SYSTEM SET log_line_prefix = '%m %u ';",
    )?;
    server.psql("postgres", "SELECT pg_reload_conf()")?;
    target.platform.kill(Service::Notify);
    target.platform.start_service(Service::Notify)?;
    target.platform.wait_until_ready(Service::Notify)?;
    let log = target.data.join("logs/postgres.log");
    // A measurement that cannot find anything finds nothing: what a start reads must be there.
    dev::wait::until(
        Duration::from_secs(10),
        "notify_service's statements in the log",
        || {
            std::fs::read_to_string(&log)
                .is_ok_and(|text| text.contains(ASKED))
                .then_some(())
        },
    )
}

fn statements_since(log: &std::path::Path, from: u64) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let new = text.get(usize::try_from(from)?..).unwrap_or_default();
    Ok(String::from_utf8_lossy(new)
        .lines()
        .filter_map(|line| line.split_once(ASKED))
        .map(|(_, statement)| statement.trim().chars().take(120).collect())
        .collect())
}
