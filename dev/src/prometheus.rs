//! A real Prometheus with our rules, which scrapes the platform.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::child::{Process, Program};
use crate::platform::{Ports, Service};
use crate::{http, wait};

/// How it is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// For its configuration and its data.
    pub data: PathBuf,
    pub port: u16,
    pub log: PathBuf,
    /// Where the platform listens.
    pub platform: Ports,
    /// Where a collector has its page, of which the span metrics are scraped: all else comes from the platform itself.
    pub collector: Option<u16>,
    /// Where a probe has its `/metrics`.
    pub probe: Option<u16>,
    /// Scrapes and evaluates each second, for tests.
    pub is_quick: bool,
}

/// A running Prometheus; dropped, it ends.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

/// Folder of the rules, in the repository.
pub fn rules() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).join("observability/prometheus")
}

impl Server {
    /// Starts it and waits until it is ready.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&options.data).with_context(|| format!("cannot make {}", options.data.display()))?;
        for file in ["prometheus.yaml", "recording_rules.yaml", "alert_rules.yaml"] {
            let text = std::fs::read_to_string(rules().join(file)).with_context(|| format!("cannot read {file}"))?;
            let path = options.data.join(file);
            let mut text = adapt(&text, options);
            // After `scrape_configs`, which come last.
            if file == "prometheus.yaml" {
                text.extend(options.probe.map(probe_job));
                text.extend(options.collector.map(collector_job));
            }
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let process = Process::start(&Program {
            name: "prometheus".to_owned(),
            path: "prometheus".into(),
            args: vec![
                format!("--config.file={}", options.data.join("prometheus.yaml").display()),
                format!("--storage.tsdb.path={}", options.data.join("data").display()),
                "--storage.tsdb.retention.time=15d".to_owned(),
                "--enable-feature=exemplar-storage".to_owned(),
                format!("--web.listen-address=127.0.0.1:{}", options.port),
            ],
            env: Vec::new(),
            log: options.log.clone(),
            user: None,
            dir: options.data.clone(),
        })?;
        let mut server = Self { process };
        server.wait_until_ready(options.port)?;
        Ok(server)
    }

    fn wait_until_ready(&mut self, port: u16) -> anyhow::Result<()> {
        let ready = wait::until_ready(Duration::from_secs(30), "Prometheus to be ready", || {
            if self.process.ended().is_some() {
                return Some(false);
            }
            let answer = http::request(port, "GET", "/-/ready", None, None);
            answer.is_ok_and(|answer| answer.status == 200).then_some(true)
        })?;
        if !ready {
            bail!(
                "prometheus ended at once; the end of its log:\n{}",
                self.process.log_tail()
            );
        }
        Ok(())
    }
}

/// One more of `scrape_configs`.
fn probe_job(port: u16) -> String {
    format!("  - job_name: probe\n    static_configs: [{{targets: [\"127.0.0.1:{port}\"]}}]\n")
}

/// One more of `scrape_configs`.
fn collector_job(port: u16) -> String {
    format!(
        "  - job_name: collector\n    honor_labels: true\n    static_configs: [{{targets: [\"127.0.0.1:{port}\"]}}]\n    \
         metric_relabel_configs: [{{source_labels: [__name__], regex: \"traces_span_metrics_.*\", action: keep}}]\n"
    )
}

/// The committed configuration, with the ports of this platform.
fn adapt(text: &str, options: &Options) -> String {
    let (usual, here) = (Ports::default(), &options.platform);
    let mut text = text.to_owned();
    for service in Service::ALL {
        text = text.replace(
            &format!("\"127.0.0.1:{}\"", usual.admin(service)),
            &format!("\"127.0.0.1:{}\"", here.admin(service)),
        );
    }
    if options.is_quick {
        for interval in ["15s", "30s", "1m"] {
            text = text.replace(&format!("interval: {interval}"), "interval: 1s");
        }
    }
    text
}
