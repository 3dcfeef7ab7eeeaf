//! A NATS server with JetStream of our own, one user per service with no more rights than it needs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::child::{Process, Program, Signal};
use crate::{ports, scratch, tools, wait};

/// The services that have a user, which is their name.
pub const USERS: [&str; 4] = ["chat", "notify", "indexer", "gateway"];

/// How a server is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Holds the configuration and the streams.
    pub data: PathBuf,
    pub port: u16,
    pub log: PathBuf,
    /// User name and password of each service; empty lets everybody do everything, for tests.
    pub users: Vec<(String, String)>,
    /// Fsync before every acknowledgement. Off, up to two minutes of acknowledged events can be lost in a power failure;
    /// the relay notices and publishes them again from the outbox, so that is the default.
    pub sync_always: bool,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    options: Options,
    process: Process,
    folder: Option<tempfile::TempDir>,
}

impl Server {
    pub fn start(options: Options) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&options.data).with_context(|| format!("cannot make {}", options.data.display()))?;
        let process = launch(&options)?;
        let mut server = Self {
            options,
            process,
            folder: None,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// A server in a temporary folder that lets everybody in, for tests.
    pub fn temporary() -> anyhow::Result<Self> {
        let folder = scratch::folder()?;
        let mut server = Self::start(Options {
            data: folder.path().join("data"),
            port: ports::free()?,
            log: folder.path().join("nats.log"),
            users: Vec::new(),
            sync_always: false,
        })?;
        server.folder = Some(folder);
        Ok(server)
    }

    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// How long what JetStream acknowledged may be missing on the disk, as its configuration says it.
    pub const fn sync_interval(&self) -> &'static str {
        if self.options.sync_always { "always" } else { "2m" }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.options.port)
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, with what its disk still holds.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = launch(&self.options)?;
        self.wait_until_ready()
    }

    /// Kills it and destroys its streams.
    pub fn wipe(&mut self) -> anyhow::Result<()> {
        self.kill();
        let store = self.options.data.join("jetstream");
        if store.exists() {
            std::fs::remove_dir_all(&store).with_context(|| format!("cannot remove {}", store.display()))?;
        }
        Ok(())
    }

    /// Ends it in an orderly way.
    pub fn stop(&mut self) {
        self.process.stop(Signal::SIGTERM, Duration::from_secs(10));
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let port = self.options.port;
        let ready = wait::until_ready(Duration::from_secs(30), "NATS to accept connections", || {
            if self.process.ended().is_some() {
                return Some(false);
            }
            ports::is_open(port).then_some(true)
        })?;
        if !ready {
            bail!(
                "nats-server ended at once; the end of its log:\n{}",
                self.process.log_tail()
            );
        }
        Ok(())
    }
}

fn launch(options: &Options) -> anyhow::Result<Process> {
    let path = options.data.join("nats.conf");
    write_private(&path, &configuration(options)).with_context(|| format!("cannot write {}", path.display()))?;
    Process::start(&Program {
        name: "nats-server".to_owned(),
        path: tools::nats_server()?,
        args: vec!["-c".to_owned(), path.display().to_string()],
        env: Vec::new(),
        log: options.log.clone(),
        user: None,
        dir: options.data.clone(),
    })
}

/// Writes a file that holds secrets.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// The server's configuration file.
pub fn configuration(options: &Options) -> String {
    let mut text = format!(
        "listen: \"127.0.0.1:{}\"\nserver_name: fechatter\nmax_payload: 1MB\njetstream {{\n  store_dir: \"{}\"\n{}}}\n",
        options.port,
        options.data.display(),
        if options.sync_always {
            "  sync_interval: always\n"
        } else {
            ""
        },
    );
    if options.users.is_empty() {
        return text;
    }
    text.push_str("authorization {\n  users: [\n");
    for (user, password) in &options.users {
        let (publish, subscribe) = permissions(user);
        let list = |subjects: &[&str]| {
            subjects
                .iter()
                .map(|subject| format!("\"{subject}\""))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let _ = writeln!(
            text,
            "    {{ user: {user}, password: \"{password}\", permissions: {{ publish: [{}], subscribe: [{}] }} }}",
            list(&publish),
            list(&subscribe)
        );
    }
    text.push_str("  ]\n}\n");
    text
}

/// What a service may publish and subscribe. Each has inboxes of its own, so none reads another's answers.
fn permissions(user: &str) -> (Vec<&'static str>, Vec<&'static str>) {
    const STREAM_READ: [&str; 4] = [
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.FECHATTER_EVENTS",
        "$JS.API.STREAM.MSG.GET.FECHATTER_EVENTS",
        "$JS.API.DIRECT.GET.FECHATTER_EVENTS",
    ];
    const CONSUME: [&str; 6] = [
        "$JS.API.DIRECT.GET.FECHATTER_EVENTS.>",
        "$JS.API.CONSUMER.*.FECHATTER_EVENTS",
        "$JS.API.CONSUMER.*.FECHATTER_EVENTS.>",
        "$JS.API.CONSUMER.MSG.NEXT.FECHATTER_EVENTS.>",
        "$JS.ACK.FECHATTER_EVENTS.>",
        "$JS.FC.FECHATTER_EVENTS.>",
    ];
    let consumer = || STREAM_READ.iter().chain(&CONSUME).copied().collect::<Vec<_>>();
    match user {
        "chat" => {
            let mut publish = consumer();
            publish.extend([
                "fechatter.>",
                "$JS.API.STREAM.*.FECHATTER_EVENTS",
                "$JS.API.STREAM.NAMES",
            ]);
            (publish, vec!["_INBOX_chat.>"])
        }
        "notify" => {
            let mut publish = consumer();
            publish.extend([
                "ephemeral.>",
                "$JS.API.STREAM.*.KV_fechatter_tickets",
                "$JS.API.STREAM.MSG.GET.KV_fechatter_tickets",
                "$JS.API.DIRECT.GET.KV_fechatter_tickets",
                "$JS.API.DIRECT.GET.KV_fechatter_tickets.>",
                "$KV.fechatter_tickets.>",
            ]);
            (publish, vec!["_INBOX_notify.>", "ephemeral.>"])
        }
        "indexer" => (consumer(), vec!["_INBOX_indexer.>"]),
        _ => {
            let mut publish = consumer();
            // What replicas tell each other of quotas.
            publish.push("gateway.usage");
            (publish, vec!["_INBOX_gateway.>", "gateway.usage"])
        }
    }
}
