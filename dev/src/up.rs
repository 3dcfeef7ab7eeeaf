//! `cargo dev up`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dev::platform::{Options, Platform, Ports, Service};
use dev::{install, ports, seed};
use nix::fcntl::{Flock, FlockArg};

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
    /// Folder for keys, databases, index and logs; `.fechatter` in the repository by default.
    #[arg(long)]
    data: Option<PathBuf>,
    /// An external PostgreSQL: URL of a role that owns the database and may create roles.
    #[arg(long)]
    postgres_url: Option<String>,
    /// An external NATS with JetStream.
    #[arg(long)]
    nats_url: Option<String>,
    #[arg(long, default_value_t = Ports::default().gateway)]
    gateway_port: u16,
    #[arg(long, default_value_t = Ports::default().redirect)]
    redirect_port: u16,
    #[arg(long, default_value_t = Ports::default().gateway_admin)]
    gateway_admin_port: u16,
    #[arg(long, default_value_t = Ports::default().chat)]
    chat_port: u16,
    #[arg(long, default_value_t = Ports::default().chat_admin)]
    chat_admin_port: u16,
    #[arg(long, default_value_t = Ports::default().notify)]
    notify_port: u16,
    #[arg(long, default_value_t = Ports::default().notify_admin)]
    notify_admin_port: u16,
    #[arg(long, default_value_t = Ports::default().indexer)]
    indexer_port: u16,
    #[arg(long, default_value_t = Ports::default().indexer_admin)]
    indexer_admin_port: u16,
    #[arg(long, default_value_t = Ports::default().postgres)]
    postgres_port: u16,
    #[arg(long, default_value_t = Ports::default().nats)]
    nats_port: u16,
}

/// Messages of the demo workspace.
const SEED_MESSAGES: usize = 400;
/// How often ended processes are looked for and new log lines printed.
const TICK: Duration = Duration::from_millis(200);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let data = prepare_data(args)?;
    let _lock = lock(&data)?;
    let wanted = wanted_ports(args);
    check_ports(args, &wanted)?;
    install::everything(&say)?;
    let binaries = build(args.release)?;

    let stop = stop_on_signal()?;
    let mut follower = Follower::new(log_files(&data));
    let options = Options {
        data,
        binaries,
        ports: wanted,
        postgres_url: args.postgres_url.clone(),
        nats_url: args.nats_url.clone(),
        fsync: true,
        without: Vec::new(),
        env: Vec::new(),
    };
    let mut platform = Platform::start(options, &say)?;
    if args.seed {
        let made = seed::run(platform.ports().chat, SEED_MESSAGES, &say)?;
        say(if made {
            "seeded the demo workspace"
        } else {
            "the demo workspace is there already"
        });
    }
    show(&greeting(&platform, args.seed, started.elapsed()));
    watch(&mut platform, &mut follower, &stop);
    say("stopping");
    platform.stop();
    follower.print_new();
    say("stopped; the data is kept");
    Ok(())
}

/// Prints the merged log and restarts what ends, until the signal.
fn watch(platform: &mut Platform, follower: &mut Follower, stop: &AtomicBool) {
    let mut restarts = 0_u32;
    let mut quiet_since = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
        follower.print_new();
        let ended = platform.ended();
        if ended.is_empty() {
            if quiet_since.elapsed() > Duration::from_mins(1) {
                restarts = 0;
            }
            continue;
        }
        // One that crashes at every start must not keep the machine busy.
        let pause = Duration::from_millis(200 * u64::from(restarts.min(25)));
        say(&format!(
            "ended unexpectedly: {}; starting again in {} ms",
            ended.join(", "),
            pause.as_millis()
        ));
        std::thread::sleep(pause);
        if let Err(error) = platform.restart_ended() {
            say(&format!("could not start again: {error:#}"));
        }
        restarts += 1;
        quiet_since = Instant::now();
    }
}

fn prepare_data(args: &Args) -> anyhow::Result<PathBuf> {
    let data = args
        .data
        .clone()
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.fechatter"));
    std::fs::create_dir_all(&data).with_context(|| {
        format!(
            "cannot make the data folder {}; choose another with --data",
            data.display()
        )
    })?;
    std::fs::create_dir_all(data.join("logs"))?;
    data.canonicalize()
        .with_context(|| format!("cannot enter {}", data.display()))
}

/// Two launchers on one folder would fight over its servers.
fn lock(data: &Path) -> anyhow::Result<Flock<File>> {
    let path = data.join("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write {}; choose another folder with --data", path.display()))?;
    let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        let pid = std::fs::read_to_string(&path).unwrap_or_default();
        bail!(
            "{} is in use by process {}; stop that one, or choose another folder with --data",
            data.display(),
            pid.trim()
        );
    };
    lock.set_len(0)?;
    (&*lock).write_all(std::process::id().to_string().as_bytes())?;
    Ok(lock)
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

fn check_ports(args: &Args, wanted: &Ports) -> anyhow::Result<()> {
    for (port, option) in wanted.named() {
        let external = (option == "--postgres-port" && args.postgres_url.is_some())
            || (option == "--nats-port" && args.nats_url.is_some());
        if !external {
            ports::require_free(port, option)?;
        }
    }
    Ok(())
}

/// Builds what runs and returns the folder of the binaries.
pub(crate) fn build(release: bool) -> anyhow::Result<PathBuf> {
    say("building (the first time takes some minutes)");
    let mut cargo = Command::new("cargo");
    cargo.args([
        "build",
        "-p",
        "gateway",
        "-p",
        "chat_service",
        "-p",
        "notify_service",
        "-p",
        "indexer",
        "-p",
        "migrations",
    ]);
    if release {
        cargo.arg("--release");
    }
    let status = cargo.current_dir(repository()).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the build failed; its messages are above");
    }
    Ok(target_folder()?.join(if release { "release" } else { "debug" }))
}

/// The repository's root.
pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder() -> anyhow::Result<PathBuf> {
    let text = dev::tools::run(
        Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(repository()),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata")?;
    Ok(PathBuf::from(
        metadata["target_directory"]
            .as_str()
            .context("cargo metadata names no target folder")?,
    ))
}

/// SIGINT and SIGTERM set the flag; a second one ends the launcher, and the kernel what it started.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop)).context("signals")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("signals")?;
    }
    Ok(stop)
}

fn log_files(data: &Path) -> Vec<(String, PathBuf)> {
    let names = Service::ALL
        .iter()
        .map(|service| service.binary())
        .chain(["postgres", "nats-server"]);
    names
        .map(|name| (name.to_owned(), data.join("logs").join(format!("{name}.log"))))
        .collect()
}

fn greeting(platform: &Platform, seeded: bool, took: Duration) -> String {
    let (url, ca) = (platform.url(), platform.ca().display().to_string());
    let mut text = format!(
        r#"
Fechatter is up at {url} after {seconds:.0} s. Ctrl-C stops all of it.
Certificate authority for clients: {ca}
Logs: {logs}

A first conversation; paste it into another terminal:

  fct() {{ curl -sS --cacert {ca} "$@"; }}; J='content-type: application/json'; P='"password":"correct horse battery"'
  get() {{ python3 -c "import json,sys;print(json.load(sys.stdin)$1)"; }}
  W="Team $RANDOM$RANDOM"; ADA=ada$RANDOM$RANDOM@example.org; BOB=bob$RANDOM$RANDOM@example.org; CY=cy$RANDOM$RANDOM@example.org
  A=$(fct {url}/api/signup -H "$J" -d "{{\"fullname\":\"Ada\",\"email\":\"$ADA\",$P,\"workspace\":\"$W\"}}" | get '["access_token"]')
  I=$(fct {url}/api/workspace/invitations -H "$J" -H "Authorization: Bearer $A" -d '{{"max_uses":2}}' | get '["token"]')
  B=$(fct {url}/api/signup -H "$J" -d "{{\"fullname\":\"Bob\",\"email\":\"$BOB\",$P,\"workspace\":\"$W\",\"invitation\":\"$I\"}}" | get '["access_token"]')
  C=$(fct {url}/api/signup -H "$J" -d "{{\"fullname\":\"Cy\",\"email\":\"$CY\",$P,\"workspace\":\"$W\",\"invitation\":\"$I\"}}" | get '["access_token"]')
  IDS=$(fct {url}/api/users -H "Authorization: Bearer $A" | get '["items"][1:]' | python3 -c "import ast,sys;print([u['id'] for u in ast.literal_eval(sys.stdin.read())])")
  G=$(fct {url}/api/chat -H "$J" -H "Authorization: Bearer $A" -d "{{\"kind\":\"group\",\"name\":\"Lunch\",\"member_ids\":$IDS}}" | get '["id"]')
  (fct -N --max-time 4 {url}/events -H "Authorization: Bearer $B" &) ; sleep 1
  fct {url}/api/chat/$G/messages -H "$J" -H "Authorization: Bearer $A" -H "Idempotency-Key: $RANDOM" -d '{{"content":"Shall we eat at noon?"}}'; echo
  sleep 1; fct "{url}/api/search/messages?q=noon" -H "Authorization: Bearer $B"; echo
"#,
        seconds = took.as_secs_f64(),
        logs = platform
            .log(Service::Gateway)
            .parent()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
    );
    if seeded {
        let _ = write!(
            text,
            "\nThe demo workspace \"{}\"; everybody's password is \"{}\":\n{}\n",
            seed::WORKSPACE,
            seed::PASSWORD,
            seed::logins()
        );
    }
    text
}
