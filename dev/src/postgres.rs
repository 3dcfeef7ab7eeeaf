//! A PostgreSQL server of our own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::child::{Process, Program, Signal, process_id};
use crate::{ports, scratch, tools, wait};

/// Login roles of the services and the group role (made by the migrations) that each is a member of.
pub const ROLES: [(&str, &str); 3] = [
    ("chat", "fechatter_chat"),
    ("notify", "fechatter_notify"),
    ("indexer", "fechatter_indexer"),
];

/// How a server is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Holds the cluster; made when absent.
    pub data: PathBuf,
    pub port: u16,
    pub log: PathBuf,
    /// Password of the superuser `postgres`; none trusts everybody on loopback, for tests.
    pub password: Option<String>,
    /// Off makes tests quicker and loses data in a power failure.
    pub fsync: bool,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    options: Options,
    process: Process,
    /// Removed with the server, for tests.
    folder: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts a server, making its cluster first when there is none.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let bin = tools::postgres_bin()?;
        let user = tools::postgres_user()?;
        if !options.data.join("PG_VERSION").exists() {
            make_cluster(&bin, user.as_deref(), &options)?;
        }
        let process = launch(&bin, user, &options)?;
        let mut server = Self {
            options,
            process,
            folder: None,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// One server for all tests of this process, in a temporary folder, without fsync.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| match Self::temporary() {
            Ok(server) => server,
            Err(error) => panic!("no PostgreSQL for the tests: {error:#}"),
        })
    }

    /// A server of its own in a temporary folder, without fsync.
    pub fn temporary() -> anyhow::Result<Self> {
        let folder = scratch::folder()?;
        open_for_all(folder.path())?;
        let mut server = Self::start(Options {
            data: folder.path().join("data"),
            port: ports::free()?,
            log: folder.path().join("postgres.log"),
            password: None,
            fsync: false,
        })?;
        for (role, group) in ROLES {
            server.psql(
                "postgres",
                &format!("CREATE ROLE {group} NOLOGIN; CREATE ROLE {role} LOGIN IN ROLE {group};"),
            )?;
        }
        server.folder = Some(folder);
        Ok(server)
    }

    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// URL of the superuser for a database.
    pub fn url(&self, database: &str) -> String {
        let password = self
            .options
            .password
            .as_ref()
            .map(|password| format!(":{password}"))
            .unwrap_or_default();
        format!(
            "postgres://postgres{password}@127.0.0.1:{}/{database}",
            self.options.port
        )
    }

    /// Makes an empty database; run the migrations on its owner's URL next.
    pub fn database(&self) -> anyhow::Result<TestDatabase> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(TestDatabase {
            name,
            port: self.options.port,
        })
    }

    /// Runs SQL as the superuser and returns what psql prints, unaligned and without headings.
    pub fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let mut command = Command::new(tools::postgres_bin()?.join("psql"));
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
        ]);
        command.args(["-p", &self.options.port.to_string(), "-d", database, "-c", sql]);
        if let Some(password) = &self.options.password {
            command.env("PGPASSWORD", password);
        }
        tools::run(&mut command)
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        kill_family(self.process.id());
        self.process.kill();
    }

    /// Starts it again after a crash, with its data.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = launch(&tools::postgres_bin()?, tools::postgres_user()?, &self.options)?;
        self.wait_until_ready()
    }

    /// Ends it in an orderly way.
    pub fn stop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown: it does not wait for clients.
        self.process.stop(Signal::SIGINT, Duration::from_secs(10));
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let ready = wait::until(Duration::from_mins(1), "PostgreSQL to accept connections", || {
            if self.process.ended().is_some() {
                return Some(false);
            }
            self.psql("postgres", "SELECT 1").is_ok().then_some(true)
        })?;
        if !ready {
            bail!(
                "PostgreSQL ended at once; the end of its log:\n{}",
                self.process.log_tail()
            );
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A database of one test.
#[derive(Debug, Clone)]
pub struct TestDatabase {
    name: String,
    port: u16,
}

impl TestDatabase {
    /// URL of the superuser, who owns the schema.
    pub fn owner_url(&self) -> String {
        self.url("postgres")
    }

    /// URL of a login role: `chat`, `notify` or `indexer`.
    pub fn url(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{}", self.port, self.name)
    }
}

/// Lets another user reach what is inside.
pub fn open_for_all(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot open {} for PostgreSQL's user", folder.display()))
}

fn make_cluster(bin: &Path, user: Option<&str>, options: &Options) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.data).with_context(|| format!("cannot make {}", options.data.display()))?;
    let mut command = Command::new("setpriv");
    if let Some(user) = user {
        tools::run(Command::new("chown").arg(format!("{user}:")).arg(&options.data))?;
        command.args([
            format!("--reuid={user}"),
            format!("--regid={user}"),
            "--init-groups".to_owned(),
        ]);
    }
    command.arg("--").arg(bin.join("initdb"));
    command
        .args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-D"])
        .arg(&options.data);
    if !options.fsync {
        command.arg("-N");
    }
    let mut password_file = None;
    if let Some(password) = &options.password {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), password)?;
        if let Some(user) = user {
            tools::run(Command::new("chown").arg(format!("{user}:")).arg(file.path()))?;
        }
        command
            .arg("-A")
            .arg("scram-sha-256")
            .arg(format!("--pwfile={}", file.path().display()));
        password_file = Some(file);
    } else {
        command.args(["-A", "trust"]);
    }
    let made = tools::run(command.current_dir("/")).context("cannot make the PostgreSQL cluster");
    drop(password_file);
    if made.is_err() {
        // A half-made cluster would be taken for a whole one at the next start.
        let _ = std::fs::remove_dir_all(&options.data);
    }
    made.map(|_| ())
}

fn launch(bin: &Path, user: Option<String>, options: &Options) -> anyhow::Result<Process> {
    remove_stale_pid_file(&options.data)?;
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
        user,
        dir: PathBuf::from("/"),
    })
}

/// PostgreSQL refuses to start while the pid in its pid file belongs to any process, its own or not.
fn remove_stale_pid_file(data: &Path) -> anyhow::Result<()> {
    let path = data.join("postmaster.pid");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(());
    };
    let pid = text.lines().next().unwrap_or_default().trim().to_owned();
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if command.contains("postgres") && command.contains(&data.display().to_string()) {
        bail!(
            "{} is in use by the PostgreSQL of process {pid}; stop it first (kill -INT {pid})",
            data.display()
        );
    }
    std::fs::remove_file(&path).with_context(|| format!("cannot remove the stale {}", path.display()))
}

/// A postmaster that is killed leaves its children for a moment; they hold the shared memory.
fn kill_family(postmaster: u32) {
    let children =
        std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
    for id in children
        .split_whitespace()
        .filter_map(|id| id.parse().ok())
        .chain([postmaster])
    {
        // Fails only for those that have ended already.
        let _ = nix::sys::signal::kill(process_id(id), Signal::SIGKILL);
    }
}
