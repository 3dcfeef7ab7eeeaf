//! `cargo dev`: runs the platform, tests it, keeps what is generated current.

mod cargo;
mod collector;
mod crash;
mod drill;
mod edge;
mod lines;
mod load;
mod openapi;
mod pictures;
mod render;
mod schemathesis;
mod sqlx;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs Fechatter on this machine, and proves it.
#[derive(Parser)]
#[command(name = "cargo dev", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what is missing, builds, and runs the whole platform until Ctrl-C.
    Up(up::Args),
    /// Installs what is missing, then formatting, lints and all tests against real servers.
    Test(test::Args),
    /// Rehearses a rolling restart or a restore, on a release started from the chart's render.
    Drill(drill::Args),
    /// Installs what is missing, builds with optimisation, and measures: `cargo dev load send`.
    Load(load::Args),
    /// Kills every process again and again while people talk, and proves that nothing is lost, doubled or leaked.
    Crash(crash::Args),
    /// Installs what is missing, and nothing else.
    Install,
    /// Renews `.sqlx`, what queries are checked against at build time.
    Sqlx(sqlx::Args),
    /// Renews `docs/openapi.json` from what the processes describe.
    Openapi(openapi::Args),
    /// Renews `helm/fechatter/README.md` and `helm/tests/golden` from the chart.
    Chart,
    /// Tests the API from its own description, with requests that Schemathesis makes up.
    Schemathesis(schemathesis::Args),
    /// Builds the OpenTelemetry Collector with Go, validates our configuration with it and sends telemetry through it.
    Collector(collector::Args),
    /// Puts the platform under load and draws each dashboard into docs/dashboards.
    Pictures(pictures::Args),
    /// Examines the gateway with slowhttptest, sslyze and, where Go is, h2spec.
    Edge(edge::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Up(args) => up::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Drill(args) => drill::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Crash(args) => crash::run(&args),
        Command::Install => dev::install::everything(&lines::say),
        Command::Sqlx(args) => sqlx::run(&args),
        Command::Openapi(args) => openapi::run(&args),
        Command::Chart => render::run(),
        Command::Schemathesis(args) => schemathesis::run(&args),
        Command::Collector(args) => collector::run(&args),
        Command::Pictures(args) => pictures::run(&args),
        Command::Edge(args) => edge::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            lines::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
