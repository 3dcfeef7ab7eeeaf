//! The whole platform as real processes on loopback: what `cargo dev up` runs and the end-to-end tests drive.

mod database;
mod ports;
pub mod probe;
mod service;

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::child::{Process, Program, Signal};
use crate::secrets::Secrets;
use crate::{http, nats, postgres, scratch, tools, wait};

pub use self::ports::{Ports, Twin};
pub use self::service::Service;

/// A part of the platform that runs and can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Service(Service),
    /// A second replica of a service.
    Twin(Service),
    Postgres,
    Nats,
}

impl Part {
    /// All of a platform without twins.
    pub const ALL: [Self; 6] = [
        Self::Service(Service::Chat),
        Self::Service(Service::Notify),
        Self::Service(Service::Indexer),
        Self::Service(Service::Gateway),
        Self::Postgres,
        Self::Nats,
    ];

    /// Name of the log file and the log prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service(service) => service.binary(),
            Self::Twin(service) => service.twin(),
            Self::Postgres => "postgres",
            Self::Nats => "nats-server",
        }
    }

    /// Whose process it is; nothing for the servers.
    pub const fn service(self) -> Option<Service> {
        match self {
            Self::Service(service) | Self::Twin(service) => Some(service),
            Self::Postgres | Self::Nats => None,
        }
    }
}

/// How long a process may take to end in an orderly way.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Services that have a second replica, behind the same gateway. Those with files of their own cannot have one.
    pub twins: Vec<Twin>,
    /// More environment for every service.
    pub env: Vec<(String, String)>,
}

impl Options {
    fn twin(&self, service: Service) -> Option<&Twin> {
        self.twins.iter().find(|twin| twin.service == service)
    }
}

/// The running platform. Dropped, it stops at once and leaves nothing behind.
#[derive(Debug)]
pub struct Platform {
    // Before the servers, so that it is dropped before them.
    services: BTreeMap<Part, Process>,
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
        match platform.bring_up(say) {
            Ok(()) => Ok(platform),
            Err(error) => {
                platform.stop();
                Err(error)
            }
        }
    }

    fn bring_up(&mut self, say: &dyn Fn(&str)) -> anyhow::Result<()> {
        self.start_postgres(say)?;
        self.start_nats(say)?;
        self.migrate(say)?;
        self.make_keys()?;
        // The edge last: what it finds unhealthy at its first look it leaves alone for a while.
        for services in [&Service::ALL[..3], &Service::ALL[3..]] {
            let wanted = services
                .iter()
                .filter(|service| !self.options.without.contains(service));
            let wanted: Vec<Service> = wanted.copied().collect();
            let twins: Vec<Part> = self.options.twins.iter().map(|twin| Part::Twin(twin.service)).collect();
            let parts = wanted.iter().flat_map(|service| {
                let twin = Part::Twin(*service);
                std::iter::once(Part::Service(*service)).chain(twins.contains(&twin).then_some(twin))
            });
            let parts: Vec<Part> = parts.collect();
            for part in &parts {
                self.launch(*part)?;
            }
            for part in parts {
                say(&format!("waiting for {}", part.name()));
                self.wait_until_started(part)?;
            }
        }
        Ok(())
    }

    /// The platform in a temporary folder on free ports, for tests. `without` names services that are not started.
    pub fn temporary(without: &[Service]) -> anyhow::Result<Self> {
        Self::temporary_with(without, &[])
    }

    /// Like [`Self::temporary`], with more environment for every service.
    pub fn temporary_with(without: &[Service], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let env: Vec<(String, String)> = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Self::temporary_from(&binaries_beside_test()?, without, &env)
    }

    /// Like [`Self::temporary_with`], with the binaries of a folder.
    pub fn temporary_from(binaries: &Path, without: &[Service], env: &[(String, String)]) -> anyhow::Result<Self> {
        Self::temporary_of(binaries, without, &[], env)
    }

    /// Like [`Self::temporary_with`], with a second replica of each of `twins`.
    pub fn temporary_twice(twins: &[Service], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let env: Vec<(String, String)> = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Self::temporary_of(&binaries_beside_test()?, &[], twins, &env)
    }

    fn temporary_of(
        binaries: &Path,
        without: &[Service],
        twins: &[Service],
        env: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let folder = scratch::folder()?;
        postgres::open_for_all(folder.path())?;
        let options = Options {
            data: folder.path().to_owned(),
            binaries: binaries.to_owned(),
            ports: Ports::free()?,
            postgres_url: None,
            nats_url: None,
            fsync: false,
            without: without.to_vec(),
            twins: twins
                .iter()
                .map(|service| Twin::free(*service))
                .collect::<Result<_, _>>()?,
            env: env.to_vec(),
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

    /// Folder of the keys that sign access tokens.
    pub fn keys(&self) -> PathBuf {
        self.options.data.join("keys")
    }

    pub fn log(&self, service: Service) -> PathBuf {
        self.log_of(Part::Service(service))
    }

    fn log_of(&self, part: Part) -> PathBuf {
        self.options.data.join("logs").join(format!("{}.log", part.name()))
    }

    /// Port of a part's admin listener; nothing for the servers and for a twin that there is not.
    pub fn admin_port(&self, part: Part) -> Option<u16> {
        match part {
            Part::Service(service) => Some(self.options.ports.admin(service)),
            Part::Twin(service) => self.options.twin(service).map(|twin| twin.admin_port),
            Part::Postgres | Part::Nats => None,
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self, service: Service) {
        self.services.remove(&Part::Service(service));
    }

    /// SIGKILL, to any part of ours.
    pub fn kill_part(&mut self, part: Part) -> anyhow::Result<()> {
        match part {
            Part::Service(_) | Part::Twin(_) => drop(self.services.remove(&part)),
            Part::Postgres => self.postgres.as_mut().context("no PostgreSQL of ours")?.kill(),
            Part::Nats => self.nats.as_mut().context("no NATS of ours")?.kill(),
        }
        Ok(())
    }

    /// The process of a part that we started and that has not been stopped.
    pub fn process_id(&self, part: Part) -> Option<u32> {
        match part {
            Part::Service(_) | Part::Twin(_) => self.services.get(&part).map(Process::id),
            Part::Postgres => self.postgres.as_ref().map(postgres::Server::process_id),
            Part::Nats => self.nats.as_ref().map(nats::Server::process_id),
        }
    }

    /// Our PostgreSQL, unless an external one is used.
    pub fn postgres(&mut self) -> Option<&mut postgres::Server> {
        self.postgres.as_mut()
    }

    /// Our NATS, unless an external one is used.
    pub fn nats(&mut self) -> Option<&mut nats::Server> {
        self.nats.as_mut()
    }

    /// The parts that have ended by themselves, with how they ended.
    pub fn ended(&mut self) -> Vec<(Part, String)> {
        let mut ended: Vec<(Part, String)> = self
            .services
            .iter_mut()
            .filter_map(|(part, process)| process.ended().map(|status| (*part, status.to_string())))
            .collect();
        let postgres = self.postgres.as_mut().and_then(postgres::Server::ended);
        ended.extend(postgres.map(|status| (Part::Postgres, status.to_string())));
        let nats = self.nats.as_mut().and_then(nats::Server::ended);
        ended.extend(nats.map(|status| (Part::Nats, status.to_string())));
        ended
    }

    /// Starts a part again that has ended.
    pub fn restart(&mut self, part: Part) -> anyhow::Result<()> {
        match part {
            Part::Service(_) | Part::Twin(_) => self.launch(part),
            Part::Postgres => self.postgres.as_mut().map_or(Ok(()), postgres::Server::restart),
            Part::Nats => self.nats.as_mut().map_or(Ok(()), nats::Server::restart),
        }
    }

    /// Ends everything in an orderly way, the edge first and the database last.
    pub fn stop(&mut self) {
        // The edge takes an interrupt as a request to be quick.
        if let Some(mut edge) = self.services.remove(&Part::Service(Service::Gateway)) {
            edge.stop(Signal::SIGINT, PATIENCE);
        }
        // Once each: a second signal means to abort.
        for process in self.services.values() {
            process.signal(Signal::SIGTERM);
        }
        for (_, mut process) in std::mem::take(&mut self.services).into_iter().rev() {
            process.end_within(PATIENCE);
        }
        if let Some(mut server) = self.nats.take() {
            server.stop();
        }
        if let Some(mut server) = self.postgres.take() {
            server.stop();
        }
    }

    fn start_nats(&mut self, say: &dyn Fn(&str)) -> anyhow::Result<()> {
        if let Some(url) = &self.options.nats_url {
            say("checking the external NATS");
            return check_external_nats(url);
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
        self.launch(Part::Service(service))
    }

    fn launch(&mut self, part: Part) -> anyhow::Result<()> {
        let service = part.service().context("not a process of ours")?;
        let env = match part {
            Part::Twin(_) => self.environment_of_twin(service)?,
            _ => self.environment(service),
        };
        let process = Process::start(&Program {
            name: part.name().to_owned(),
            path: self.binary(service.binary())?,
            args: Vec::new(),
            env,
            log: self.log_of(part),
            user: None,
            dir: self.options.data.clone(),
        })?;
        self.services.insert(part, process);
        Ok(())
    }

    /// Runs an operator's command of a service with its configuration, beside it.
    pub fn operate(&self, service: Service, args: &[&str]) -> anyhow::Result<std::process::Output> {
        let mut command = Command::new(self.binary(service.binary())?);
        command
            .args(args)
            .envs(self.environment(service))
            .current_dir(&self.options.data);
        command
            .output()
            .with_context(|| format!("cannot run {}", service.binary()))
    }

    /// Waits for a service that was just started. Without chat_service nobody gets keys to check tokens with, so nobody
    /// is ever ready; then it is enough that it lives.
    fn wait_until_started(&mut self, part: Part) -> anyhow::Result<()> {
        let path = if self.options.without.contains(&Service::Chat) {
            "/live"
        } else {
            "/ready"
        };
        self.wait_until_says(part, path)
    }

    /// Waits until a service's `/ready` says so; a service that ends first is an error with the end of its log.
    pub fn wait_until_ready(&mut self, service: Service) -> anyhow::Result<()> {
        self.wait_until_says(Part::Service(service), "/ready")
    }

    fn wait_until_says(&mut self, part: Part, path: &str) -> anyhow::Result<()> {
        let admin_port = self.admin_port(part).context("not a process of ours")?;
        let mut last = String::new();
        let process = self.services.get_mut(&part).context("the service was not started")?;
        let result = wait::until_ready(Duration::from_mins(1), &format!("{} to be ready", part.name()), || {
            if let Some(status) = process.ended() {
                return Some(Err(anyhow::anyhow!("{} ended at once ({status})", part.name())));
            }
            match http::request(admin_port, "GET", path, None, None) {
                Ok(answer) if answer.status == 200 => Some(Ok(())),
                Ok(answer) => {
                    last = answer.body;
                    None
                }
                Err(_) => None,
            }
        });
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

    /// Path of one of our binaries.
    pub fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.options.binaries.join(name);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{} is not built; run: cargo build --workspace", path.display())
    }
}

fn check_external_nats(urls: &str) -> anyhow::Result<()> {
    let reachable = urls.split(',').any(|url| {
        let address = url.trim().split_once("://").map_or(url.trim(), |(_, rest)| rest);
        let address = address.rsplit_once('@').map_or(address, |(_, address)| address);
        let address = address.trim_end_matches('/');
        let with_port = if address.contains(':') {
            address.to_owned()
        } else {
            format!("{address}:4222")
        };
        let addresses = with_port.to_socket_addrs().into_iter().flatten();
        addresses
            .into_iter()
            .any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok())
    });
    if !reachable {
        bail!("nothing answers at --nats-url; start that NATS, or leave the option out to use one of our own");
    }
    Ok(())
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
