//! `cargo dev pictures`: what the dashboards look like, of a platform that works.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use dev::platform::{Options, Platform, Ports};
use dev::{install, ports, scratch, seed, tools};

use crate::cargo::{self, Build, Stop, repository};
use crate::lines::{say, show};
use crate::up::observability::{self, Listen};

/// Draws the pictures, from PyPI.
const MATPLOTLIB: &str = "matplotlib==3.11.2";
/// Messages of the demo workspace, of whose people one talks.
const SEED_MESSAGES: usize = 100;
const TALKER: &str = "ada@demo.example";

/// Options of `cargo dev pictures`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Minutes of load, which the pictures show.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=50))]
    minutes: u64,
    /// Messages a second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Without optimisation: quicker built, and slower than what anybody runs.
    #[arg(long)]
    debug: bool,
    /// Where they go.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    install::observability(&say)?;
    let matplotlib = matplotlib()?;
    say("building");
    let binaries = cargo::build(if args.debug { Build::Debug } else { Build::Release }, &stop)?;
    let folder = scratch::folder()?;
    dev::postgres::open_for_all(folder.path())?;
    let data = folder.path().to_owned();
    std::fs::create_dir_all(data.join("logs"))?;
    let listen = Listen {
        prometheus: ports::free()?,
        otlp: ports::free()?,
        probe: ports::free()?,
    };
    let ports = Ports::free()?;
    let mut watching = observability::start(&data, listen, &ports)?;
    let mut env = watching.environment();
    env.extend(
        [
            // One person talks for all, from one address, and for longer than a token lives.
            ("CHAT__AUTH__ACCESS_SECONDS", "3600"),
            ("GATEWAY__RATE_LIMITS__SEND", "{requests=1000000, window_seconds=60}"),
            // Her screen does not return as a browser's does when its stream is ended to go elsewhere.
            ("NOTIFY__STREAM__ROTATE_SECONDS", "86400"),
        ]
        .map(|(key, value)| (format!("FECHATTER_{key}"), value.to_owned())),
    );
    let mut platform = Platform::start(
        Options {
            data: data.clone(),
            binaries,
            ports,
            postgres_url: None,
            nats_url: None,
            fsync: true,
            without: Vec::new(),
            twins: Vec::new(),
            env,
        },
        &say,
    )?;
    seed::run(platform.ports().chat, SEED_MESSAGES, &data.join("seeded"), &say)?;
    watching.start_probe(&platform)?;
    show(&watching.greeting());
    talk(args, &platform, &data)?;
    let out = args.out.clone().unwrap_or_else(|| repository().join("docs/dashboards"));
    say(&format!("drawing into {}", out.display()));
    tools::run(
        Command::new("python3")
            .arg(repository().join("observability/grafana/pictures.py"))
            .arg(format!("http://127.0.0.1:{}", listen.prometheus))
            .arg(&out)
            .arg(args.minutes.to_string())
            .arg(what_ran(args))
            .env("PYTHONPATH", matplotlib),
    )?;
    platform.stop();
    Ok(())
}

/// For whoever looks at the pictures.
fn what_ran(args: &Args) -> String {
    let build = if args.debug { "debug" } else { "release" };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let collector = tools::collector().map_or("no collector", |_| "a collector");
    format!(
        "{build} build on {cores} cores, {} messages a second for {} minutes, a probe, {collector}",
        args.rate, args.minutes
    )
}

/// Where [`MATPLOTLIB`] is, installed unless it is there.
fn matplotlib() -> anyhow::Result<PathBuf> {
    let folder = tools::folder().join("picture-modules-1");
    if !folder.join("matplotlib").is_dir() {
        say(&format!(
            "missing: {MATPLOTLIB} (draws the pictures): installing it with pip into {}",
            folder.display()
        ));
        install::with_pip(MATPLOTLIB, &folder, &[])?;
    }
    Ok(folder)
}

/// The load: messages from one person's hand to her own other screen, through the gateway; beside it, the probe.
fn talk(args: &Args, platform: &Platform, data: &std::path::Path) -> anyhow::Result<()> {
    let seconds = (args.minutes * 60).to_string();
    let rate = args.rate.to_string();
    let status = Command::new(platform.binary("loadgen")?)
        .args(["deliver", "--url", &platform.url(), "--email", TALKER, "--ca"])
        .arg(platform.ca())
        .args([
            "--rate",
            &rate,
            "--seconds",
            &seconds,
            "--warmup",
            "0",
            "--connections",
            "8",
            "--out",
        ])
        .arg(data.join("load"))
        .env("FECHATTER_PASSWORD", seed::PASSWORD)
        .status()
        .context("cannot run the load generator")?;
    if !status.success() {
        bail!("the load ended early; the reason is above");
    }
    Ok(())
}
