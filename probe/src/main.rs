//! The probe process: configuration, admin listener, one round after the other. No logic.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use service_runtime::process::{self, Process};
use service_runtime::{admin, serve};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use probe::config::{Config, ENV_PREFIX};
use probe::round::{Failure, Probe};

/// The synthetic probe of Fechatter: uses the platform as a user does, again and again, and exports how it went.
#[derive(Parser)]
#[command(name = "probe", version)]
struct Args {
    /// TOML file; environment variables FECHATTER_PROBE__… go over it.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Makes one round and says how it went: exit code 0 when it passed, 2 when it failed.
    Once,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match process::load::<Config>(ENV_PREFIX, args.config.as_deref()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match args.command {
        Some(Command::Once) => process::command(|| once(config)),
        None => {
            let log = config.log.clone();
            process::run("probe", &log, |process| run(config, process))
        }
    }
}

async fn once(config: Config) -> anyhow::Result<u8> {
    match Probe::new(config).round().await {
        Ok(()) => Ok(0),
        Err(Failure { step, fault }) => {
            let request = fault.request_id.unwrap_or_else(|| "none".to_owned());
            anyhow::bail!("{}: {} (request id: {request})", step.name(), fault.reason)
        }
    }
}

async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let admin_stop = CancellationToken::new();
    let listener = serve::bind(config.admin_listen, "admin_listen").await?;
    // Failing rounds are what it is there to tell of, no reason to restart it.
    let routes = admin::router(process.draining.clone(), || Ok(()));
    admin::serve_on(listener, routes, admin_stop.clone());
    if let Some(ca) = config.ca.as_ref().filter(|path| !path.exists()) {
        tracing::info!(ca = %ca.display(), "there is no such file; the system's authorities are trusted alone");
    }
    tracing::info!(url = config.url, admin = %config.admin_listen, "probing");

    let mut ticks = tokio::time::interval(Duration::from_secs(config.interval_seconds));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut probe = Probe::new(config);
    let rounds = async {
        loop {
            ticks.tick().await;
            // Said and counted there.
            let _ = probe.round().await;
        }
    };
    // A round that is cut off leaves a message, which the next one deletes.
    let _: Option<()> = process.shutdown.run_until_cancelled(rounds).await;
    admin_stop.cancel();
    Ok(())
}
