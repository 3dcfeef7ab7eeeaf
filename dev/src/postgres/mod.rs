//! A PostgreSQL server of our own.

mod cluster;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::child::{Process, Signal, process_id};
use crate::psql::Target;
use crate::{ports, scratch, wait};

/// Login roles of the services and the group role (made by the migrations) that each is a member of.
pub const ROLES: [(&str, &str); 3] = [
    ("chat", "fechatter_chat"),
    ("notify", "fechatter_notify"),
    ("indexer", "fechatter_indexer"),
];

/// How long a server may take to accept connections; recovery after a crash is part of it.
const READY: Duration = Duration::from_mins(2);
/// How long the processes of a killed server may hold its shared memory.
const LEFTOVER: Duration = Duration::from_secs(10);

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
    /// Programs of the version that made the cluster.
    bin: PathBuf,
    process: Process,
    /// Removed with the server, for tests.
    folder: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts a server, making its cluster first when there is none.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let bin = cluster::open(&options)?;
        let process = cluster::launch(&bin, &options)?;
        let mut server = Self {
            options,
            bin,
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

    /// The postmaster; the other processes are its children.
    pub fn process_id(&self) -> u32 {
        self.process.id()
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
        Target::parse(&self.url(database)).run(sql)
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        kill_family(self.process.id());
        self.process.kill();
    }

    /// Starts it again after a crash, with its data.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = cluster::launch(&self.bin, &self.options)?;
        self.wait_until_ready()
    }

    /// Ends it in an orderly way.
    pub fn stop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown: it does not wait for clients.
        self.process.stop(Signal::SIGINT, Duration::from_secs(10));
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let leftover_until = Instant::now() + LEFTOVER;
        let mut last = String::new();
        wait::until_ready(READY, "PostgreSQL to accept connections", || {
            if self.process.ended().is_some() {
                let tail = self.process.log_tail();
                // Processes of a server that was killed a moment ago end when they notice.
                if tail.contains("shared memory block") && Instant::now() < leftover_until {
                    std::thread::sleep(Duration::from_millis(200));
                    return match cluster::launch(&self.bin, &self.options) {
                        Ok(process) => {
                            self.process = process;
                            None
                        }
                        Err(error) => Some(Err(error)),
                    };
                }
                return Some(Err(anyhow::anyhow!(
                    "PostgreSQL ended at once; the end of {}:\n{tail}",
                    self.options.log.display()
                )));
            }
            match self.psql("postgres", "SELECT 1") {
                Ok(_) => Some(Ok(())),
                Err(error) => {
                    last = format!("{error:#}");
                    last.contains("password authentication failed").then(|| {
                        Err(anyhow::anyhow!(
                            "the database in {} has another password than the one kept for it; move it away",
                            self.options.data.display()
                        ))
                    })
                }
            }
        })
        .with_context(|| last.clone())?
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
