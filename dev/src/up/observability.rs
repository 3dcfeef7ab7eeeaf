//! `cargo dev up --observability`: what this machine can have of what an SRE installs.

use std::path::{Path, PathBuf};

use dev::child::{Process, Program};
use dev::platform::Ports;
use dev::prometheus::{self, Server};
use dev::tools;

use crate::cargo::repository;
use crate::lines::say;

/// Where the collector of our configuration listens for OTLP over HTTP.
const COLLECTOR_URL: &str = "http://127.0.0.1:4318";

/// What runs besides the platform; dropped, it ends.
pub(super) struct Watching {
    _prometheus: Server,
    collector: Option<Process>,
    port: u16,
}

/// Starts Prometheus, and a collector if there is one.
pub(super) fn start(data: &Path, port: u16, platform: &Ports) -> anyhow::Result<Watching> {
    say("starting Prometheus");
    let prometheus = Server::start(&prometheus::Options {
        data: data.join("prometheus"),
        port,
        log: data.join("logs/prometheus.log"),
        platform: platform.clone(),
        is_quick: false,
    })?;
    let collector = tools::collector().map(|path| start_collector(data, path)).transpose()?;
    Ok(Watching {
        _prometheus: prometheus,
        collector,
        port,
    })
}

fn start_collector(data: &Path, path: PathBuf) -> anyhow::Result<Process> {
    say(&format!("starting the collector {}", path.display()));
    let configuration = repository().join("observability/collector/otelcol.yaml");
    Process::start(&Program {
        name: "collector".to_owned(),
        path,
        args: vec![format!("--config={}", configuration.display())],
        env: Vec::new(),
        log: data.join("logs/collector.log"),
        user: None,
        dir: data.to_owned(),
    })
}

impl Watching {
    /// What the services need to know of it.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        if self.collector.is_none() {
            return Vec::new();
        }
        vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), COLLECTOR_URL.to_owned())]
    }

    /// Where to look.
    pub(super) fn greeting(&self) -> String {
        let port = self.port;
        let collector = match &self.collector {
            Some(process) => format!("OTLP to {COLLECTOR_URL}; its log: {}", process.log().display()),
            None => {
                "none installed (docs/observability.md says how to build one); metrics are scraped directly".to_owned()
            }
        };
        format!(
            "Prometheus:  http://127.0.0.1:{port}/targets, alerts at http://127.0.0.1:{port}/alerts\n\
             Collector:   {collector}\n\
             Dashboards:  observability/grafana/dashboards, for a Grafana whose data source is that Prometheus\n"
        )
    }
}
