//! `soak`: clients come and go for a long time, some without a word; memory and streams must stay flat.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::messages::to_float;
use super::{Meter, Setting, until};
use crate::client::{Address, Leave};
use crate::limits;
use crate::machine::{self, Machine};
use crate::outcome::Outcomes;
use crate::population::Population;
use crate::progress::{Counters, is_stopped, say};
use crate::report::{Report, Series, Trend};
use crate::screens::{Frame, Screen, Screens, Watch};
use crate::talk::{self, Sender};
use crate::target::Target;
use crate::workers::{Load, Work, Workers};

/// Options of `soak`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Minutes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    pub minutes: u64,
    /// Streams that are open at a time.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(20..=20_000))]
    pub streams: u32,
    /// Messages per second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
}

/// Streams that come and go together.
const GROUP: usize = 20;
/// Memory may differ by this much between the second fifth and the last: allocators keep pages.
const FLAT: f64 = 1.10;
/// How long people use their tokens, which live an hour.
const TOKEN: Duration = Duration::from_mins(30);
/// What notify_service keeps of the newest events has a bound, and is to be full before memory is judged: so many looks in a row it
/// did not grow, and so long it may take.
const FULL_LOOKS: u32 = 2;
const FILL: Duration = Duration::from_mins(5);
/// Between two such looks; it is said every 5 s.
const FILL_SLICE: Duration = Duration::from_secs(10);
/// Who vanished is missed at the next heartbeat, which is 25 s away at most.
const MISSED: Duration = Duration::from_mins(1);
/// How groups leave, one after the other.
const LEAVES: [Leave; 5] = [Leave::Close, Leave::Vanish, Leave::Close, Leave::Reset, Leave::Close];

/// Counts what arrives.
struct Counting(Arc<Counters>);

impl Watch for Counting {
    fn frame(&self, _: usize, frame: &Frame<'_>, _: Instant) {
        if frame.kind == b"message.created" {
            self.0.delivered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Pairs of people, the first of each a sender.
struct Pairs {
    population: Population,
    chats: Vec<i64>,
    /// What receivers came with last, and since when, by the number of their pair.
    tokens: Mutex<HashMap<usize, (Arc<str>, Instant)>>,
}

impl Pairs {
    /// The senders with tokens that are new.
    fn sender(&self, first: u64) -> anyhow::Result<Sender> {
        let chats = self.chats.iter().enumerate().map(|(number, chat)| {
            let path = format!("/api/chat/{chat}/messages").into();
            Ok((path, self.population.token(number * 2)?))
        });
        Ok(Sender {
            chats: chats.collect::<anyhow::Result<_>>()?,
            wording: talk::wording,
            ledger: None,
            first,
        })
    }

    /// The token of a receiver, who comes back with the same one while it lives, as clients do.
    fn token(&self, number: usize) -> anyhow::Result<Arc<str>> {
        let mut tokens = self.tokens.lock().expect("no panic holds it");
        if let Some((token, since)) = tokens.get(&number)
            && since.elapsed() < TOKEN
        {
            return Ok(Arc::clone(token));
        }
        let token = self.population.token(number * 2 + 1)?;
        tokens.insert(number, (Arc::clone(&token), Instant::now()));
        Ok(token)
    }

    /// Some of the receivers, by chance.
    fn group(&self, rng: &mut StdRng) -> anyhow::Result<Vec<Screen>> {
        let screen = |_| {
            let number = rng.random_range(0..self.chats.len());
            Ok(Screen {
                number,
                token: self.token(number)?,
                cursor: None,
            })
        };
        (0..GROUP).map(screen).collect()
    }
}

/// Memory over time, streams left at the end, errors.
pub async fn soak(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let streams = args.streams as usize;
    limits::require_descriptors(u64::from(args.streams) * 2, "--streams", "streams that come and go")?;
    let mut target = Target::start(&setting.binaries, &[], &[])?;
    let population = Population::settle(&target.platform, &target.data, streams * 2)?;
    let groups: Vec<Vec<usize>> = (0..streams).map(|pair| vec![pair * 2, pair * 2 + 1]).collect();
    let chats = population.chats(&groups)?;
    let pairs = Arc::new(Pairs {
        population,
        chats,
        tokens: Mutex::default(),
    });
    let mut report = Report::new("soak", machine);
    report.durability = machine::durability(&mut target.platform, &target.data);
    report.set("minutes", args.minutes);
    report.set("streams", streams);
    report.set("messages_per_second", args.rate);

    let address = target.gateway()?;
    let length = Duration::from_secs(args.minutes * 60);
    let counters = Arc::<Counters>::default();
    let look = Work {
        method: http::Method::GET,
        path: "/api/me".into(),
        token: pairs.population.token(0)?,
        body: None,
    };
    let mut workers = Workers::open(&address, setting.connections.min(16), &look).await?;
    let before = fill(&target, &mut workers, &pairs).await?;
    report.figure("messages_before", to_float(before));
    let watched = target.watched();
    let meter = Meter::start(&watched)?;
    let rate = f64::from(args.rate);
    let talking = tokio::spawn(talk_on(
        workers,
        Arc::clone(&pairs),
        before,
        rate,
        length,
        Arc::clone(&counters),
    ));
    let visits = Visits {
        pairs: &pairs,
        address: address.holding_sockets(),
        at_a_time: streams / GROUP,
        meter: &meter,
        counters: Arc::clone(&counters),
    };
    let visited = visits.run(length).await?;
    let took = visited.took;
    let outcomes = talking.await.context("the senders failed")??;
    let series = Series::new("messages", Some(rate), took, &outcomes, Some(meter.stop()?));
    judge(&mut report, &target, &visited, &series).await;
    report.figure("messages_seen", to_float(counters.delivered.load(Ordering::Relaxed)));
    report.series.push(series);
    report.trend = Some(visited.trend());
    if is_stopped() {
        report.partial = Some("interrupted".to_owned());
    }
    Ok(report)
}

/// Messages as fast as they are taken, until the newest events fill what is kept of them; how many.
async fn fill(target: &Target, workers: &mut Workers, pairs: &Pairs) -> anyhow::Result<u64> {
    say("filling what notify_service keeps of the newest events");
    let admin = target.platform.ports().notify_admin;
    let load = Load {
        rate: None,
        length: FILL_SLICE,
    };
    let (mut sent, mut held, mut full) = (0, 0.0, 0);
    let began = Instant::now();
    while full < FULL_LOOKS && began.elapsed() < FILL && !is_stopped() {
        let outcomes = workers
            .run("fill", load, Arc::new(pairs.sender(sent)?), Arc::default())
            .await?;
        sent += outcomes.count() + outcomes.error_count();
        // Said now and then, and not before the first time.
        let Some(now) = metric(admin, "notify_ring_size_bytes") else {
            continue;
        };
        // The oldest events give way one by one, so a full ring goes up and down by one.
        full = if now > held * 1.01 { 0 } else { full + 1 };
        held = held.max(now);
    }
    anyhow::ensure!(
        full == FULL_LOOKS || is_stopped(),
        "what notify_service keeps of the newest events was not full after {} s ({held} bytes)",
        FILL.as_secs()
    );
    Ok(sent)
}

/// Messages at a steady rate after `first` others, with new tokens now and then.
async fn talk_on(
    mut workers: Workers,
    pairs: Arc<Pairs>,
    first: u64,
    rate: f64,
    length: Duration,
    counters: Arc<Counters>,
) -> anyhow::Result<Outcomes> {
    let end = Instant::now() + length;
    let mut all = Outcomes::new();
    while !is_stopped() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let sender = Arc::new(pairs.sender(first + all.count() + all.error_count())?);
        let load = Load {
            rate: Some(rate),
            length: left.min(TOKEN),
        };
        all.add(&workers.run("soak", load, sender, Arc::clone(&counters)).await?);
    }
    Ok(all)
}

/// Those who come and go.
struct Visits<'a> {
    pairs: &'a Pairs,
    address: Address,
    /// Groups that are there at a time.
    at_a_time: usize,
    meter: &'a Meter,
    counters: Arc<Counters>,
}

/// What became of them.
#[derive(Default)]
struct Visited {
    took: Duration,
    came: u64,
    closed: u64,
    reset: u64,
    vanished: u64,
    /// Groups that were not let in, and why the last one was not.
    refused: u64,
    reason: Option<String>,
    /// Streams that ended without being left.
    ended: u64,
    /// MiB that each process allocated, and when. Files that are mapped, as the index, grow with what was written.
    memory: Vec<(f64, Vec<(String, f64)>)>,
}

impl Visits<'_> {
    async fn run(&self, length: Duration) -> anyhow::Result<Visited> {
        let mut rng = StdRng::seed_from_u64(1);
        let watch = Arc::new(Counting(Arc::clone(&self.counters)));
        let mut open: VecDeque<Screens> = VecDeque::new();
        let mut visited = Visited::default();
        let mut leaves = LEAVES.into_iter().cycle();
        let started = Instant::now();
        while started.elapsed() < length && !is_stopped() {
            let group = self.pairs.group(&mut rng)?;
            visited.came += GROUP as u64;
            match Screens::open(&self.address, "/events", group, watch.clone()).await {
                Ok(screens) => open.push_back(screens),
                Err(error) => {
                    visited.refused += 1;
                    visited.reason = Some(format!("{error:#}"));
                }
            }
            while open.len() > self.at_a_time
                && let Some(oldest) = open.pop_front()
            {
                visited.part(oldest, leaves.next().unwrap_or(Leave::Close));
            }
            if visited.memory.len() < usize::try_from(started.elapsed().as_secs() / 5)? {
                let used = self.meter.stop()?.processes;
                let sizes = used
                    .into_iter()
                    .map(|usage| (usage.name, usage.anonymous_mib))
                    .collect();
                visited.memory.push((started.elapsed().as_secs_f64(), sizes));
            }
            until(Duration::from_millis(200), || false).await;
        }
        visited.took = started.elapsed();
        for (screens, how) in open.into_iter().zip(leaves) {
            visited.part(screens, how);
        }
        Ok(visited)
    }
}

impl Visited {
    /// A group leaves, in the middle of whatever comes.
    fn part(&mut self, mut screens: Screens, how: Leave) {
        self.ended += screens.ended();
        let closed = screens.leave(how) as u64;
        let left = GROUP as u64 - closed;
        self.closed += closed;
        match how {
            Leave::Close => self.closed += left,
            Leave::Reset => self.reset += left,
            Leave::Vanish => self.vanished += left,
        }
    }

    /// Memory of the processes over time.
    fn trend(&self) -> Trend {
        let names = self
            .memory
            .first()
            .map(|(_, sizes)| sizes.as_slice())
            .unwrap_or_default();
        let line = |(name, _): &(String, f64)| {
            let size = |sizes: &[(String, f64)]| sizes.iter().find(|(of, _)| of == name).map(|(_, size)| *size);
            let points = self.memory.iter().filter_map(|(at, sizes)| Some((*at, size(sizes)?)));
            (name.clone(), points.collect())
        };
        Trend {
            over: "seconds".to_owned(),
            of: "MiB".to_owned(),
            lines: names.iter().map(line).collect(),
        }
    }

    /// Mean MiB of a process in a part of the time, given as shares of it.
    fn memory_of(&self, name: &str, from: f64, to: f64) -> f64 {
        let sizes: Vec<f64> = self
            .memory
            .iter()
            .filter(|(at, _)| (from..=to).contains(&(at / self.took.as_secs_f64())))
            .flat_map(|(_, sizes)| sizes.iter().filter(|(of, _)| of == name).map(|(_, size)| *size))
            .collect();
        sizes.iter().sum::<f64>() / f64::from(u32::try_from(sizes.len().max(1)).unwrap_or(1))
    }
}

async fn judge(report: &mut Report, target: &Target, visited: &Visited, series: &Series) {
    say("waiting until the servers miss those who vanished");
    let ports = target.platform.ports();
    for (who, admin, name) in [
        ("gateway", ports.gateway_admin, "gateway_streams"),
        ("notify_service", ports.notify_admin, "notify_streams"),
    ] {
        let left = || metric(admin, name);
        until(MISSED, || left() == Some(0.0)).await;
        // Nothing known is not nothing left.
        report.at_most(
            &format!("streams left in {who}"),
            left().unwrap_or(f64::INFINITY),
            0.0,
            "",
        );
    }
    for (name, count) in [
        ("streams_that_came", visited.came),
        ("streams_closed", visited.closed),
        ("streams_reset", visited.reset),
        ("streams_that_vanished", visited.vanished),
    ] {
        report.figure(name, to_float(count));
    }
    if visited.vanished == 0 {
        report.set(
            "vanishing",
            "not done: to leave without a word takes CAP_NET_ADMIN; those streams were closed",
        );
    }
    if let Some(reason) = &visited.reason {
        report.set("refused", reason);
    }
    report.at_most("groups refused", to_float(visited.refused), 0.0, "");
    report.at_most("streams ended by the server", to_float(visited.ended), 0.0, "");
    report.at_most("errors of messages", to_float(series.error_count()), 0.0, "");
    for name in ["gateway", "notify_service", "chat_service", "indexer"] {
        let (early, late) = (visited.memory_of(name, 0.2, 0.4), visited.memory_of(name, 0.8, 1.0));
        report.figure(&format!("{name}_mib_early"), early);
        report.figure(&format!("{name}_mib_late"), late);
        report.at_most(
            &format!("memory of {name}, last fifth ÷ second"),
            late / early,
            FLAT,
            "",
        );
    }
}

/// Sum of a metric's samples on an admin listener.
fn metric(admin: u16, name: &str) -> Option<f64> {
    let answer = dev::http::request(admin, "GET", "/metrics", None, None).ok()?;
    let samples: Vec<f64> = answer
        .body
        .lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        })
        .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
        .collect();
    (!samples.is_empty()).then(|| samples.iter().sum())
}
