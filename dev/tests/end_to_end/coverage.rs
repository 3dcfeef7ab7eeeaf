//! Dashboards, rules and metrics fit each other: every expression has data on a platform under load, and every metric of
//! the code is looked at by somebody.

#![expect(clippy::unwrap_used, reason = "in a test, what is not there is a failure")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dev::platform::{Platform, probe};
use dev::prometheus::{self, Server};
use dev::{ports, scratch};
use serde_json::Value;

use crate::client::Client;
use crate::collector::Collector;
use crate::{dashboards, drive, flow};

/// How long an expression may take to have data, beginning with the load.
const PATIENCE: Duration = Duration::from_mins(1);
/// Crates whose instruments are looked for.
const CRATES: [&str; 7] = [
    "observability",
    "service_runtime",
    "gateway",
    "chat_service",
    "notify_service",
    "indexer",
    "probe",
];

/// What only a collector measures; `cargo dev collector` looks at it.
const OF_THE_COLLECTOR: &str = "traces_span_metrics_";

/// An expression, and where it is written.
pub struct Expression {
    pub place: String,
    pub text: String,
}

#[test]
fn every_panel_and_every_rule_has_data_under_load() {
    let collector = Collector::start().unwrap();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        // Metrics of the export itself exist after the first one.
        ("OTEL_METRIC_EXPORT_INTERVAL", "2000"),
        // The conversations sign in more often than one person's address may.
        (
            "FECHATTER_GATEWAY__RATE_LIMITS__AUTH",
            "{requests=1000000,window_seconds=1}",
        ),
    ];
    let platform = Platform::temporary_with(&[], &env).unwrap();
    let folder = scratch::folder().unwrap();
    let port = ports::free().unwrap();
    let probe = probe::Options {
        admin: ports::free().unwrap(),
        interval_seconds: 5,
    };
    let _probe = platform.start_probe(probe).unwrap();
    let _prometheus = Server::start(&prometheus::Options {
        data: folder.path().join("prometheus"),
        port,
        log: folder.path().join("prometheus.log"),
        platform: platform.ports().clone(),
        collector: None,
        probe: Some(probe.admin),
        is_quick: true,
    })
    .unwrap();
    let mut missing = panels(false);
    assert!(missing.len() > 100, "only {} panels' expressions found", missing.len());
    missing.extend(recorded());
    drive(async {
        let http = reqwest::Client::new();
        let deadline = Instant::now() + PATIENCE;
        while !missing.is_empty() {
            // The load goes on, each time by new connections: rates need something to rise.
            flow::conversation(&Client::new(&platform).unwrap()).await.unwrap();
            let mut still = Vec::new();
            for expression in missing {
                if !has_data(&http, port, &expression).await {
                    still.push(expression);
                }
            }
            missing = still;
            let first = missing
                .first()
                .map(|expression| format!("{}: {}", expression.place, expression.text));
            assert!(
                missing.is_empty() || Instant::now() < deadline,
                "{} expressions have no data, the first is {}",
                missing.len(),
                first.unwrap_or_default()
            );
        }
    });
}

/// Whether an expression has a value; one that Prometheus cannot read is the test's end.
pub async fn has_data(http: &reqwest::Client, port: u16, expression: &Expression) -> bool {
    let url = format!("http://127.0.0.1:{port}/api/v1/query");
    let answer = http
        .get(url)
        .query(&[("query", &expression.text)])
        .send()
        .await
        .unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(
        answer["status"], "success",
        "{}: {}: {answer}",
        expression.place, expression.text
    );
    let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
    results
        .iter()
        .any(|result| result["value"][1].as_str().is_some_and(|value| value != "NaN"))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What the panels ask of the collector's own metrics, or of all others; with everything chosen.
pub fn panels(of_the_collector: bool) -> Vec<Expression> {
    let mut expressions = Vec::new();
    for (file, dashboard) in dashboards::all() {
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                expressions.push(Expression {
                    place: format!("{file}, {}", panel["title"]),
                    text: target["expr"]
                        .as_str()
                        .unwrap()
                        .replace("$__rate_interval", "30s")
                        .replace("$namespace", ".*")
                        .replace("$job", ".*")
                        .replace("$instance", ".*"),
                });
            }
        }
    }
    expressions.retain(|expression| expression.text.contains(OF_THE_COLLECTOR) == of_the_collector);
    expressions
}

/// What the recording rules record.
fn recorded() -> Vec<Expression> {
    let text = std::fs::read_to_string(prometheus::rules().join("recording_rules.yaml")).unwrap();
    let names: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .collect();
    assert!(names.len() > 10, "only {} recording rules found", names.len());
    names
        .into_iter()
        .flat_map(|name| {
            let by_objective = name.starts_with("fechatter:slo_");
            let objectives = [
                "send-availability",
                "send-latency",
                "delivery-latency",
                "search-freshness",
            ];
            let selectors: Vec<String> = if by_objective {
                objectives.iter().map(|slo| format!("{{slo=\"{slo}\"}}")).collect()
            } else {
                vec![String::new()]
            };
            selectors.into_iter().map(move |selector| Expression {
                place: "recording_rules.yaml".to_owned(),
                text: format!("{name}{selector}"),
            })
        })
        .collect()
}

#[test]
fn every_metric_of_the_code_is_looked_at() {
    let mut text: String = dashboards::all()
        .iter()
        .map(|(_, dashboard)| dashboard.to_string())
        .collect();
    for file in ["recording_rules.yaml", "alert_rules.yaml"] {
        text += &std::fs::read_to_string(prometheus::rules().join(file)).unwrap();
    }
    let used: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let documented = std::fs::read_to_string(repository().join("docs/observability.md")).unwrap();
    let defined = metrics_of_the_code();
    assert!(defined.len() > 50, "only {defined:?} found in the code");
    for metric in &defined {
        let exported = metric.replace('.', "_");
        assert!(
            used.iter().any(|word| is_series_of(word, &exported)),
            "{metric} is in no dashboard and no rule"
        );
        assert!(
            documented.contains(&format!("`{metric}`")),
            "{metric} is not in docs/observability.md"
        );
    }
}

/// Whether Prometheus gives a metric's series this name: with its unit and its kind appended.
fn is_series_of(word: &str, metric: &str) -> bool {
    let Some(rest) = word.strip_prefix(metric) else {
        return false;
    };
    rest.is_empty()
        || rest[1..]
            .split('_')
            .all(|part| ["total", "seconds", "bytes", "ratio", "bucket", "count", "sum"].contains(&part))
}

#[test]
fn a_series_is_known_by_its_metric() {
    assert!(is_series_of(
        "gateway_tls_handshake_duration_seconds_bucket",
        "gateway_tls_handshake_duration"
    ));
    assert!(is_series_of("notify_streams", "notify_streams"));
    assert!(!is_series_of("gateway_upstreams_healthy", "gateway_upstreams"));
    assert!(!is_series_of("notify_stream", "notify_streams"));
}

/// Names in the calls that make instruments.
fn metrics_of_the_code() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for crate_name in CRATES {
        let mut folders = vec![repository().join(crate_name).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    names.extend(instruments(&std::fs::read_to_string(path).unwrap()));
                }
            }
        }
    }
    names
}

/// The string after a call that makes an instrument.
fn instruments(source: &str) -> Vec<String> {
    const CALLS: [&str; 8] = [
        "counter(",
        "gauge(",
        "histogram(",
        "seconds(",
        "observe_number(",
        "upstreams(",
        "observe(meter,",
        "=> (",
    ];
    let pieces: Vec<&str> = source.split('"').collect();
    pieces
        .windows(2)
        .filter(|pair| {
            let before: String = pair[0].split_whitespace().collect::<Vec<_>>().join(" ");
            CALLS.iter().any(|call| before.ends_with(call))
        })
        .map(|pair| pair[1].to_owned())
        .filter(|name| name.contains('.') && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.'))
        .collect()
}
