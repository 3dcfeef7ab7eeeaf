//! `cargo dev test`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use dev::install;

use crate::lines::{say, show};
use crate::up::repository;

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
    install::everything(&say)?;
    if !args.no_lint {
        step("formatting", &["fmt", "--all", "--check"])?;
        step(
            "lints",
            &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        )?;
    }
    // The end-to-end tests run the real binaries.
    step("building", &["build", "--workspace"])?;
    let (passed, failed, ignored) = tests(&args.rest)?;
    say(&format!("took {} s", started.elapsed().as_secs()));
    show(&format!("{passed} passed, {failed} failed, {ignored} skipped"));
    if failed > 0 {
        bail!("{failed} tests failed; their output is above");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

fn step(what: &str, args: &[&str]) -> anyhow::Result<()> {
    say(what);
    let status = Command::new("cargo")
        .args(args)
        .current_dir(repository())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("{what} failed (cargo {}); its messages are above", args.join(" "));
    }
    Ok(())
}

/// Runs all tests, passes their output on and adds up what the runners report.
fn tests(rest: &[String]) -> anyhow::Result<(u64, u64, u64)> {
    say("tests");
    let mut child = Command::new("cargo")
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(rest)
        .current_dir(repository())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let output = child.stdout.take().context("no output")?;
    let mut sums = (0, 0, 0);
    for line in BufReader::new(output).lines() {
        let line = line.unwrap_or_default();
        show(&line);
        if let Some((passed, failed, ignored)) = parse(&line) {
            sums = (sums.0 + passed, sums.1 + failed, sums.2 + ignored);
        }
    }
    let status = child.wait()?;
    if !status.success() && sums.1 == 0 {
        bail!("cargo test failed before or beside its tests; its messages are above");
    }
    Ok(sums)
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
