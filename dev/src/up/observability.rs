//! `cargo dev up --observability`: what this machine can have of what an SRE installs.

use std::path::{Path, PathBuf};

use dev::child::Process;
use dev::otelcol::{self, Stores};
use dev::platform::{Platform, Ports, probe};
use dev::prometheus::{self, Server};
use dev::{ports, tools};

use crate::lines::say;

/// Where it listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listen {
    pub prometheus: u16,
    pub otlp: u16,
    pub probe: u16,
}

/// Seconds between the rounds of the probe; shorter than in production, where nobody waits for its first figures.
const PROBE_SECONDS: u64 = 20;

/// What runs besides the platform; dropped, it ends.
pub(crate) struct Watching {
    _prometheus: Server,
    collector: Option<Collector>,
    probe: Option<Process>,
    listen: Listen,
}

struct Collector {
    server: otelcol::Server,
    ports: otelcol::Ports,
    has_stores: bool,
}

/// Starts a collector if there is one, and Prometheus.
pub(crate) fn start(data: &Path, listen: Listen, platform: &Ports) -> anyhow::Result<Watching> {
    let collector = tools::collector()
        .map(|path| start_collector(data, path, listen.otlp))
        .transpose()?;
    say("starting Prometheus");
    let prometheus = Server::start(&prometheus::Options {
        data: data.join("prometheus"),
        port: listen.prometheus,
        log: data.join("logs/prometheus.log"),
        platform: platform.clone(),
        collector: collector.as_ref().map(|collector| collector.ports.metrics),
        probe: Some(listen.probe),
        is_quick: false,
    })?;
    Ok(Watching {
        _prometheus: prometheus,
        collector,
        probe: None,
        listen,
    })
}

fn start_collector(data: &Path, path: PathBuf, otlp: u16) -> anyhow::Result<Collector> {
    say(&format!("starting the collector {}", path.display()));
    let has_stores = otelcol::STORES.iter().any(|name| std::env::var_os(name).is_some());
    let ports = otelcol::Ports {
        otlp,
        metrics: ports::free()?,
        health: ports::free()?,
    };
    let server = otelcol::Server::start(&otelcol::Options {
        path,
        ports,
        stores: if has_stores {
            Stores::Environment
        } else {
            Stores::Output
        },
        log: data.join("logs/collector.log"),
        dir: data.to_owned(),
    })?;
    Ok(Collector {
        server,
        ports,
        has_stores,
    })
}

impl Watching {
    /// What the services need to know of it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let url = self.collector.iter().map(|collector| collector.ports.url());
        url.map(|url| ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), url)).collect()
    }

    /// Starts the probe, once there is something to use.
    pub(crate) fn start_probe(&mut self, platform: &Platform) -> anyhow::Result<()> {
        say("starting the probe");
        self.probe = Some(platform.start_probe(probe::Options {
            admin: self.listen.probe,
            interval_seconds: PROBE_SECONDS,
        })?);
        Ok(())
    }

    /// Where to look.
    pub(crate) fn greeting(&self) -> String {
        let Listen {
            prometheus: port,
            probe,
            ..
        } = self.listen;
        let collector = match &self.collector {
            Some(Collector {
                server,
                ports,
                has_stores,
            }) => {
                let traces = if *has_stores {
                    "to TRACES_ENDPOINT"
                } else {
                    "in its log (a trace store: TRACES_ENDPOINT=http://… before the command)"
                };
                format!(
                    "OTLP to {}, metrics at http://127.0.0.1:{}/metrics, kept traces {traces}; its log: {}",
                    ports.url(),
                    ports.metrics,
                    server.process().log().display()
                )
            }
            None => "none; `cargo dev collector` builds one where Go is; metrics are scraped directly".to_owned(),
        };
        format!(
            "Prometheus:  http://127.0.0.1:{port}/targets, alerts at http://127.0.0.1:{port}/alerts\n\
             Collector:   {collector}\n\
             Probe:       a round each {PROBE_SECONDS} s, http://127.0.0.1:{probe}/metrics\n\
             Dashboards:  observability/grafana/dashboards, for a Grafana whose data source is that Prometheus\n"
        )
    }
}
