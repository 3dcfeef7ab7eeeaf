//! `cargo dev up`.

mod folder;
mod greeting;
pub(crate) mod observability;
mod supervise;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use dev::platform::{Options, Platform, Ports, probe};
use dev::{install, otelcol, ports, seed, tools};

use self::observability::Listen;
use crate::cargo::{self, Build, Stop};
use crate::lines::{Follower, say, show};

/// Options of `cargo dev up`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Make a demo workspace with people, channels and a few hundred messages.
    #[arg(long)]
    seed: bool,
    /// Build with optimisation.
    #[arg(long)]
    release: bool,
    /// Run what was built before, as it is, and install nothing.
    #[arg(long, conflicts_with = "release")]
    no_build: bool,
    /// Also start Prometheus with our rules, and a collector where one is installed.
    #[arg(long)]
    observability: bool,
    /// Where Prometheus listens, with --observability.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = 9090)]
    prometheus_port: u16,
    /// Where the collector listens for OTLP over HTTP, with --observability.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = otelcol::Ports::default().otlp)]
    otlp_port: u16,
    /// Where the probe has its `/metrics`, with --observability.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = probe::ADMIN_PORT)]
    probe_port: u16,
    /// Folder for keys, databases, index and logs; `.fechatter` in the repository by default.
    #[arg(long)]
    data: Option<PathBuf>,
    /// An external PostgreSQL: URL of a role that owns the database and may create roles.
    #[arg(long)]
    postgres_url: Option<String>,
    /// An external NATS with JetStream.
    #[arg(long)]
    nats_url: Option<String>,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().gateway)]
    gateway_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().redirect)]
    redirect_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().gateway_admin)]
    gateway_admin_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().chat)]
    chat_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().chat_admin)]
    chat_admin_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().notify)]
    notify_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().notify_admin)]
    notify_admin_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().indexer)]
    indexer_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().indexer_admin)]
    indexer_admin_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().postgres)]
    postgres_port: u16,
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = Ports::default().nats)]
    nats_port: u16,
}

/// Messages of the demo workspace.
const SEED_MESSAGES: usize = 400;
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let stop = Stop::on_signal()?;
    let data = folder::prepare(args.data.as_deref())?;
    let _lock = folder::lock(&data)?;
    let wanted = wanted_ports(args);
    check_ports(args, &wanted)?;
    let result = up(args, wanted, &data, &stop, started);
    if stop.is_asked() {
        // Whatever failed, failed because we were asked to stop.
        say("stopped; the data is kept");
        return Ok(());
    }
    result
}

fn up(args: &Args, ports: Ports, data: &Path, stop: &Stop, started: Instant) -> anyhow::Result<()> {
    let binaries = if args.no_build {
        let this = std::env::current_exe().context("cannot find the running program")?;
        this.parent().context("cannot find the build's folder")?.to_owned()
    } else {
        install::everything(&say)?;
        if args.observability {
            install::observability(&say)?;
        }
        say("building (the first time takes some minutes)");
        let what = if args.release { Build::Release } else { Build::Debug };
        cargo::build(what, stop)?
    };
    let mut follower = Follower::new(data);
    // Before the platform, which exports to the collector from its beginning.
    let mut watching = args
        .observability
        .then(|| observability::start(data, listen(args), &ports))
        .transpose()?;
    let options = Options {
        data: data.to_owned(),
        binaries,
        ports,
        postgres_url: args.postgres_url.clone(),
        nats_url: args.nats_url.clone(),
        fsync: true,
        without: Vec::new(),
        twins: Vec::new(),
        env: watching
            .as_ref()
            .map(observability::Watching::environment)
            .unwrap_or_default(),
    };
    let mut platform = Platform::start(options, &say)?;
    if args.seed {
        let made = seed::run(platform.ports().chat, SEED_MESSAGES, &data.join("seeded"), &say)?;
        say(if made {
            "seeded the demo workspace"
        } else {
            "the demo workspace is there already"
        });
    }
    if let Some(watching) = &mut watching {
        watching.start_probe(&platform)?;
    }
    show(&greeting::greeting(&platform, args.seed, started.elapsed()));
    if let Some(watching) = &watching {
        show(&watching.greeting());
    }
    supervise::supervise(&mut platform, data, &mut follower, stop);
    say("stopping");
    platform.stop();
    follower.print_new();
    Ok(())
}

fn wanted_ports(args: &Args) -> Ports {
    Ports {
        gateway: args.gateway_port,
        redirect: args.redirect_port,
        gateway_admin: args.gateway_admin_port,
        chat: args.chat_port,
        chat_admin: args.chat_admin_port,
        notify: args.notify_port,
        notify_admin: args.notify_admin_port,
        indexer: args.indexer_port,
        indexer_admin: args.indexer_admin_port,
        postgres: args.postgres_port,
        nats: args.nats_port,
    }
}

/// Where what watches the platform listens.
fn listen(args: &Args) -> Listen {
    Listen {
        prometheus: args.prometheus_port,
        otlp: args.otlp_port,
        probe: args.probe_port,
    }
}

fn check_ports(args: &Args, wanted: &Ports) -> anyhow::Result<()> {
    let mut seen = BTreeMap::new();
    for (port, option) in wanted.named() {
        if let Some(other) = seen.insert(port, option) {
            bail!("{other} and {option} are both {port}; each needs a port of its own");
        }
        let external = (option == "--postgres-port" && args.postgres_url.is_some())
            || (option == "--nats-port" && args.nats_url.is_some());
        if !external {
            ports::require_free(port, option)?;
        }
    }
    if args.observability {
        let mut more = vec![
            (args.prometheus_port, "--prometheus-port"),
            (args.probe_port, "--probe-port"),
        ];
        more.extend(tools::collector().map(|_| (args.otlp_port, "--otlp-port")));
        for (port, option) in more {
            if let Some(other) = seen.insert(port, option) {
                bail!("{other} and {option} are both {port}; each needs a port of its own");
            }
            ports::require_free(port, option)?;
        }
    }
    Ok(())
}
