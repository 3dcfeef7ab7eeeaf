//! Results: a table for people, JSON for programs, a plot.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::machine::Machine;
use crate::outcome::{Fault, Outcomes};
use crate::plot;
use crate::processes::Shares;

/// Above this share of foreign processor time, latencies are noisy.
const QUIET: f64 = 0.05;

/// The result of one mode.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub mode: String,
    pub at: String,
    /// Why it is partial; a partial result is no figure to quote.
    pub partial: Option<String>,
    pub machine: Machine,
    pub durability: Vec<String>,
    /// What was asked for.
    pub settings: BTreeMap<String, String>,
    pub series: Vec<Series>,
    /// Other figures, each with its unit in its name.
    pub figures: BTreeMap<String, f64>,
    pub goals: Vec<Goal>,
    pub comparisons: Vec<Comparison>,
    /// What changed while it was measured.
    pub trend: Option<Trend>,
}

/// Figures over something, as lines of a plot.
#[derive(Debug, Clone, Serialize)]
pub struct Trend {
    /// What the axes are, with units.
    pub over: String,
    pub of: String,
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// One kind of work under one load.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    pub name: String,
    pub seconds: f64,
    pub offered_per_second: Option<f64>,
    pub done: u64,
    pub done_per_second: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    pub errors: BTreeMap<Fault, u64>,
    pub cpu: Option<Shares>,
    #[serde(skip)]
    pub curve: Vec<(f64, f64)>,
}

/// A figure and what it is to be.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    pub what: String,
    pub goal: String,
    pub measured: f64,
    pub met: bool,
}

/// The same work done by us and by other software, in the same run.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub peer: String,
    /// Which work, and which figure with its unit.
    pub what: String,
    pub ours: f64,
    pub theirs: f64,
    /// Theirs divided by ours; none where ours is 0.
    pub ratio: Option<f64>,
}

impl Series {
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    pub fn new(name: &str, offered: Option<f64>, length: Duration, outcomes: &Outcomes, cpu: Option<Shares>) -> Self {
        Self {
            name: name.to_owned(),
            seconds: length.as_secs_f64(),
            offered_per_second: offered,
            done: outcomes.count(),
            done_per_second: outcomes.count() as f64 / length.as_secs_f64().max(f64::EPSILON),
            p50_ms: outcomes.quantile_ms(0.5),
            p95_ms: outcomes.quantile_ms(0.95),
            p99_ms: outcomes.quantile_ms(0.99),
            p999_ms: outcomes.quantile_ms(0.999),
            max_ms: outcomes.max_ms(),
            errors: outcomes.errors().clone(),
            cpu,
            curve: outcomes.curve(),
        }
    }

    /// Errors of all classes.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Processor microseconds of one process per success.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    pub fn cpu_micros_per_request(&self, process: &str) -> f64 {
        let seconds = self
            .cpu
            .as_ref()
            .and_then(|cpu| cpu.of(process))
            .map_or(0.0, |usage| usage.cpu_seconds);
        seconds * 1e6 / (self.done as f64).max(1.0)
    }

    /// Processor microseconds of all servers per success; none when nothing was done.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    pub fn cpu_micros_of_all(&self) -> Option<f64> {
        let cpu = self.cpu.as_ref().filter(|_| self.done > 0)?;
        let seconds: f64 = cpu.processes.iter().map(|usage| usage.cpu_seconds).sum();
        Some(seconds * 1e6 / self.done as f64)
    }

    /// Memory of all servers in MiB.
    pub fn memory_mib_of_all(&self) -> Option<f64> {
        let cpu = self.cpu.as_ref()?;
        Some(cpu.processes.iter().map(|usage| usage.memory_mib).sum())
    }
}

impl Report {
    pub fn new(mode: &str, machine: Machine) -> Self {
        Self {
            mode: mode.to_owned(),
            at: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            partial: None,
            machine,
            durability: Vec::new(),
            settings: BTreeMap::new(),
            series: Vec::new(),
            figures: BTreeMap::new(),
            goals: Vec::new(),
            comparisons: Vec::new(),
            trend: None,
        }
    }

    /// Sets two series of the same work side by side.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    pub fn compare(&mut self, peer: &str, work: &str, ours: &Series, theirs: &Series) {
        let mut add = |figure: &str, ours: Option<f64>, theirs: Option<f64>| {
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                self.comparisons.push(Comparison {
                    peer: peer.to_owned(),
                    what: format!("{work}: {figure}"),
                    ours,
                    theirs,
                    ratio: (ours > 0.0).then(|| theirs / ours),
                });
            }
        };
        // A percentile of what was never answered is none.
        let of = |series: &Series, ms: f64| (series.done > 0).then_some(ms);
        add("done/s", Some(ours.done_per_second), Some(theirs.done_per_second));
        add("p50 ms", of(ours, ours.p50_ms), of(theirs, theirs.p50_ms));
        add("p99 ms", of(ours, ours.p99_ms), of(theirs, theirs.p99_ms));
        add(
            "errors",
            Some(ours.error_count() as f64),
            Some(theirs.error_count() as f64),
        );
        add(
            "cpu µs each, all servers",
            ours.cpu_micros_of_all(),
            theirs.cpu_micros_of_all(),
        );
        add("MiB, all servers", ours.memory_mib_of_all(), theirs.memory_mib_of_all());
    }

    pub fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        self.settings.insert(name.to_owned(), format!("{value}"));
    }

    pub fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), value);
    }

    /// Compares a figure with its upper bound.
    pub fn at_most(&mut self, what: &str, measured: f64, bound: f64, unit: &str) {
        self.goal(what, format!("≤ {bound} {unit}"), measured, measured <= bound);
    }

    /// Compares a figure with its lower bound.
    pub fn at_least(&mut self, what: &str, measured: f64, bound: f64, unit: &str) {
        self.goal(what, format!("≥ {bound} {unit}"), measured, measured >= bound);
    }

    fn goal(&mut self, what: &str, goal: String, measured: f64, met: bool) {
        self.goals.push(Goal {
            what: what.to_owned(),
            goal,
            measured,
            met,
        });
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}  {}", self.mode, self.at)?;
        if let Some(reason) = &self.partial {
            writeln!(out, "PARTIAL RESULT: {reason}")?;
        }
        let machine = &self.machine;
        writeln!(
            out,
            "machine: {} × {}, {} GiB, Linux {}, load average {:.2} before",
            machine.cores, machine.processor, machine.memory_gib, machine.kernel, machine.load_average
        )?;
        if !self.durability.is_empty() {
            writeln!(out, "durability: {}", self.durability.join(" "))?;
        }
        let settings: Vec<String> = self
            .settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        writeln!(out, "settings: {}", settings.join(" "))?;
        let width = self
            .series
            .iter()
            .map(|series| series.name.chars().count())
            .max()
            .unwrap_or(0)
            .max(8);
        writeln!(
            out,
            "\n{:width$} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}",
            "series", "offered/s", "done/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms", "errors"
        )?;
        for series in &self.series {
            let offered = series
                .offered_per_second
                .map_or_else(|| "closed".to_owned(), |rate| format!("{rate:.0}"));
            writeln!(
                out,
                "{:width$} {offered:>9} {:>9.0} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>8}",
                series.name,
                series.done_per_second,
                series.p50_ms,
                series.p95_ms,
                series.p99_ms,
                series.p999_ms,
                series.max_ms,
                series.error_count()
            )?;
        }
        for series in &self.series {
            for (fault, count) in &series.errors {
                writeln!(out, "  {}: {count} × {fault:?}: {}", series.name, fault.advice())?;
            }
        }
        self.write_processes(out)?;
        self.write_comparisons(out)?;
        if !self.figures.is_empty() {
            writeln!(out)?;
        }
        for (name, value) in &self.figures {
            writeln!(out, "{name} = {value:.3}")?;
        }
        for goal in &self.goals {
            let verdict = if goal.met { "met" } else { "MISSED" };
            writeln!(
                out,
                "goal {verdict}: {}: {:.2} (goal {})",
                goal.what, goal.measured, goal.goal
            )?;
        }
        Ok(())
    }

    fn write_processes(&self, out: &mut String) -> std::fmt::Result {
        for series in &self.series {
            let Some(cpu) = &series.cpu else { continue };
            write!(out, "\n{}: cpu µs/request (MiB now, peak):", series.name)?;
            for usage in cpu.processes.iter().filter(|usage| usage.cpu_seconds > 0.0) {
                write!(
                    out,
                    " {} {:.0} ({:.0}, {:.0})",
                    usage.name,
                    series.cpu_micros_per_request(&usage.name),
                    usage.memory_mib,
                    usage.peak_mib
                )?;
            }
            write!(
                out,
                "; shares of the processor: generator {:.0} %, foreign {:.0} %, idle {:.0} %",
                cpu.generator_share * 100.0,
                cpu.foreign_share * 100.0,
                cpu.idle_share * 100.0
            )?;
            if cpu.foreign_share > QUIET {
                write!(out, " NOISY: other programs ran; latencies are no figures to quote")?;
            }
        }
        writeln!(out)
    }

    fn write_comparisons(&self, out: &mut String) -> std::fmt::Result {
        let width = self
            .comparisons
            .iter()
            .map(|comparison| comparison.what.chars().count())
            .max()
            .unwrap_or(0);
        let mut peer = "";
        for comparison in &self.comparisons {
            if comparison.peer != peer {
                peer = &comparison.peer;
                writeln!(
                    out,
                    "\n{:width$} {:>12} {:>12} {:>14}",
                    format!("beside {peer}"),
                    "ours",
                    peer,
                    "theirs ÷ ours"
                )?;
            }
            let ratio = comparison
                .ratio
                .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
            writeln!(
                out,
                "{:width$} {:>12.2} {:>12.2} {ratio:>14}",
                comparison.what, comparison.ours, comparison.theirs
            )?;
        }
        Ok(())
    }

    /// Writes `MODE.json`, `MODE.svg` (latencies) and `MODE-trend.svg`, as far as there is something to draw, and returns their paths.
    pub fn save(&self, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let json = folder.join(format!("{}.json", self.mode));
        std::fs::write(&json, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", json.display()))?;
        let mut written = vec![json];
        if self.series.iter().any(|series| series.done > 0) {
            let svg = folder.join(format!("{}.svg", self.mode));
            std::fs::write(&svg, plot::latency(self)?).with_context(|| format!("cannot write {}", svg.display()))?;
            written.push(svg);
        }
        if let Some(trend) = &self.trend {
            let svg = folder.join(format!("{}-trend.svg", self.mode));
            std::fs::write(&svg, plot::trend(self, trend)?)
                .with_context(|| format!("cannot write {}", svg.display()))?;
            written.push(svg);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(ms: u64, count: u64) -> Series {
        let mut outcomes = Outcomes::new();
        for _ in 0..count {
            outcomes.succeed(Duration::from_millis(ms));
        }
        Series::new("work", Some(2.0), Duration::from_secs(2), &outcomes, None)
    }

    #[test]
    fn a_peer_is_set_beside_us_and_what_cannot_be_compared_is_left_out() {
        let mut report = Report::new("send", Machine::read());
        report.compare("other", "2/s", &series(10, 4), &series(30, 2));
        let of = |what: &str| report.comparisons.iter().find(|comparison| comparison.what == what);
        // Histograms keep three digits.
        let ratio = of("2/s: p99 ms").unwrap().ratio.unwrap();
        assert!((2.99..3.01).contains(&ratio), "{ratio}");
        assert_eq!(of("2/s: done/s").unwrap().ratio, Some(0.5));
        assert_eq!(of("2/s: errors").unwrap().ratio, None);
        assert!(of("2/s: MiB, all servers").is_none(), "nobody looked at processes");
        assert!(report.table().contains("beside other"), "{}", report.table());
    }
}
