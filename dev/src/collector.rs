//! `cargo dev collector`: a real OpenTelemetry Collector with our configuration, and the platform's telemetry through it.

use std::path::PathBuf;

use anyhow::{Context, bail};
use dev::otelcol::{self, Unbuilt};
use dev::{install, tools};

use crate::cargo::{self, Build, Stop};
use crate::lines::{say, show};

/// Options of `cargo dev collector`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A collector that is there already, with the components of observability/collector/builder.yaml.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where there is no Go, or its modules cannot be had, say so and be content.
    #[arg(long)]
    optional: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    let path = match &args.binary {
        Some(path) => path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?,
        None => match built() {
            Ok(path) => path,
            Err(Unbuilt::Unreachable(reason)) if args.optional => {
                say(&format!("left out: the collector ({reason:#})"));
                return Ok(());
            }
            Err(Unbuilt::Unreachable(error) | Unbuilt::Failed(error)) => return Err(error),
        },
    };
    say(&format!("validating the configuration with {}", path.display()));
    otelcol::validate(&path)?;
    say("building");
    cargo::build(Build::Tests, &stop)?;
    let path = path.to_str().context("the collector's path is no text")?;
    // With --workspace the binaries are those that were built above.
    let test = [
        "test",
        "--workspace",
        "--test",
        "end_to_end",
        "--",
        "--ignored",
        "--exact",
        "passing::telemetry_passes_through_the_collector",
        "--nocapture",
    ];
    if !cargo::run(&test, &[("FECHATTER_COLLECTOR", path)], &stop, show)? {
        bail!("telemetry does not pass through the collector as it should; what is missing is said above");
    }
    Ok(())
}

fn built() -> Result<PathBuf, Unbuilt> {
    let go = tools::go().context(
        "the collector is built with Go, and there is no go on the PATH or in /usr/local/go; https://go.dev/doc/install \
         says how to install it (that of Debian 12 is too old); or name a collector that is there, such as \
         otelcol-contrib, with --binary",
    );
    otelcol::build(&go.map_err(Unbuilt::Unreachable)?, &say)
}
