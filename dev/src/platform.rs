//! The whole platform as real processes on loopback: what `cargo dev up` runs and the end-to-end tests drive.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::child::{Process, Program, Signal};
use crate::secrets::Secrets;
use crate::{http, nats, ports, postgres, scratch, tools, wait};

/// One of our four processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    Chat,
    Notify,
    Indexer,
    Gateway,
}

impl Service {
    /// All, in the order in which they are started.
    pub const ALL: [Self; 4] = [Self::Chat, Self::Notify, Self::Indexer, Self::Gateway];

    /// Name of the binary, the log file and the log prefix.
    pub const fn binary(self) -> &'static str {
        match self {
            Self::Chat => "chat_service",
            Self::Notify => "notify_service",
            Self::Indexer => "indexer",
            Self::Gateway => "gateway",
        }
    }
}

/// The port of everything that listens.
#[derive(Debug, Clone)]
pub struct Ports {
    pub gateway: u16,
    pub redirect: u16,
    pub gateway_admin: u16,
    pub chat: u16,
    pub chat_admin: u16,
    pub notify: u16,
    pub notify_admin: u16,
    pub indexer: u16,
    pub indexer_admin: u16,
    pub postgres: u16,
    pub nats: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            gateway: 8443,
            redirect: 8080,
            gateway_admin: 9443,
            chat: 6688,
            chat_admin: 9688,
            notify: 6687,
            notify_admin: 9687,
            indexer: 6689,
            indexer_admin: 9689,
            postgres: 6432,
            nats: 6422,
        }
    }
}

impl Ports {
    /// Free ports for everything, for tests.
    pub fn free() -> anyhow::Result<Self> {
        Ok(Self {
            gateway: ports::free()?,
            redirect: ports::free()?,
            gateway_admin: ports::free()?,
            chat: ports::free()?,
            chat_admin: ports::free()?,
            notify: ports::free()?,
            notify_admin: ports::free()?,
            indexer: ports::free()?,
            indexer_admin: ports::free()?,
            postgres: ports::free()?,
            nats: ports::free()?,
        })
    }

    /// Each port with the option that sets it.
    pub fn named(&self) -> [(u16, &'static str); 11] {
        [
            (self.gateway, "--gateway-port"),
            (self.redirect, "--redirect-port"),
            (self.gateway_admin, "--gateway-admin-port"),
            (self.chat, "--chat-port"),
            (self.chat_admin, "--chat-admin-port"),
            (self.notify, "--notify-port"),
            (self.notify_admin, "--notify-admin-port"),
            (self.indexer, "--indexer-port"),
            (self.indexer_admin, "--indexer-admin-port"),
            (self.postgres, "--postgres-port"),
            (self.nats, "--nats-port"),
        ]
    }

    /// Admin port of a service.
    pub const fn admin(&self, service: Service) -> u16 {
        match service {
            Service::Chat => self.chat_admin,
            Service::Notify => self.notify_admin,
            Service::Indexer => self.indexer_admin,
            Service::Gateway => self.gateway_admin,
        }
    }
}

/// How the platform is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Keys, certificates, databases, index, logs.
    pub data: PathBuf,
    /// Folder of our binaries.
    pub binaries: PathBuf,
    pub ports: Ports,
    /// An external PostgreSQL instead of ours: URL of a role that may create roles and owns the database.
    pub postgres_url: Option<String>,
    /// An external NATS instead of ours, without users.
    pub nats_url: Option<String>,
    /// Off makes tests quicker and loses data in a power failure.
    pub fsync: bool,
    /// Services that are not started.
    pub without: Vec<Service>,
    /// More environment for every service.
    pub env: Vec<(String, String)>,
}

/// The running platform. Dropped, it stops at once and leaves nothing behind.
#[derive(Debug)]
pub struct Platform {
    // Before the servers, so that it is dropped before them.
    services: BTreeMap<Service, Process>,
    postgres: Option<postgres::Server>,
    nats: Option<nats::Server>,
    options: Options,
    secrets: Secrets,
    folder: Option<tempfile::TempDir>,
}

impl Platform {
    /// Starts everything in order and waits until each part is ready.
    pub fn start(options: Options, say: &dyn Fn(&str)) -> anyhow::Result<Self> {
        let data = &options.data;
        for folder in ["logs", "keys", "tls", "search"] {
            std::fs::create_dir_all(data.join(folder))
                .with_context(|| format!("cannot make {}", data.join(folder).display()))?;
        }
        let secrets = Secrets::open(data)?;
        let mut platform = Self {
            services: BTreeMap::new(),
            postgres: None,
            nats: None,
            options,
            secrets,
            folder: None,
        };
        platform.start_postgres(say)?;
        platform.start_nats(say)?;
        platform.migrate(say)?;
        platform.make_keys()?;
        let wanted: Vec<Service> = Service::ALL
            .into_iter()
            .filter(|service| !platform.options.without.contains(service))
            .collect();
        // The edge last: what it finds unhealthy at its first look it leaves alone for a while.
        let (edge, inner): (Vec<Service>, Vec<Service>) =
            wanted.into_iter().partition(|service| *service == Service::Gateway);
        for services in [inner, edge] {
            for service in &services {
                platform.start_service(*service)?;
            }
            for service in services {
                say(&format!("waiting for {}", service.binary()));
                platform.wait_until_ready(service)?;
            }
        }
        Ok(platform)
    }

    /// The platform in a temporary folder on free ports, for tests. `without` names services that are not started.
    pub fn temporary(without: &[Service]) -> anyhow::Result<Self> {
        Self::temporary_with(without, &[])
    }

    /// Like [`Self::temporary`], with more environment for every service.
    pub fn temporary_with(without: &[Service], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let folder = scratch::folder()?;
        postgres::open_for_all(folder.path())?;
        let options = Options {
            data: folder.path().to_owned(),
            binaries: binaries_beside_test()?,
            ports: Ports::free()?,
            postgres_url: None,
            nats_url: None,
            fsync: false,
            without: without.to_vec(),
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let mut platform = Self::start(options, &|_| {})?;
        platform.folder = Some(folder);
        Ok(platform)
    }

    pub fn ports(&self) -> &Ports {
        &self.options.ports
    }

    /// `https://127.0.0.1:port` of the gateway.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.options.ports.gateway)
    }

    /// The development certificate authority, to be trusted by clients.
    pub fn ca(&self) -> PathBuf {
        self.options.data.join("tls/ca.pem")
    }

    pub fn log(&self, service: Service) -> PathBuf {
        self.options.data.join("logs").join(format!("{}.log", service.binary()))
    }

    /// SIGKILL.
    pub fn kill(&mut self, service: Service) {
        self.services.remove(&service);
    }

    /// Our PostgreSQL, unless an external one is used.
    pub fn postgres(&mut self) -> Option<&mut postgres::Server> {
        self.postgres.as_mut()
    }

    /// Our NATS, unless an external one is used.
    pub fn nats(&mut self) -> Option<&mut nats::Server> {
        self.nats.as_mut()
    }

    /// Names of the parts that have ended by themselves, with their exit status where known.
    pub fn ended(&mut self) -> Vec<String> {
        let mut ended: Vec<String> = self
            .services
            .values_mut()
            .filter_map(|process| process.ended().map(|status| format!("{} ({status})", process.name())))
            .collect();
        if self.postgres.as_mut().is_some_and(postgres::Server::has_ended) {
            ended.push("postgres".to_owned());
        }
        if self.nats.as_mut().is_some_and(nats::Server::has_ended) {
            ended.push("nats-server".to_owned());
        }
        ended
    }

    /// Starts again whatever has ended by itself.
    pub fn restart_ended(&mut self) -> anyhow::Result<()> {
        if let Some(server) = &mut self.postgres
            && server.has_ended()
        {
            server.restart()?;
        }
        if let Some(server) = &mut self.nats
            && server.has_ended()
        {
            server.restart()?;
        }
        for service in Service::ALL {
            if self
                .services
                .get_mut(&service)
                .is_some_and(|process| process.ended().is_some())
            {
                self.start_service(service)?;
            }
        }
        Ok(())
    }

    /// Ends everything in an orderly way, the edge first and the database last.
    pub fn stop(&mut self) {
        for service in Service::ALL.into_iter().rev() {
            if let Some(process) = self.services.get_mut(&service) {
                process.signal(Signal::SIGTERM);
            }
        }
        for service in Service::ALL.into_iter().rev() {
            if let Some(mut process) = self.services.remove(&service) {
                process.stop(Signal::SIGTERM, Duration::from_secs(10));
            }
        }
        if let Some(mut server) = self.nats.take() {
            server.stop();
        }
        if let Some(mut server) = self.postgres.take() {
            server.stop();
        }
    }

    fn start_postgres(&mut self, say: &dyn Fn(&str)) -> anyhow::Result<()> {
        if self.options.postgres_url.is_some() {
            return Ok(());
        }
        let data = cluster_folder(&self.options.data)?;
        if data != self.options.data.join("postgres") {
            say(&format!(
                "PostgreSQL's user may not enter {}; its data is in {}",
                self.options.data.display(),
                data.display()
            ));
        }
        say("starting PostgreSQL");
        self.postgres = Some(postgres::Server::start(postgres::Options {
            data,
            port: self.options.ports.postgres,
            log: self.options.data.join("logs/postgres.log"),
            password: Some(self.secrets.get("postgres").to_owned()),
            fsync: self.options.fsync,
        })?);
        Ok(())
    }

    fn start_nats(&mut self, say: &dyn Fn(&str)) -> anyhow::Result<()> {
        if self.options.nats_url.is_some() {
            return Ok(());
        }
        say("starting NATS");
        self.nats = Some(nats::Server::start(nats::Options {
            data: self.options.data.join("nats"),
            port: self.options.ports.nats,
            log: self.options.data.join("logs/nats-server.log"),
            users: nats::USERS
                .iter()
                .map(|user| ((*user).to_owned(), self.secrets.get(&format!("nats_{user}")).to_owned()))
                .collect(),
            sync_always: false,
        })?);
        Ok(())
    }

    /// Makes the database and its roles, and applies the migrations.
    fn migrate(&mut self, say: &dyn Fn(&str)) -> anyhow::Result<()> {
        say("migrating the database");
        if let Some(server) = &self.postgres {
            let owner = self.secrets.get("postgres_owner");
            server.psql(
                "postgres",
                &format!(
                    "DO $$ BEGIN CREATE ROLE fechatter_owner LOGIN CREATEROLE PASSWORD '{owner}';
                     EXCEPTION WHEN duplicate_object THEN NULL; END $$"
                ),
            )?;
            if server
                .psql("postgres", "SELECT 1 FROM pg_database WHERE datname = 'fechatter'")?
                .trim()
                != "1"
            {
                server.psql("postgres", "CREATE DATABASE fechatter OWNER fechatter_owner")?;
            }
        }
        let url = self.database_url("owner");
        tools::run(Command::new(self.binary("migrations")?).env("DATABASE_URL", &url))?;
        let mut sql = String::new();
        for (role, group) in postgres::ROLES {
            let password = self.secrets.get(&format!("postgres_{role}"));
            let _ = write!(
                sql,
                "DO $$ BEGIN CREATE ROLE {group}_login LOGIN IN ROLE {group};
                 EXCEPTION WHEN duplicate_object THEN NULL; END $$;
                 ALTER ROLE {group}_login PASSWORD '{password}';"
            );
        }
        let mut psql = Command::new(tools::postgres_bin()?.join("psql"));
        tools::run(psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", &sql])).map(|_| ())
    }

    /// URL of the database for `owner` or a service's login role.
    pub fn database_url(&self, role: &str) -> String {
        let (user, password) = match role {
            "owner" => ("fechatter_owner".to_owned(), self.secrets.get("postgres_owner")),
            role => (
                format!("fechatter_{role}_login"),
                self.secrets.get(&format!("postgres_{role}")),
            ),
        };
        match &self.options.postgres_url {
            Some(url) if role == "owner" => url.clone(),
            Some(url) => {
                let address = url.rsplit_once('@').map_or(url.as_str(), |(_, address)| address);
                format!("postgres://{user}:{password}@{address}")
            }
            None => format!(
                "postgres://{user}:{password}@127.0.0.1:{}/fechatter",
                self.options.ports.postgres
            ),
        }
    }

    fn make_keys(&self) -> anyhow::Result<()> {
        let keys = self.options.data.join("keys");
        let has_key = std::fs::read_dir(&keys)?
            .flatten()
            .any(|entry| entry.path().extension().is_some_and(|e| e == "pem"));
        if !has_key {
            tools::run(
                Command::new(self.binary("chat_service")?)
                    .args(["keys", "new", "--dir"])
                    .arg(&keys),
            )?;
        }
        let tls = self.options.data.join("tls");
        tools::run(
            Command::new(self.binary("gateway")?)
                .args(["dev-certificate", "--dir"])
                .arg(&tls),
        )
        .map(|_| ())
    }

    /// Starts a service that is not running.
    pub fn start_service(&mut self, service: Service) -> anyhow::Result<()> {
        let process = Process::start(&Program {
            name: service.binary().to_owned(),
            path: self.binary(service.binary())?,
            args: Vec::new(),
            env: self.environment(service),
            log: self.log(service),
            user: None,
            dir: self.options.data.clone(),
        })?;
        self.services.insert(service, process);
        Ok(())
    }

    /// Waits until a service's `/ready` says so; a service that ends first is an error with the end of its log.
    pub fn wait_until_ready(&mut self, service: Service) -> anyhow::Result<()> {
        let port = self.options.ports.admin(service);
        let mut last = String::new();
        let process = self.services.get_mut(&service).context("the service was not started")?;
        let result = wait::until(
            Duration::from_mins(1),
            &format!("{} to be ready", service.binary()),
            || {
                if let Some(status) = process.ended() {
                    return Some(Err(anyhow::anyhow!("{} ended at once ({status})", service.binary())));
                }
                match http::request(port, "GET", "/ready", None, None) {
                    Ok(answer) if answer.status == 200 => Some(Ok(())),
                    Ok(answer) => {
                        last = answer.body;
                        None
                    }
                    Err(_) => None,
                }
            },
        );
        match result.and_then(|ready| ready) {
            Ok(()) => Ok(()),
            Err(error) => {
                let reason = if last.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", last.trim())
                };
                bail!(
                    "{error}{reason}; the end of {}:\n{}",
                    process.log().display(),
                    process.log_tail()
                )
            }
        }
    }

    fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.options.binaries.join(name);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{} is not built; run: cargo build --workspace", path.display())
    }

    fn environment(&self, service: Service) -> Vec<(String, String)> {
        let ports = &self.options.ports;
        let (prefix, user, listen, database) = match service {
            Service::Chat => ("CHAT", "chat", ports.chat, Some("chat")),
            Service::Notify => ("NOTIFY", "notify", ports.notify, Some("notify")),
            Service::Indexer => ("INDEXER", "indexer", ports.indexer, Some("indexer")),
            Service::Gateway => ("GATEWAY", "gateway", ports.gateway, None),
        };
        let mut env = Vec::new();
        let mut set = |key: &str, value: String| env.push((format!("FECHATTER_{prefix}__{key}"), value));
        set("LISTEN", format!("127.0.0.1:{listen}"));
        set("ADMIN_LISTEN", format!("127.0.0.1:{}", ports.admin(service)));
        if let Some(url) = &self.options.nats_url {
            set("NATS__URL", url.clone());
        } else {
            set("NATS__URL", format!("nats://127.0.0.1:{}", ports.nats));
            set("NATS__USER", user.to_owned());
            // Quoted: a password of digits alone must not be read as a number.
            set(
                "NATS__PASSWORD",
                format!("\"{}\"", self.secrets.get(&format!("nats_{user}"))),
            );
        }
        if let Some(role) = database {
            set("DATABASE__URL", self.database_url(role));
        }
        let jwks = format!("http://127.0.0.1:{}/.well-known/jwks.json", ports.chat);
        match service {
            Service::Chat => set("AUTH__KEYS_DIR", self.options.data.join("keys").display().to_string()),
            Service::Notify => set("AUTH__JWKS_URL", jwks),
            Service::Indexer => {
                set("AUTH__JWKS_URL", jwks);
                set("ENGINE__PATH", self.options.data.join("search").display().to_string());
            }
            Service::Gateway => {
                set("AUTH__JWKS_URL", jwks);
                set("REDIRECT_LISTEN", format!("127.0.0.1:{}", ports.redirect));
                set(
                    "TLS__CERTIFICATE",
                    self.options.data.join("tls/cert.pem").display().to_string(),
                );
                set("TLS__KEY", self.options.data.join("tls/key.pem").display().to_string());
                for (name, port) in [
                    ("CHAT", ports.chat),
                    ("NOTIFY", ports.notify),
                    ("INDEXER", ports.indexer),
                ] {
                    set(&format!("UPSTREAMS__{name}"), format!("[\"127.0.0.1:{port}\"]"));
                }
            }
        }
        env.extend(self.options.env.iter().cloned());
        env
    }
}

/// Where PostgreSQL's data goes: beside the rest, unless its user may not go there.
fn cluster_folder(data: &Path) -> anyhow::Result<PathBuf> {
    let Some(user) = tools::postgres_user()? else {
        return Ok(data.join("postgres"));
    };
    let may_enter = Command::new("setpriv")
        .args([
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            "--init-groups",
            "--",
            "test",
            "-x",
        ])
        .arg(data)
        .current_dir("/")
        .status()
        .is_ok_and(|status| status.success());
    if may_enter {
        return Ok(data.join("postgres"));
    }
    let name: String = data
        .display()
        .to_string()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let folder = PathBuf::from("/var/lib/fechatter");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(name.trim_matches('-')))
}

/// The folder of the binaries of the build that the running test belongs to.
fn binaries_beside_test() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("cannot find the running test")?;
    let folder = test
        .parent()
        .and_then(Path::parent)
        .context("cannot find the build's folder")?;
    Ok(folder.to_owned())
}
