//! A cluster on disk: made once, run by the version that made it, and never by two servers at a time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use super::Options;
use crate::child::{Process, Program};
use crate::{scratch, tools, wait};

/// A pid that no process has: Linux hands out none above 4,194,304.
const NOBODY: &str = "2147483646";
/// How long the server of a launcher that was killed a moment ago may take to end.
const LEFTOVER: Duration = Duration::from_secs(5);

/// Makes the cluster unless it is there, and returns the folder of the programs that fit it.
pub(super) fn open(options: &Options) -> anyhow::Result<PathBuf> {
    let path = options.data.join("PG_VERSION");
    if path
        .try_exists()
        .with_context(|| format!("cannot read {}", path.display()))?
    {
        let version = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        return tools::postgres_bin_of(version.trim().parse().context("PG_VERSION is not a number")?);
    }
    let bin = tools::postgres_bin()?;
    make(&bin, options).context("cannot make the PostgreSQL cluster")?;
    Ok(bin)
}

fn make(bin: &Path, options: &Options) -> anyhow::Result<()> {
    let user = tools::postgres_user()?;
    // Made apart, so that one that was interrupted is never taken for a whole one.
    let new = options.data.with_extension("new");
    if new.exists() {
        std::fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    std::fs::create_dir_all(&new).with_context(|| format!("cannot make {}", new.display()))?;
    let give = |path: &Path| match &user {
        Some(user) => tools::run(Command::new("chown").arg(format!("{user}:")).arg(path)).map(|_| ()),
        None => Ok(()),
    };
    give(&new)?;
    let mut command = Command::new("setpriv");
    if let Some(user) = &user {
        command.args(tools::become_user(user)?);
    }
    command.arg("--").arg(bin.join("initdb"));
    command
        .args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-D"])
        .arg(&new);
    if !options.fsync {
        command.arg("-N");
    }
    let mut password_file = None;
    if let Some(password) = &options.password {
        let file = tempfile::NamedTempFile::new_in(scratch::base()?)?;
        std::fs::write(file.path(), password)?;
        give(file.path())?;
        command
            .arg("-A")
            .arg("scram-sha-256")
            .arg(format!("--pwfile={}", file.path().display()));
        password_file = Some(file);
    } else {
        command.args(["-A", "trust"]);
    }
    let made = tools::run(command.current_dir("/"));
    drop(password_file);
    if let Err(error) = made {
        // The failure itself says more than one of the cleaning up would.
        let _ = std::fs::remove_dir_all(&new);
        return Err(error);
    }
    std::fs::rename(&new, &options.data)
        .with_context(|| format!("cannot rename {} to {}", new.display(), options.data.display()))
}

/// Starts the server; it accepts connections a moment later.
pub(super) fn launch(bin: &Path, options: &Options) -> anyhow::Result<Process> {
    disown_reused_pid(&options.data)?;
    let setting = |name: &str, value: &str| ["-c".to_owned(), format!("{name}={value}")];
    let mut args = vec![
        "-D".to_owned(),
        options.data.display().to_string(),
        "-p".to_owned(),
        options.port.to_string(),
    ];
    args.extend(setting("listen_addresses", "127.0.0.1"));
    // No socket file: its path may be too long, and TCP on loopback serves.
    args.extend(setting("unix_socket_directories", ""));
    args.extend(setting("fsync", if options.fsync { "on" } else { "off" }));
    args.extend(setting("max_connections", "300"));
    args.extend(setting("shared_buffers", "256MB"));
    args.extend(setting("log_timezone", "UTC"));
    args.extend(setting("timezone", "UTC"));
    Process::start(&Program {
        name: "postgres".to_owned(),
        path: bin.join("postgres"),
        args,
        env: Vec::new(),
        log: options.log.clone(),
        user: tools::postgres_user()?,
        dir: PathBuf::from("/"),
    })
}

/// PostgreSQL refuses to start while the pid in its pid file is some process's, its own or not.
///
/// After a crash and a reboot another program may have that pid. The file is kept all the same: by the rest of it
/// PostgreSQL knows whether processes of the crashed server still use its shared memory.
fn disown_reused_pid(data: &Path) -> anyhow::Result<()> {
    let path = data.join("postmaster.pid");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(());
    };
    let (pid, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let pid = pid.trim();
    let folder = data.display().to_string();
    let is_ours = || {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|command| command.contains("postgres") && command.contains(&folder))
    };
    if wait::until(LEFTOVER, "the other server to end", || (!is_ours()).then_some(())).is_err() {
        bail!("{folder} is in use by the PostgreSQL of process {pid}; stop it first (kill -INT {pid})");
    }
    if Path::new(&format!("/proc/{pid}")).exists() {
        std::fs::write(&path, format!("{NOBODY}\n{rest}"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
