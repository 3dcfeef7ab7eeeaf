//! `soak`: clients come and go for a long time, some vanish without closing; memory and streams must stay flat.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::messages::{Receiver, Sender, to_float};
use super::{Meter, Setting, until};
use crate::ledger::Ledger;
use crate::limits;
use crate::machine::{self, Machine};
use crate::population::Population;
use crate::progress::{Counters, is_stopped};
use crate::report::{Report, Series};
use crate::screens::{Screen, Screens};
use crate::target::Target;
use crate::workers::{Load, Work, Workers};

/// Options of `soak`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Minutes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    pub minutes: u64,
    /// Streams that are open at a time.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    pub streams: u32,
    /// Messages per second.
    #[arg(long, default_value_t = 200)]
    pub rate: u32,
}

/// Streams that come and go together.
const GROUP: usize = 20;
/// Memory may differ by this much between the second fifth and the last: caches fill, allocators keep pages.
const FLAT: f64 = 1.10;

/// Memory over time, streams left at the end, errors.
pub async fn soak(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let streams = args.streams as usize;
    limits::require_descriptors(u64::from(args.streams) * 2, 2, "streams that come and go")?;
    let mut target = Target::start(&setting.binaries, &[], &[])?;
    let population = Population::settle(&target.platform, &target.data, streams * 2)?;
    let groups: Vec<Vec<usize>> = (0..streams).map(|pair| vec![pair * 2, pair * 2 + 1]).collect();
    let chats = population.chats(&groups)?;
    let mut report = Report::new("soak", machine);
    report.durability = machine::durability(&mut target.platform, &target.data);
    report.set("minutes", args.minutes);
    report.set("streams", streams);
    report.set("messages_per_second", args.rate);

    let address = target.gateway()?;
    let length = Duration::from_secs(args.minutes * 60);
    let counters = Arc::<Counters>::default();
    let room = usize::try_from(u64::from(args.rate) * 2 * length.as_secs())? + 10_000;
    let ledger = Arc::new(Ledger::new(room));
    let watch = Arc::new(Receiver {
        ledger: Arc::clone(&ledger),
        counters: Arc::clone(&counters),
    });
    let sender = Arc::new(Sender {
        chats: chats
            .iter()
            .enumerate()
            .map(|(number, chat)| {
                (
                    format!("/api/chat/{chat}/messages").into(),
                    population.people[number * 2].token.as_str().into(),
                )
            })
            .collect(),
        ledger: Some(ledger),
        first: 0,
    });
    let look = Work {
        method: http::Method::GET,
        path: "/api/me".into(),
        token: population.people[0].token.as_str().into(),
        body: None,
    };
    let mut workers = Workers::open(&address, setting.connections.min(16), &look).await?;
    let watched = target.watched();
    let meter = Meter::start(&watched)?;
    let rate = f64::from(args.rate);
    let talk = {
        let load = Load {
            rate: Some(rate),
            length,
        };
        let counters = Arc::clone(&counters);
        tokio::spawn(async move { workers.run("soak", load, sender, counters).await })
    };
    let started = Instant::now();
    let mut rng = StdRng::seed_from_u64(1);
    let mut open: VecDeque<Screens> = VecDeque::new();
    let mut memory: Vec<(f64, Vec<(String, f64)>)> = Vec::new();
    let (mut refused, mut came) = (0_u64, 0_u64);
    while started.elapsed() < length && !is_stopped() {
        let list = (0..GROUP).map(|_| {
            let number = rng.random_range(0..streams);
            Screen {
                number,
                token: population.people[number * 2 + 1].token.as_str().into(),
                cursor: None,
            }
        });
        came += GROUP as u64;
        match Screens::open(&address, "/events", list.collect(), watch.clone()).await {
            Ok(screens) => open.push_back(screens),
            Err(_) => refused += 1,
        }
        while open.len() > streams / GROUP {
            // Dropped: closed without a word, in the middle of whatever comes.
            open.pop_front();
        }
        if memory.len() < usize::try_from(started.elapsed().as_secs() / 5)? {
            let used = meter.stop()?.processes;
            let sizes = used.into_iter().map(|usage| (usage.name, usage.memory_mib)).collect();
            memory.push((started.elapsed().as_secs_f64(), sizes));
        }
        until(Duration::from_millis(200), || false).await;
    }
    let outcomes = talk.await??;
    let took = started.elapsed();
    let ended: u64 = open.iter().map(Screens::ended).sum();
    drop(open);
    let admin = target.platform.ports().gateway_admin;
    let streams_left = || metric(admin, "gateway_streams");
    until(Duration::from_secs(40), || streams_left() == Some(0.0)).await;
    report.figure("streams_that_came", to_float(came));
    report.figure("groups_refused", to_float(refused));
    report.figure("streams_that_ended_by_themselves", to_float(ended));
    report.at_most(
        "streams left in the gateway",
        streams_left().unwrap_or(f64::INFINITY),
        0.0,
        "",
    );
    let series = Series::new("messages", Some(rate), took, &outcomes, Some(meter.stop()?));
    report.at_most("errors", to_float(series.error_count() + refused), 0.0, "");
    report.series.push(series);
    for name in ["gateway", "notify_service", "chat_service", "indexer"] {
        let of = |from: f64, to: f64| -> f64 {
            let sizes: Vec<f64> = memory
                .iter()
                .filter(|(at, _)| (from..=to).contains(&(at / took.as_secs_f64())))
                .flat_map(|(_, sizes)| sizes.iter().filter(|(of, _)| of == name).map(|(_, size)| *size))
                .collect();
            sizes.iter().sum::<f64>() / f64::from(u32::try_from(sizes.len().max(1)).unwrap_or(1))
        };
        let (early, late) = (of(0.2, 0.4), of(0.8, 1.0));
        report.figure(&format!("{name}_mib_early"), early);
        report.figure(&format!("{name}_mib_late"), late);
        report.at_most(
            &format!("memory of {name}, last fifth ÷ second"),
            late / early,
            FLAT,
            "",
        );
    }
    if is_stopped() {
        report.partial = Some("interrupted".to_owned());
    }
    Ok(report)
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
