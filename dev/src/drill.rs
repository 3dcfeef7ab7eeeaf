//! `cargo dev drill`: what operators rehearse, on a release that is started from the chart's render.

use anyhow::bail;
use dev::{chart, install};

use crate::cargo::{self, Build, Stop};
use crate::lines::say;

/// Options of `cargo dev drill`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    drill: Drill,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Drill {
    /// Replaces every replica of every service under load: no failed request, no lost event (3 minutes).
    Rolling,
    /// Takes a backup, goes back to a point in time, rebuilds stream and index: clients are told (1 minute).
    Restore,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    chart::install(&say)?;
    say("building");
    let binaries = cargo::build(Build::Debug, &stop)?;
    let name = match args.drill {
        Drill::Rolling => "rolling",
        Drill::Restore => "restore",
    };
    // In our process group, so that a Ctrl-C ends it and the namespaces that it lives in.
    let status = chart::program("drill.py", &binaries)?.arg(name).status()?;
    if !status.success() {
        bail!("the drill failed; what was lost is said above");
    }
    Ok(())
}
