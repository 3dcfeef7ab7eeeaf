//! `telemetry`: what it costs to be watched, and what happens to requests when nobody watches any more.
//!
//! Two platforms of the same build stand side by side, one without an exporter and one with it, and take turns under the same
//! load; what they cost per request is compared within each turn. Then the second one is loaded as much as it takes, and its
//! collector is killed in the middle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dev::platform::Service;
use http::Method;

use super::messages::to_float;
use super::{Meter, Setting};
use crate::arrivals::Arrival;
use crate::client::Address;
use crate::machine::{self, Machine};
use crate::population::Population;
use crate::progress::{Counters, is_stopped, say};
use crate::receiver::Receiver;
use crate::report::{Report, Series};
use crate::talk::{Sender, wording};
use crate::target::Target;
use crate::workers::{Job, Load, Work, Workers};

/// Options of `telemetry`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Requests per second of each kind while costs are compared.
    #[arg(long, default_value_t = 400)]
    pub rate: u32,
    /// How often the two take turns; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How often the collector is killed; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub kills: u32,
    /// Chats that messages are spread over.
    #[arg(long, default_value_t = 50)]
    pub chats: usize,
    /// Write a line for each request, on both, and export them, too; as all processes do unless told otherwise.
    #[arg(long)]
    pub logs: bool,
}

/// Whose costs are compared.
const PROCESSES: [Service; 2] = [Service::Gateway, Service::Chat];
/// A platform with telemetry may cost this much of one without.
const COST: f64 = 1.05;
/// What is left of the throughput without a collector; less is noise on a machine that two platforms share.
const RATIO: f64 = 0.95;
/// Queues hold 2,048 spans and as many log records of some kilobytes each; more growth is a leak.
const GROWTH_MIB: f64 = 24.0;

/// Log lines of single requests, which a platform under load leaves out otherwise.
const LINES: [(&str, &str); 2] = [
    ("FECHATTER_GATEWAY__LOG__FILTER", "info"),
    ("FECHATTER_CHAT__LOG__FILTER", "info"),
];

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `GET /api/me`: little else is done.
    Reads,
    /// A message into a chat.
    Sends,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Sends => "sends",
        }
    }
}

struct Readers(Vec<Arc<str>>);

impl Job for Readers {
    fn prepare(&self, arrival: Arrival) -> Work {
        let place = usize::try_from(arrival.number).unwrap_or_default() % self.0.len();
        Work {
            method: Method::GET,
            path: "/api/me".into(),
            token: Arc::clone(&self.0[place]),
            body: None,
        }
    }
}

/// One of the two platforms.
struct Side {
    name: &'static str,
    target: Target,
    gateway: Address,
    readers: Arc<Readers>,
    senders: Arc<Sender>,
}

impl Side {
    fn start(name: &'static str, setting: &Setting, chats: usize, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        say(&format!("starting the platform with telemetry {name}"));
        let target = Target::start(&setting.binaries, &[], env)?;
        let population = Population::settle(&target.platform, &target.data, chats)?;
        let groups: Vec<Vec<usize>> = (0..chats).map(|person| vec![person]).collect();
        let ids = population.chats(&groups)?;
        let tokens: Vec<Arc<str>> = population
            .people
            .iter()
            .map(|person| person.token.as_str().into())
            .collect();
        let path = |id| Arc::from(format!("/api/chat/{id}/messages"));
        Ok(Self {
            name,
            gateway: target.gateway()?,
            senders: Arc::new(Sender {
                chats: ids.iter().map(path).zip(tokens.iter().cloned()).collect(),
                wording,
                ledger: None,
                first: 0,
            }),
            readers: Arc::new(Readers(tokens)),
            target,
        })
    }

    fn job(&self, kind: Kind) -> Arc<dyn Job> {
        match kind {
            Kind::Reads => Arc::clone(&self.readers) as Arc<dyn Job>,
            Kind::Sends => Arc::clone(&self.senders) as Arc<dyn Job>,
        }
    }

    /// Kept connections that have been used once.
    async fn workers(&self, setting: &Setting) -> anyhow::Result<Workers> {
        let first = self.readers.prepare(Arrival {
            number: 0,
            due: Instant::now(),
        });
        Workers::open(&self.gateway, setting.connections, &first).await
    }

    /// Spans, log records and instruments of the gateway and chat_service, as their pages say.
    fn counted(&self, what: fn(&str) -> f64) -> f64 {
        let page = |service| {
            let port = self.target.platform.ports().admin(service);
            dev::http::request(port, "GET", "/metrics", None, None).map_or_else(|_| String::new(), |answer| answer.body)
        };
        PROCESSES.into_iter().map(|service| what(&page(service))).sum()
    }
}

/// What was lost on the way or did not fit.
fn lost(page: &str) -> f64 {
    sum(page, |line| {
        let is_counter = line.starts_with("otel_sdk_exporter_") || line.starts_with("otel_sdk_processor_");
        is_counter && has_error(line)
    })
}

/// What the collector took.
fn taken(page: &str) -> f64 {
    sum(page, |line| line.starts_with("otel_sdk_exporter_") && !has_error(line))
}

fn has_error(line: &str) -> bool {
    line.contains("error_type=\"") && !line.contains("error_type=\"\"")
}

/// Sum of the series of a page of metrics.
fn sum(page: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    let series = page.lines().filter(|line| wanted(line));
    series
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Processor time per request on and off; throughput, memory and losses around the end of a collector.
pub async fn telemetry(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("telemetry", Machine::read());
    report.set("rate", args.rate);
    report.set("rounds", args.rounds);
    report.set("connections", setting.connections);
    report.set("chats", args.chats);
    report.set("receiver", Receiver::kind());
    report.set(
        "on",
        if args.logs {
            "1 % of traces, metrics each 10 s, logs"
        } else {
            "1 % of traces, metrics each 10 s"
        },
    );
    let mut receiver = Receiver::new()?;
    let url = receiver.url();
    let lines: &[(&str, &str)] = if args.logs { &LINES } else { &[] };
    let mut env = lines.to_vec();
    env.extend([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.01"),
        // Six times as often as by default, so that each measurement holds some of it.
        ("OTEL_METRIC_EXPORT_INTERVAL", "10000"),
        ("OTEL_LOGS_EXPORTER", if args.logs { "otlp" } else { "none" }),
    ]);
    let off = Side::start("off", setting, args.chats, lines)?;
    receiver.start(&off.target.data)?;
    let mut on = Side::start("on", setting, args.chats, &env)?;
    report.durability = machine::durability(&mut on.target.platform, &on.target.data);
    for kind in [Kind::Reads, Kind::Sends] {
        compare(setting, args, kind, [&off, &on], &mut report).await?;
    }
    report.at_least("records that the collector took", on.counted(taken), 1.0, "");
    report.at_most("lost while the collector was there", on.counted(lost), 0.0, "");
    // Its memory and its work are no part of what follows.
    drop(off);
    kill(setting, args, &on, &mut receiver, &mut report).await?;
    if is_stopped() {
        report.partial = Some("interrupted".to_owned());
    }
    Ok(report)
}

/// Both under the same load, turn by turn.
async fn compare(
    setting: &Setting,
    args: &Args,
    kind: Kind,
    sides: [&Side; 2],
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut turns: Vec<[Series; 2]> = Vec::new();
    for round in 0..args.rounds {
        say(&format!("{}: turn {} of {}", kind.name(), round + 1, args.rounds));
        // Each is first as often as second.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        let mut measured = [None, None];
        for place in order {
            measured[place] = Some(one(setting, args, kind, sides[place]).await?);
        }
        if let [Some(off), Some(on)] = measured {
            turns.push([off, on]);
        }
        if is_stopped() {
            break;
        }
    }
    for service in PROCESSES {
        let process = service.binary();
        let costs = |place: usize| {
            turns
                .iter()
                .map(|turn| turn[place].cpu_micros_per_request(process))
                .collect()
        };
        for (place, side) in sides.iter().enumerate() {
            report.figure(
                &format!("{process}_cpu_micros_per_{}_{}", kind.name(), side.name),
                median(costs(place)),
            );
        }
        let ratio = |turn: &[Series; 2]| {
            turn[1].cpu_micros_per_request(process) / turn[0].cpu_micros_per_request(process).max(f64::EPSILON)
        };
        let ratios: Vec<f64> = turns.iter().map(ratio).collect();
        report.figure(
            &format!("{process}_{}_on_by_off_least", kind.name()),
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
        );
        report.figure(
            &format!("{process}_{}_on_by_off_most", kind.name()),
            ratios.iter().copied().fold(0.0, f64::max),
        );
        let what = format!("CPU per request of {process}, {}, on ÷ off", kind.name());
        report.at_most(&what, median(ratios), COST, "");
    }
    let errors: u64 = turns.iter().flatten().map(Series::error_count).sum();
    report.at_most(&format!("errors of {}", kind.name()), to_float(errors), 0.0, "");
    report.series.extend(turns.pop().into_iter().flatten());
    Ok(())
}

async fn one(setting: &Setting, args: &Args, kind: Kind, side: &Side) -> anyhow::Result<Series> {
    let name = format!("{} {}", kind.name(), side.name);
    let rate = Some(f64::from(args.rate));
    let mut workers = side.workers(setting).await?;
    let load = |length| Load { rate, length };
    let warm = workers.run("warm-up", load(setting.warmup), side.job(kind), Arc::default());
    drop(warm.await?);
    let meter = Meter::start(&side.target.watched())?;
    let started = Instant::now();
    let counters = Arc::<Counters>::default();
    let outcomes = workers
        .run(&name, load(setting.length), side.job(kind), counters)
        .await?;
    let took = started.elapsed().max(setting.length);
    Ok(Series::new(&name, rate, took, &outcomes, Some(meter.stop()?)))
}

/// As many requests as are answered, with a collector and then without.
async fn kill(
    setting: &Setting,
    args: &Args,
    side: &Side,
    receiver: &mut Receiver,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut workers = side.workers(setting).await?;
    let (mut ratios, mut last) = (Vec::new(), Vec::new());
    let mut memory: Vec<[f64; 2]> = Vec::new();
    let mut dropped = 0.0;
    for round in 0..args.kills {
        say(&format!("killing the collector: {} of {}", round + 1, args.kills));
        receiver.start(&side.target.data)?;
        let warm = closed(setting.warmup.max(Duration::from_secs(1)));
        drop(
            workers
                .run("warm-up", warm, side.job(Kind::Reads), Arc::default())
                .await?,
        );
        last.clear();
        for name in ["with a collector", "collector killed"] {
            if name == "collector killed" {
                dropped = side.counted(lost);
                receiver.kill();
            }
            let meter = Meter::start(&side.target.watched())?;
            let started = Instant::now();
            let counters = Arc::<Counters>::default();
            let job = side.job(Kind::Reads);
            let outcomes = workers.run(name, closed(setting.length), job, counters).await?;
            let took = started.elapsed();
            last.push(Series::new(name, None, took, &outcomes, Some(meter.stop()?)));
        }
        ratios.push(last[1].done_per_second / last[0].done_per_second.max(f64::EPSILON));
        let of = |series: &Series, process| {
            series
                .cpu
                .as_ref()
                .and_then(|cpu| cpu.of(process))
                .map_or(0.0, |usage| usage.memory_mib)
        };
        memory.push(PROCESSES.map(|service| of(&last[1], service.binary()) - of(&last[0], service.binary())));
        dropped = side.counted(lost) - dropped;
        if is_stopped() {
            break;
        }
    }
    let errors: u64 = last.iter().map(Series::error_count).sum();
    report.at_least("throughput, killed ÷ with a collector", median(ratios), RATIO, "");
    for (place, service) in PROCESSES.into_iter().enumerate() {
        let most = memory
            .iter()
            .map(|growth| growth[place])
            .fold(f64::NEG_INFINITY, f64::max);
        report.at_most(
            &format!("growth of {} without it", service.binary()),
            most,
            GROWTH_MIB,
            "MiB",
        );
    }
    report.at_least("dropped and counted without it", dropped, 1.0, "");
    report.at_most("errors while it was killed", to_float(errors), 0.0, "");
    report.series.extend(last);
    Ok(())
}

const fn closed(length: Duration) -> Load {
    Load { rate: None, length }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_added_up() {
        let page = "# TYPE otel_sdk_exporter_span_exported_total counter\n\
                    otel_sdk_exporter_span_exported_total{otel_scope_name=\"observability\"} 70\n\
                    otel_sdk_exporter_span_exported_total{error_type=\"failed\",otel_scope_name=\"observability\"} 20\n\
                    otel_sdk_processor_log_processed_total{error_type=\"queue_full\"} 3\n\
                    otel_sdk_processor_log_processed_total{error_type=\"\"} 9\n\
                    gateway_refusals_total{error_type=\"other\"} 5\n";
        assert!((lost(page) - 23.0).abs() < f64::EPSILON);
        assert!((taken(page) - 70.0).abs() < f64::EPSILON);
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_nan());
    }
}
