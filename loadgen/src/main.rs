//! `loadgen MODE`; `cargo dev load MODE` builds the platform first and runs this.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to the person who runs it"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use loadgen::modes::{Setting, connections, fanout, gateway, messages, search, signin, soak, storm, telemetry};
use loadgen::progress::{is_stopped, say, stop_flag};
use loadgen::report::Report;

/// Measures Fechatter: starts the platform with durability on, loads it, and says what it cost.
#[derive(Parser)]
#[command(name = "loadgen", version)]
struct Args {
    #[command(subcommand)]
    mode: Mode,
    /// Seconds of each measurement.
    #[arg(long, global = true, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Seconds of load before it that do not count.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    warmup: u64,
    /// Kept connections that requests are sent on.
    #[arg(long, global = true, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// Folder for MODE.json and MODE.svg.
    #[arg(long, global = true, default_value = ".fechatter/load")]
    out: PathBuf,
    /// Folder of the platform's binaries; that of this program by default.
    #[arg(long, global = true)]
    binaries: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Mode {
    /// What the edge costs per request, beside nginx and HAProxy.
    Gateway(gateway::Args),
    /// From a request to its durable commit and answer, in many chats.
    Send(messages::Args),
    /// From a sender's clock to another user's screen, through everything.
    Deliver(messages::Args),
    /// One message to every member of a large channel, then many.
    Fanout(fanout::Args),
    /// Memory and processor time of idle streams.
    Connections(connections::Args),
    /// Every client vanishes and comes back with its cursor.
    Storm(storm::Args),
    /// Searches among many messages, and how soon a message is found.
    Search(search::Args),
    /// Sign-ins beside messaging.
    Signin(signin::Args),
    /// Clients that come and go for a long time.
    Soak(soak::Args),
    /// What exporting telemetry costs, and what happens when its collector is killed.
    Telemetry(telemetry::Args),
    /// All of these but the soak and the telemetry, one after the other, each with its defaults.
    All,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all that was asked for was measured.
fn run(args: &Args) -> anyhow::Result<bool> {
    let stop = stop_flag();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop)).context("signals")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("signals")?;
    }
    dev::wait::interrupted_by(stop);
    if cfg!(debug_assertions) {
        say("this is a debug build: its figures say nothing; use --release");
    }
    let binaries = match &args.binaries {
        Some(folder) => folder.clone(),
        None => std::env::current_exe()
            .context("cannot find the running program")?
            .parent()
            .context("cannot find the build's folder")?
            .to_owned(),
    };
    let setting = Setting {
        binaries,
        length: Duration::from_secs(args.seconds),
        warmup: Duration::from_secs(args.warmup),
        connections: args.connections.into(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if matches!(args.mode, Mode::All) {
        let mut is_whole = true;
        for mode in ALL {
            say(&format!("measuring {}", mode.join(" ")));
            // Its defaults, as if it had been asked for alone.
            let words = std::iter::once("loadgen").chain(mode.iter().copied());
            let alone = Args::try_parse_from(words).context("a mode without defaults")?;
            is_whole &= report(&runtime.block_on(measure(&alone.mode, &setting))?, &args.out)?;
            if is_stopped() {
                break;
            }
        }
        return Ok(is_whole);
    }
    report(&runtime.block_on(measure(&args.mode, &setting))?, &args.out)
}

/// What `all` measures.
const ALL: [&[&str]; 9] = [
    &["gateway"],
    &["send", "--peers"],
    &["deliver", "--peers"],
    &["fanout", "--peers"],
    &["fanout", "--peers", "--via", "gateway"],
    &["connections"],
    &["storm"],
    &["search"],
    &["signin"],
];

/// Prints and saves a result; returns whether it is whole.
fn report(report: &Report, out: &Path) -> anyhow::Result<bool> {
    println!("{}", report.table());
    for path in report.save(out)? {
        println!("written: {}", path.display());
    }
    Ok(report.partial.is_none())
}

async fn measure(mode: &Mode, setting: &Setting) -> anyhow::Result<Report> {
    match mode {
        Mode::Gateway(args) => gateway::gateway(setting, args).await,
        Mode::Send(args) => messages::send(setting, args).await,
        Mode::Deliver(args) => messages::deliver(setting, args).await,
        Mode::Fanout(args) => fanout::fanout(setting, args).await,
        Mode::Connections(args) => connections::connections(setting, args).await,
        Mode::Storm(args) => storm::storm(setting, args).await,
        Mode::Search(args) => search::search(setting, args).await,
        Mode::Signin(args) => signin::signin(setting, args).await,
        Mode::Soak(args) => soak::soak(setting, args).await,
        Mode::Telemetry(args) => telemetry::telemetry(setting, args).await,
        Mode::All => anyhow::bail!("all modes at once cannot be measured"),
    }
}
