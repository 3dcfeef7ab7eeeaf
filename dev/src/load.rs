//! `cargo dev load`.

use std::process::Command;

use anyhow::{Context, bail};
use dev::install;

use crate::cargo::{self, Build, Stop, repository};
use crate::lines::say;

/// Options of `cargo dev load`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The mode and its options; `--help` lists them (docs/performance.md explains them).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    mode: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    let has_peers = |word: &String| ["gateway", "all", "--peers"].contains(&word.as_str());
    if args.mode.iter().any(has_peers) {
        install::peers(&say)?;
    }
    say("building with optimisation (the first time takes many minutes)");
    let folder = cargo::build(Build::Release, &stop)?;
    // It hears of Ctrl-C itself, and says what it has until then.
    let status = Command::new(folder.join("loadgen"))
        .args(&args.mode)
        .current_dir(repository())
        .status()
        .context("cannot run the load generator")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(3) => bail!("the result is partial; the table says why"),
        _ => bail!("nothing was measured; the reason is above"),
    }
}
