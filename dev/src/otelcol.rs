//! The OpenTelemetry Collector with the configuration of `observability/collector`: found or built with Go, and run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::child::{Process, Program, Signal};
use crate::{http, tools, wait};

/// Version of the builder and of the components of its manifest.
pub const VERSION: &str = "0.158.0";
/// Name of the binary, as the manifest has it.
const BINARY: &str = "fechatter-otelcol";
/// How long it may take to send what it holds when it ends.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where it listens, on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// OTLP over HTTP.
    pub otlp: u16,
    /// The page for Prometheus.
    pub metrics: u16,
    pub health: u16,
}

/// Those of the configuration.
impl Default for Ports {
    fn default() -> Self {
        Self {
            otlp: 4318,
            metrics: 9464,
            health: 13133,
        }
    }
}

impl Ports {
    /// Each with the variable of the configuration that sets its address.
    pub const fn named(self) -> [(&'static str, u16); 3] {
        [
            ("OTLP_LISTEN", self.otlp),
            ("METRICS_LISTEN", self.metrics),
            ("HEALTH_LISTEN", self.health),
        ]
    }

    /// What goes into `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(self) -> String {
        format!("http://127.0.0.1:{}", self.otlp)
    }
}

/// How it is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// A distribution with the components of our manifest.
    pub path: PathBuf,
    pub ports: Ports,
    pub stores: Stores,
    pub log: PathBuf,
    /// Its working folder.
    pub dir: PathBuf,
}

/// Where traces and logs go.
#[derive(Debug, Clone)]
pub enum Stores {
    /// As our own environment says, by the variables of the configuration.
    Environment,
    /// To this URL, both of them, by OTLP over HTTP.
    At(String),
    /// To the collector's own output.
    Output,
}

/// Variables of the configuration that name the stores.
pub const STORES: [&str; 2] = ["TRACES_ENDPOINT", "LOGS_ENDPOINT"];

/// A running collector; dropped, it ends.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

/// Folder of the configuration and of the builder's manifest, in the repository.
fn folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).join("observability/collector")
}

/// The configuration.
fn configuration() -> PathBuf {
    folder().join("otelcol.yaml")
}

/// The options that name the configuration, and what goes on top of it.
fn configurations(stores: &Stores) -> Vec<String> {
    let mut files = vec![configuration()];
    if matches!(stores, Stores::Output) {
        files.push(folder().join("without_stores.yaml"));
    }
    files
        .into_iter()
        .map(|file| format!("--config={}", file.display()))
        .collect()
}

fn manifest() -> anyhow::Result<String> {
    let path = folder().join("builder.yaml");
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Where the collector is put that was built, with the manifest it was built from.
fn built_folder() -> PathBuf {
    tools::folder().join(format!("collector-{VERSION}"))
}

/// The collector that was built from the manifest as it is now.
pub fn built() -> Option<PathBuf> {
    let of = std::fs::read_to_string(built_folder().join("builder.yaml")).ok()?;
    let binary = built_folder().join(BINARY);
    (of == manifest().ok()? && binary.is_file()).then_some(binary)
}

/// What keeps a collector from being built.
#[derive(Debug)]
pub enum Unbuilt {
    /// No fault of ours: the modules of Go cannot be had here.
    Unreachable(anyhow::Error),
    Failed(anyhow::Error),
}

/// Builds the collector of the manifest with Go, which takes minutes; one that was built before is returned at once.
pub fn build(go: &Path, say: &dyn Fn(&str)) -> Result<PathBuf, Unbuilt> {
    if let Some(binary) = built() {
        return Ok(binary);
    }
    let builder = builder(go, say).map_err(Unbuilt::Unreachable)?;
    compile(go, &builder, say).map_err(Unbuilt::Failed)
}

/// The collector's builder of our version.
fn builder(go: &Path, say: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    let folder = tools::folder().join(format!("collector-builder-{VERSION}"));
    let builder = folder.join("builder");
    if builder.is_file() {
        return Ok(builder);
    }
    say(&format!(
        "missing: the OpenTelemetry Collector's builder {VERSION}: building it with Go into {}",
        folder.display()
    ));
    let installed = Command::new(go)
        .args([
            "install",
            &format!("go.opentelemetry.io/collector/cmd/builder@v{VERSION}"),
        ])
        .env("GOBIN", &folder)
        .status()
        .context("cannot run go")?;
    if !installed.success() {
        bail!("the collector's builder cannot be had; Go's messages are above");
    }
    Ok(builder)
}

fn compile(go: &Path, builder: &Path, say: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    say(&format!(
        "missing: the collector of observability/collector/builder.yaml: building it with Go into {} (minutes)",
        built_folder().display()
    ));
    // Two runs side by side may both build; each does it apart and the last one to finish is kept.
    let apart = tempfile::Builder::new()
        .prefix("building-")
        .tempdir_in(tools::folder())?;
    let (sources, result) = (apart.path().join("sources"), apart.path().join("result"));
    let manifest = manifest()?;
    let ours = format!("dist:\n  output_path: {}\n  go: {}\n", sources.display(), go.display());
    let Some((head, rest)) = manifest.split_once("dist:\n") else {
        bail!("observability/collector/builder.yaml has no `dist:`");
    };
    let file = apart.path().join("builder.yaml");
    std::fs::write(&file, format!("{head}{ours}{rest}"))?;
    let built = Command::new(builder).arg("--config").arg(&file).status()?;
    if !built.success() {
        bail!("the collector cannot be built; its builder's messages are above");
    }
    std::fs::create_dir(&result)?;
    std::fs::copy(sources.join(BINARY), result.join(BINARY))
        .with_context(|| format!("the builder made no {BINARY}"))?;
    std::fs::write(result.join("builder.yaml"), manifest)?;
    // That of an older manifest, if there is one.
    let _ = std::fs::remove_dir_all(built_folder());
    std::fs::rename(&result, built_folder()).with_context(|| format!("cannot make {}", built_folder().display()))?;
    Ok(built_folder().join(BINARY))
}

/// Has a collector judge the configuration, by itself and with what goes on top of it.
pub fn validate(path: &Path) -> anyhow::Result<()> {
    for stores in [Stores::Environment, Stores::Output] {
        let mut command = Command::new(path);
        tools::run(command.arg("validate").args(configurations(&stores)))?;
    }
    Ok(())
}

impl Server {
    /// Starts it with the configuration as it is and waits until it is healthy.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let address = |port| format!("127.0.0.1:{port}");
        let mut env: Vec<(String, String)> = options
            .ports
            .named()
            .map(|(name, port)| (name.to_owned(), address(port)))
            .into();
        if let Stores::At(url) = &options.stores {
            env.extend(STORES.map(|name| (name.to_owned(), url.clone())));
        }
        let process = Process::start(&Program {
            name: "collector".to_owned(),
            path: options.path.clone(),
            args: configurations(&options.stores),
            env,
            log: options.log.clone(),
            user: None,
            dir: options.dir.clone(),
        })?;
        let mut server = Self { process };
        server.wait_until_healthy(options.ports.health)?;
        Ok(server)
    }

    fn wait_until_healthy(&mut self, port: u16) -> anyhow::Result<()> {
        let healthy = wait::until_ready(Duration::from_secs(30), "the collector to be healthy", || {
            if self.process.ended().is_some() {
                return Some(false);
            }
            let answer = http::request(port, "GET", "/", None, None);
            answer.is_ok_and(|answer| answer.status == 200).then_some(true)
        })?;
        if !healthy {
            bail!(
                "the collector ended at once; the end of its log:\n{}",
                self.process.log_tail()
            );
        }
        Ok(())
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it in an orderly way: it sends what it holds. Says whether it did.
    pub fn stop(&mut self) -> bool {
        self.process.signal(Signal::SIGTERM);
        self.process.end_within(PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_those_of_the_configuration() {
        let text = std::fs::read_to_string(configuration()).unwrap();
        for (name, port) in Ports::default().named() {
            let default = format!("endpoint: ${{env:{name}:-127.0.0.1:{port}}}");
            assert!(text.contains(&default), "the configuration lacks {default}");
        }
        for name in STORES {
            assert!(text.contains(&format!("endpoint: ${{env:{name}:-http://")), "{name}");
        }
    }

    #[test]
    fn the_builder_is_as_old_as_its_components() {
        let manifest = manifest().unwrap();
        let components = manifest.lines().filter(|line| line.contains(" v0.")).count();
        assert!(components > 5, "only {components} components found");
        let suffix = format!(" v{VERSION}");
        assert_eq!(
            manifest.lines().filter(|line| line.ends_with(&suffix)).count(),
            components
        );
        assert!(manifest.contains(&format!("\n  name: {BINARY}\n")));
    }
}
