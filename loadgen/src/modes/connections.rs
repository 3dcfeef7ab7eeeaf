//! `connections`: what an idle stream costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Meter, Setting, until};
use crate::limits;
use crate::machine::{self, Machine};
use crate::population::Population;
use crate::processes::Shares;
use crate::progress::{is_stopped, say};
use crate::report::{Report, Trend};
use crate::screens::{Frame, Screen, Screens, Watch};
use crate::stage::Via;
use crate::target::Target;

/// Options of `connections`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Streams, opened in steps.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=200_000))]
    pub streams: u32,
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub steps: u32,
    #[arg(long, value_enum, default_value_t = Via::Gateway)]
    pub via: Via,
}

struct Nobody;

impl Watch for Nobody {
    fn frame(&self, _: usize, _: &Frame<'_>, _: Instant) {}
}

/// Processes whose memory grows with streams.
const HOLDERS: [&str; 2] = ["notify_service", "gateway"];
/// Streams that are there before the first look, so that what every process makes once is not counted.
const BASE: usize = 200;

/// Memory per stream as the slope over the steps, and processor time while nothing happens.
pub async fn connections(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let streams = args.streams as usize;
    limits::require_descriptors(u64::from(args.streams), "--streams", "an idle stream each")?;
    limits::require_ports(u64::from(args.streams), u64::from(args.streams) / 20_000 + 1)?;
    let mut target = Target::start(&setting.binaries, &[], &[])?;
    let population = Population::settle(&target.platform, &target.data, streams)?;
    let pairs: Vec<Vec<usize>> = (0..streams / 2).map(|pair| vec![pair * 2, pair * 2 + 1]).collect();
    population.chats(&pairs)?;
    let mut report = Report::new("connections", machine);
    report.durability = machine::durability(&mut target.platform, &target.data);
    report.set("streams", streams);
    report.set("via", format!("{:?}", args.via).to_lowercase());
    let address = match args.via {
        Via::Service => target.notify(),
        Via::Gateway => target.gateway()?,
    };
    let watched = target.watched();
    let mut open = Vec::new();
    let mut points: Vec<(usize, Shares)> = Vec::new();
    let mut at = 0;
    let base = BASE.min(streams / 2);
    let steps = args.steps as usize;
    for step in 0..=steps {
        let until_now = base + (streams - base) * step / steps;
        say(&format!("opening streams {at} to {until_now}"));
        let list = (at..until_now).map(|number| Screen {
            number,
            token: population.people[number].token.as_str().into(),
            cursor: None,
        });
        open.push(Screens::open(&address, "/events", list.collect(), Arc::new(Nobody)).await?);
        at = until_now;
        // What opening took in passing is given back by now, or never will be.
        let meter = Meter::start(&watched)?;
        until(Duration::from_secs(3), || false).await;
        points.push((until_now, meter.stop()?));
        if is_stopped() {
            report.partial = Some("interrupted".to_owned());
            return Ok(report);
        }
    }
    for (count, shares) in &points {
        for holder in HOLDERS {
            if let Some(usage) = shares.of(holder) {
                report.figure(&format!("{holder}_mib_at_{count:06}"), usage.memory_mib);
            }
        }
    }
    report.trend = Some(trend(&points));
    say("looking at them doing nothing");
    let meter = Meter::start(&watched)?;
    let started = Instant::now();
    until(setting.length, || false).await;
    let idle = meter.stop()?;
    let seconds = started.elapsed().as_secs_f64();
    for usage in &idle.processes {
        report.figure(
            &format!("idle_cpu_percent_{}", usage.name),
            usage.cpu_seconds / seconds * 100.0,
        );
    }
    for (holder, bound) in HOLDERS.into_iter().zip([8.0, 16.0]) {
        let slope: Option<Vec<(f64, f64)>> = points
            .iter()
            .map(|(count, shares)| {
                let count = u32::try_from(*count).ok()?;
                shares
                    .of(holder)
                    .map(|usage| (f64::from(count), usage.memory_mib * 1_024.0))
            })
            .collect();
        if let Some(points) = slope
            && (args.via == Via::Gateway || holder != "gateway")
        {
            report.at_most(
                &format!("{holder} memory per idle stream"),
                slope_of(&points),
                bound,
                "KiB",
            );
        }
    }
    let ended: u64 = open.iter().map(Screens::ended).sum();
    if ended > 0 {
        report.partial = Some(format!("{ended} streams ended while measuring"));
    }
    Ok(report)
}

/// Memory of the processes that hold streams, by how many they are.
fn trend(points: &[(usize, Shares)]) -> Trend {
    let line = |holder: &str| {
        let point = |(count, shares): &(usize, Shares)| {
            let count = u32::try_from(*count).ok()?;
            Some((f64::from(count), shares.of(holder)?.memory_mib))
        };
        (holder.to_owned(), points.iter().filter_map(point).collect())
    };
    Trend {
        over: "streams".to_owned(),
        of: "MiB".to_owned(),
        lines: HOLDERS.map(line).to_vec(),
    }
}

/// Least squares.
fn slope_of(points: &[(f64, f64)]) -> f64 {
    let count = f64::from(u32::try_from(points.len()).unwrap_or(u32::MAX));
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    above / below
}

#[cfg(test)]
mod tests {
    use super::slope_of;

    #[test]
    fn the_slope_leaves_out_what_is_always_there() {
        let slope = slope_of(&[(100.0, 1_800.0), (200.0, 2_600.0), (400.0, 4_200.0)]);
        assert!((slope - 8.0).abs() < 1e-9, "{slope}");
    }
}
