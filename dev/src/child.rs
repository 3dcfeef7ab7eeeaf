//! Child processes that cannot outlive us: each is sent SIGKILL by the kernel when this process ends, however it ends.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::Context;
pub use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::{tools, wait};

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Program {
    /// For messages.
    pub name: String,
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Standard output and error go there, appended.
    pub log: PathBuf,
    /// Another user to run as, when we are root.
    pub user: Option<String>,
    pub dir: PathBuf,
}

impl Process {
    /// Starts a program.
    pub fn start(program: &Program) -> anyhow::Result<Self> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&program.log)
            .with_context(|| format!("cannot write {}", program.log.display()))?;
        // setpriv is part of util-linux, which every Debian has. The kernel watches the thread that forks, so one that
        // lives as long as the process does it. The shell refuses to go on when we died before the kernel watched.
        let mut command = Command::new("setpriv");
        if let Some(user) = &program.user {
            command.args(tools::become_user(user)?);
        }
        command
            .args(["--pdeathsig", "KILL", "--", "sh", "-c"])
            .args([
                r#"[ "$PPID" = "$0" ] || exit 1; exec "$@""#,
                &std::process::id().to_string(),
            ])
            .arg(&program.path)
            .args(&program.args)
            .envs(program.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&program.dir)
            // A Ctrl-C in the terminal is for the launcher, which stops things in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = spawn_on_lasting_thread(command).with_context(|| format!("cannot start {}", program.name))?;
        Ok(Self {
            name: program.name.clone(),
            child,
            log: program.log.clone(),
            status: None,
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        self.status = self.child.wait().ok().or(self.status);
    }

    /// Sends a signal, unless it is known to have ended: its pid may be another's by now.
    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            // Fails only when it has ended already.
            let _ = nix::sys::signal::kill(process_id(self.child.id()), signal);
        }
    }

    /// The given signal, then SIGKILL for one that does not end within `patience`.
    pub fn stop(&mut self, signal: Signal, patience: Duration) {
        self.signal(signal);
        self.end_within(patience);
    }

    /// SIGKILL, unless it ends by itself within `patience`; says whether it did.
    pub fn end_within(&mut self, patience: Duration) -> bool {
        let ended = wait::until(patience, "the process to end", || self.ended()).is_ok();
        if !ended {
            self.kill();
        }
        ended
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The pid as the system calls take it.
pub fn process_id(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX))
}

/// The last lines of a log file.
pub fn log_tail(path: &Path) -> String {
    const BYTES: u64 = 16 << 10;
    let mut end = Vec::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        let length = file.metadata().map_or(0, |meta| meta.len());
        // A file that cannot be read has no last lines.
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(BYTES)));
        let _ = file.take(BYTES).read_to_end(&mut end);
    }
    let text = String::from_utf8_lossy(&end).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

fn spawn_on_lasting_thread(command: Command) -> anyhow::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).context("the spawning thread is gone")?;
    Ok(child.recv().context("the spawning thread is gone")??)
}
