//! The gateway as a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dev::child::{Process, Program};
use dev::ports;

use super::{Issuer, Upstream, eventually};

/// A running gateway with a certificate of its own.
pub struct Gateway {
    pub https: SocketAddr,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub folder: tempfile::TempDir,
    program: Program,
    process: Process,
}

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports::free().unwrap()))
}

/// What `unshare` is told so that `binary` sees a file of its own as `/etc/hosts`. As root a mount namespace is enough.
fn with_hosts(binary: &str, hosts: &Path) -> Vec<String> {
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let hosts = hosts.display().to_string();
    ["--map-root-user", "--mount", "sh", "-c", script, &hosts, binary]
        .map(str::to_owned)
        .to_vec()
}

impl Gateway {
    /// Starts it and waits until it is ready.
    pub async fn start(issuer: &Issuer, upstreams: &[&Upstream], settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut gateway = Self::start_in(folder, issuer, upstreams, settings, None);
        gateway.wait_until("/ready").await;
        gateway
    }

    /// Starts it and waits until it is alive, although it cannot become ready yet.
    pub async fn start_unready(issuer: &Issuer, upstreams: &[&Upstream], settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut gateway = Self::start_in(folder, issuer, upstreams, settings, None);
        gateway.wait_until("/live").await;
        // The public listener opens after the admin one.
        eventually("the public listener", async || {
            tokio::net::TcpStream::connect(gateway.https).await.ok()
        })
        .await;
        gateway
    }

    /// Starts it where names mean what `hosts` says, in the form of `/etc/hosts`; the file can be written again.
    pub async fn with_hosts(issuer: &Issuer, upstreams: &str, hosts: &Path) -> Self {
        let settings = ["UPSTREAMS__CHAT", "UPSTREAMS__NOTIFY", "UPSTREAMS__INDEXER"].map(|name| (name, upstreams));
        let folder = tempfile::tempdir().unwrap();
        let mut gateway = Self::start_in(folder, issuer, &[], &settings, Some(hosts));
        gateway.wait_until("/ready").await;
        gateway
    }

    /// With a configuration file that says who the upstreams are and can be written again.
    pub async fn with_file(issuer: &Issuer, file: &str, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("gateway.toml"), file).unwrap();
        let mut gateway = Self::start_in(folder, issuer, &[], settings, None);
        gateway.wait_until("/ready").await;
        gateway
    }

    /// Writes the configuration file again, whole at once as an editor or a ConfigMap does.
    pub fn write_file(&self, file: &str) {
        let new = self.folder.path().join("gateway.toml.new");
        std::fs::write(&new, file).unwrap();
        std::fs::rename(new, self.folder.path().join("gateway.toml")).unwrap();
    }

    fn start_in(
        folder: tempfile::TempDir,
        issuer: &Issuer,
        upstreams: &[&Upstream],
        settings: &[(&str, &str)],
        hosts: Option<&Path>,
    ) -> Self {
        gateway::tls::install_provider();
        gateway::dev_certificate::ensure(folder.path()).unwrap();
        let file = folder.path().join("gateway.toml");
        let addresses: Vec<String> = upstreams
            .iter()
            .map(|upstream| format!("\"{}\"", upstream.address))
            .collect();
        let addresses = format!("[{}]", addresses.join(","));
        let (https, http, admin) = (free(), free(), free());
        let mut env: Vec<(String, String)> = [
            ("LISTEN", https.to_string()),
            ("REDIRECT_LISTEN", http.to_string()),
            ("ADMIN_LISTEN", admin.to_string()),
            ("TLS__CERTIFICATE", folder.path().join("cert.pem").display().to_string()),
            ("TLS__KEY", folder.path().join("key.pem").display().to_string()),
            ("UPSTREAMS__CHAT", addresses.clone()),
            ("UPSTREAMS__NOTIFY", addresses.clone()),
            ("UPSTREAMS__INDEXER", addresses),
            ("UPSTREAMS__HEALTH_INTERVAL_MS", "200".to_owned()),
            // The upstreams that record every byte speak HTTP/1.1 alone.
            ("UPSTREAMS__STREAMS_PER_CONNECTION", "0".to_owned()),
            (
                "AUTH__JWKS_URL",
                format!("http://{}/.well-known/jwks.json", issuer.server.address),
            ),
            // Nobody listens there: the gateway works without, and the tests that need NATS say so.
            ("NATS__URL", "nats://127.0.0.1:9".to_owned()),
            ("REVOCATIONS_WAIT_SECONDS", "0".to_owned()),
            ("LOG__FORMAT", "json".to_owned()),
            ("LOG__FILTER", "info,async_nats=off".to_owned()),
            ("DRAIN__DELAY_MS", "0".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (format!("FECHATTER_GATEWAY__{name}"), value))
        .collect();
        for (name, value) in settings {
            env.retain(|(known, _)| known != &format!("FECHATTER_GATEWAY__{name}"));
            env.push((format!("FECHATTER_GATEWAY__{name}"), (*value).to_owned()));
        }
        if file.exists() {
            env.retain(|(known, _)| !known.starts_with("FECHATTER_GATEWAY__UPSTREAMS__"));
        }
        let binary = env!("CARGO_BIN_EXE_gateway");
        let (path, mut args) = match hosts {
            None => (binary, Vec::new()),
            Some(hosts) => ("unshare", with_hosts(binary, hosts)),
        };
        if file.exists() {
            args.extend(["--config".to_owned(), file.display().to_string()]);
        }
        let program = Program {
            name: "gateway".to_owned(),
            path: PathBuf::from(path),
            args,
            env,
            log: folder.path().join("gateway.log"),
            user: None,
            dir: folder.path().to_owned(),
        };
        let process = Process::start(&program).unwrap();
        Self {
            https,
            http,
            admin,
            folder,
            program,
            process,
        }
    }

    async fn wait_until(&mut self, path: &str) {
        let ready = format!("http://{}{path}", self.admin);
        let started = std::time::Instant::now();
        loop {
            assert!(
                self.process.ended().is_none(),
                "the gateway ended:\n{}",
                self.process.log_tail()
            );
            if reqwest::get(&ready)
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                return;
            }
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "not ready:\n{}",
                self.process.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.https.port())
    }

    /// A client that trusts this gateway's certificate and nothing else.
    pub fn client(&self, configure: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> reqwest::Client {
        let ca = std::fs::read(self.folder.path().join("ca.pem")).unwrap();
        let builder = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20));
        configure(builder).build().unwrap()
    }

    pub fn http1(&self) -> reqwest::Client {
        self.client(reqwest::ClientBuilder::http1_only)
    }

    pub fn http2(&self) -> reqwest::Client {
        self.client(|builder| builder)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("gateway.log")).unwrap()
    }

    /// The access log line of a request.
    pub async fn access_line(&self, request_id: &str) -> serde_json::Value {
        eventually("the access log line", async || {
            let log = self.log();
            let lines = log
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            lines
                .into_iter()
                .find(|line| line["target"] == "access" && line["request_id"] == request_id)
        })
        .await
    }

    pub async fn metrics(&self) -> String {
        reqwest::get(format!("http://{}/metrics", self.admin))
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    /// Resident memory of the process, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// Starts the program once more, to take over, with other `settings`; the running one stays this value's process.
    pub fn successor(&self, settings: &[(&str, &str)]) -> Process {
        let mut program = self.program.clone();
        program.args.push("--upgrade".to_owned());
        for (name, value) in settings {
            program
                .env
                .push((format!("FECHATTER_GATEWAY__{name}"), (*value).to_owned()));
        }
        Process::start(&program).unwrap()
    }

    /// Watches `successor` from now on instead of the process before, which is returned.
    pub fn become_process(&mut self, successor: Process) -> Process {
        std::mem::replace(&mut self.process, successor)
    }

    pub fn signal(&self, signal: &str) {
        self.process.signal(signal.parse().unwrap());
    }

    /// The exit code, once it has ended.
    pub async fn exit_code(&mut self) -> i32 {
        exit_code(&mut self.process).await
    }
}

/// The exit code of a process, once it has ended.
pub async fn exit_code(process: &mut Process) -> i32 {
    let started = std::time::Instant::now();
    loop {
        if let Some(status) = process.ended() {
            return status.code().unwrap_or(-1);
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "still running:\n{}",
            process.log_tail()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
