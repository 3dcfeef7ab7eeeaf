//! `fanout`: one message to every member of a large channel, then many messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;

use super::messages::{Receiver, Via, to_float};
use super::{Meter, SETTLE, Setting, until};
use crate::client::{Call, Kept};
use crate::ledger::Ledger;
use crate::limits;
use crate::machine::{self, Machine};
use crate::outcome::Outcomes;
use crate::population::Population;
use crate::progress::{Counters, Live, is_stopped, say};
use crate::report::{Report, Series};
use crate::screens::{self, Screen, Screens};
use crate::target::Target;

/// Options of `fanout`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Members of the channel, each with a stream.
    #[arg(long, alias = "streams", default_value_t = 9_500, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub members: u32,
    /// Messages that are sent one at a time, each after the last one was everywhere.
    #[arg(long, default_value_t = 20)]
    pub messages: u32,
    /// Messages that are sent as fast as they are accepted.
    #[arg(long, default_value_t = 100)]
    pub burst: u32,
    /// Where the streams are opened.
    #[arg(long, value_enum, default_value_t = Via::Service)]
    pub via: Via,
}

/// Each delivery's latency, the time to the last one, and deliveries per second.
pub async fn fanout(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let members = args.members as usize;
    // The gateway has a connection to each side of a stream.
    let per_stream = if args.via == Via::Gateway { 2 } else { 1 };
    limits::require_descriptors(members as u64, per_stream, "a stream to each member")?;
    limits::require_ports(members as u64, members as u64 / 20_000 + 1)?;
    let mut target = Target::start(&setting.binaries, &[], &[])?;
    say(&format!("making a channel of {members}"));
    let population = Population::settle(&target.platform, &target.data, members)?;
    let chat = population.chats(&[(0..members).collect()])?[0];
    let mut report = Report::new("fanout", machine);
    report.durability = machine::durability(&mut target.platform, &target.data);
    report.set("members", members);
    report.set("streams_via", format!("{:?}", args.via).to_lowercase());

    let total = u64::from(args.messages + args.burst);
    let ledger = Arc::new(Ledger::new(usize::try_from(total)? + 1));
    let counters = Arc::<Counters>::default();
    let watch = Arc::new(Receiver {
        ledger: Arc::clone(&ledger),
        counters: Arc::clone(&counters),
    });
    let address = match args.via {
        Via::Service => target.notify(),
        Via::Gateway => target.gateway()?,
    };
    say(&format!("opening {members} streams"));
    let list = population.people.iter().enumerate().map(|(number, person)| Screen {
        number,
        token: person.token.as_str().into(),
        cursor: None,
    });
    let mut open = Screens::open(&address, "/events", list.collect(), watch).await?;

    let path = format!("/api/chat/{chat}/messages");
    let token = &population.people[0].token;
    let mut sender = Kept::new(target.chat());
    let all = u32::try_from(members)?;
    let mut last_byte = Outcomes::new();
    let meter = Meter::start(&target.watched())?;
    let started = Instant::now();
    let live = Live::show(
        "fanout",
        Duration::from_secs(u64::from(args.messages)),
        Arc::clone(&counters),
    );
    for number in 0..u64::from(args.messages) {
        if is_stopped() {
            report.partial = Some("interrupted".to_owned());
            break;
        }
        ledger.is_due(number, Instant::now());
        send(&mut sender, &path, token, number).await?;
        counters.done.fetch_add(1, Ordering::Relaxed);
        if !until(SETTLE, || ledger.times_seen(number) >= all).await {
            report.partial = Some(format!(
                "message {number} came to {} of {all} within {} s",
                ledger.times_seen(number),
                SETTLE.as_secs()
            ));
            break;
        }
        if let Some(after) = ledger.last_after(number) {
            last_byte.succeed(after);
        }
    }
    let length = started.elapsed();
    let each = ledger.latencies();
    report
        .series
        .push(Series::new("each delivery", None, length, &each, Some(meter.stop()?)));
    report
        .series
        .push(Series::new("last delivery", None, length, &last_byte, None));
    let goal = if args.via == Via::Gateway { 250.0 } else { 100.0 };
    report.at_most("last byte, median message", last_byte.quantile_ms(0.5), goal, "ms");

    let first = u64::from(args.messages);
    let meter = Meter::start(&target.watched())?;
    let started = Instant::now();
    for number in first..total {
        ledger.is_due(number, Instant::now());
        send(&mut sender, &path, token, number).await?;
        counters.done.fetch_add(1, Ordering::Relaxed);
    }
    let sent = started.elapsed();
    let bound = SETTLE + Duration::from_secs(u64::from(args.burst) * members as u64 / 20_000);
    let arrived = until(bound, || (first..total).all(|number| ledger.times_seen(number) >= all)).await;
    drop(live);
    let cpu = meter.stop()?;
    let end = (first..total)
        .filter_map(|number| ledger.last_at(number))
        .max()
        .unwrap_or_else(Instant::now);
    let took = end.saturating_duration_since(started);
    let delivered: u64 = (first..total).map(|number| u64::from(ledger.times_seen(number))).sum();
    let mut burst = ledger.latencies();
    burst.subtract(&each);
    let series = Series::new("burst, each delivery", None, took, &burst, Some(cpu));
    let rate = series.done_per_second;
    report.figure("burst_sent_after_seconds", sent.as_secs_f64());
    for part in ["notify_service", "gateway"] {
        report.figure(
            &format!("{part}_cpu_micros_per_delivery"),
            series.cpu_micros_per_request(part),
        );
    }
    report.series.push(series);
    let goal = if args.via == Via::Gateway { 60_000.0 } else { 150_000.0 };
    report.at_least("deliveries", rate, goal, "/s");
    let expected = total * members as u64;
    let seen: u64 = (0..total).map(|number| u64::from(ledger.times_seen(number))).sum();
    report.at_most("lost", to_float(expected.saturating_sub(seen)), 0.0, "");
    report.at_most("doubled", to_float(seen.saturating_sub(expected)), 0.0, "");
    if !arrived && report.partial.is_none() {
        report.partial = Some(format!(
            "{delivered} of {} deliveries of the burst arrived within {} s",
            u64::from(args.burst) * members as u64,
            bound.as_secs()
        ));
    }
    if open.ended() > 0 {
        report.partial = Some(format!("{} streams ended while measuring", open.ended()));
    }
    open.close();
    Ok(report)
}

async fn send(sender: &mut Kept, path: &str, token: &str, number: u64) -> anyhow::Result<()> {
    let body = json!({"content": screens::content(number)}).to_string();
    match sender.call(&Call::post(path, Some(token), body.into_bytes())).await {
        Ok(_) => Ok(()),
        Err(fault) => bail!("sending failed ({fault:?}): {}", fault.advice()),
    }
}
