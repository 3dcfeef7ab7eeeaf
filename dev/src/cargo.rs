//! Cargo as our child: its progress is shown, and it ends when we do.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use dev::child::{Signal, process_id};
use nix::sys::signal::killpg;

/// Whether the person who runs us wants to stop.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// SIGINT, SIGTERM and SIGHUP ask to stop; a second one ends the launcher, and the kernel what it started.
    pub(crate) fn on_signal() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag)).context("signals")?;
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("signals")?;
        }
        dev::wait::interrupted_by(Arc::clone(&flag));
        Ok(Self(flag))
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The repository's root.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Runs cargo to its end; every line of its standard output is handed on.
pub(crate) fn run(
    args: &[&str],
    env: &[(&str, &str)],
    stop: &Stop,
    mut each_line: impl FnMut(&str),
) -> anyhow::Result<bool> {
    // The kernel asks cargo to end when we are killed, too.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "--", "cargo"])
        .args(args)
        .envs(env.iter().copied())
        .current_dir(repository())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A group of its own, so that what cargo started can be ended with it.
        .process_group(0);
    let mut child = command.spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let done = Arc::new(AtomicBool::new(false));
    let watch = end_when_asked(&child, stop.clone(), Arc::clone(&done));
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        each_line(&line);
    }
    let status = child.wait();
    done.store(true, Ordering::Relaxed);
    // It has nothing to return.
    let _ = watch.join();
    if stop.is_asked() {
        bail!("interrupted");
    }
    Ok(status?.success())
}

/// Passes the wish to stop on to cargo and all that it started.
fn end_when_asked(child: &Child, stop: Stop, done: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let group = process_id(child.id());
    std::thread::spawn(move || {
        while !done.load(Ordering::Relaxed) {
            if stop.is_asked() {
                // Fails only when all of them have ended already.
                let _ = killpg(group, Signal::SIGTERM);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    })
}

/// Runs cargo, which must succeed.
pub(crate) fn require(what: &str, args: &[&str], env: &[(&str, &str)], stop: &Stop) -> anyhow::Result<()> {
    if run(args, env, stop, crate::lines::show)? {
        return Ok(());
    }
    bail!("{what} failed (cargo {}); its messages are above", args.join(" "))
}

/// What is built.
///
/// The whole workspace if possible: a part of it has other features of shared dependencies, and would be built from scratch
/// instead of sharing what was built before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    Debug,
    Release,
    /// With the tests, which add features to dependencies.
    Tests,
    /// Only what migrates a database: the services do not build while their queries lack data in `.sqlx`.
    Migrations,
}

/// Builds all binaries and returns their folder.
pub(crate) fn build(what: Build, stop: &Stop) -> anyhow::Result<PathBuf> {
    let mut args = vec!["build", "--message-format", "json-render-diagnostics", "--bins"];
    match what {
        Build::Migrations => args.extend(["-p", "migrations"]),
        _ => args.push("--workspace"),
    }
    match what {
        Build::Debug | Build::Migrations => {}
        Build::Release => args.push("--release"),
        Build::Tests => args.push("--tests"),
    }
    let mut folder = None;
    let built = run(&args, &[], stop, |line| {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        let is_binary = message["target"]["kind"][0] == "bin" && message["profile"]["test"] == false;
        if let Some(path) = message["executable"].as_str().filter(|_| is_binary) {
            folder = Path::new(path).parent().map(Path::to_owned);
        }
    })?;
    if !built {
        bail!("the build failed; its messages are above");
    }
    folder.context("cargo built no binary")
}
