//! `cargo dev test`.

use std::time::Instant;

use anyhow::bail;
use dev::{chart, install};

use crate::cargo::{self, Build, Stop};
use crate::lines::{say, show};

/// Options of `cargo dev test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out formatting and lints.
    #[arg(long)]
    no_lint: bool,
    /// Passed on to `cargo test`.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    install::observability(&say)?;
    install::peers(&say)?;
    chart::install(&say)?;
    if !args.no_lint {
        step("formatting", &["fmt", "--all", "--check"], &stop)?;
        let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        step("lints", &lints, &stop)?;
    }
    // The end-to-end tests run the real binaries.
    say("building");
    cargo::build(Build::Tests, &stop)?;
    let outcome = tests(&args.rest, &stop)?;
    say(&format!("took {} s", started.elapsed().as_secs()));
    let Outcome {
        passed,
        failed,
        skipped,
        success,
    } = outcome;
    show(&format!("{passed} passed, {failed} failed, {skipped} skipped"));
    if failed > 0 {
        bail!("{failed} tests failed; their output is above");
    }
    if !success {
        bail!("cargo test failed before or beside its tests; its messages are above");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

fn step(what: &str, args: &[&str], stop: &Stop) -> anyhow::Result<()> {
    say(what);
    cargo::require(what, args, &[], stop)
}

/// What all runners together report.
#[derive(Default)]
struct Outcome {
    passed: u64,
    failed: u64,
    skipped: u64,
    success: bool,
}

/// Runs all tests, passes their output on and adds up what the runners report.
fn tests(rest: &[String], stop: &Stop) -> anyhow::Result<Outcome> {
    say("tests");
    let mut args = vec!["test", "--no-fail-fast"];
    let names_packages = |arg: &String| arg == "-p" || arg.starts_with("--package");
    // Cargo would heed this one and forget the others.
    if !rest.iter().any(names_packages) {
        args.push("--workspace");
    }
    args.extend(rest.iter().map(String::as_str));
    let mut outcome = Outcome::default();
    outcome.success = cargo::run(&args, &[], stop, |line| {
        show(line);
        if let Some((passed, failed, ignored)) = parse(line) {
            outcome.passed += passed;
            outcome.failed += failed;
            outcome.skipped += ignored;
        }
    })?;
    Ok(outcome)
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse(line: &str) -> Option<(u64, u64, u64)> {
    let line = line.strip_prefix("test result: ")?;
    let number = |label: &str| -> Option<u64> { line.split(label).next()?.split_whitespace().last()?.parse().ok() };
    Some((number(" passed;")?, number(" failed;")?, number(" ignored;")?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn results_are_read() {
        let line = "test result: ok. 41 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 49.16s";
        assert_eq!(parse(line), Some((41, 1, 2)));
        assert_eq!(parse("running 41 tests"), None);
    }
}
