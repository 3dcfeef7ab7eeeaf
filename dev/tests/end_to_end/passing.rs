//! Telemetry of the platform through a real OpenTelemetry Collector with the configuration that operators install.

#![expect(clippy::unwrap_used, reason = "in a test, what is not there is a failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dev::child::{Signal, process_id};
use dev::otelcol::{Options, Ports, Server, Stores};
use dev::platform::{Part, Platform, Service, probe};
use dev::{http, ports, prometheus, scratch, wait};
use nix::sys::signal::kill;
use reqwest::Method;
use serde_json::json;

use crate::client::Client;
use crate::collector::{Collector, Span};
use crate::{coverage, drive, flow};

/// One of ten is kept: that none is, or all are, happens once in ten million runs.
const SENDS: usize = 150;
/// With the one of the conversation and the one of the probe.
const SENT: usize = SENDS + 2;
const SEND: &str = "POST /api/chat/{id}/messages";
/// What a kept trace of a sent message consists of: services, and how their spans begin.
const PARTS: [(&str, &str); 6] = [
    ("gateway", SEND),
    ("chat_service", SEND),
    ("chat_service", "SELECT chat_members"),
    ("chat_service", "publish"),
    ("notify_service", "deliver"),
    ("indexer", "index"),
];
/// Slower than what the configuration keeps whatever the share.
const SLOW: Duration = Duration::from_millis(700);
/// Longer than tail sampling waits for the rest of a trace, with its batches and the flush of span metrics.
const PATIENCE: Duration = Duration::from_secs(40);

#[test]
#[ignore = "takes a collector; run it by `cargo dev collector`"]
fn telemetry_passes_through_the_collector() {
    let store = Collector::start().unwrap();
    let folder = scratch::folder().unwrap();
    let listen = Ports {
        otlp: ports::free().unwrap(),
        metrics: ports::free().unwrap(),
        health: ports::free().unwrap(),
    };
    let mut collector = Server::start(&Options {
        path: path().into(),
        ports: listen,
        stores: Stores::At(store.url.clone()),
        log: folder.path().join("collector.log"),
        dir: folder.path().to_owned(),
    })
    .unwrap();
    let url = listen.url();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "200"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
    ];
    let mut platform = Platform::temporary_with(&[], &env).unwrap();
    let probe = probe::Options {
        admin: ports::free().unwrap(),
        interval_seconds: 120,
    };
    let _probe = platform.start_probe(probe).unwrap();
    let prometheus_port = ports::free().unwrap();
    let _prometheus = prometheus::Server::start(&prometheus::Options {
        data: folder.path().join("prometheus"),
        port: prometheus_port,
        log: folder.path().join("prometheus.log"),
        platform: platform.ports().clone(),
        collector: Some(listen.metrics),
        probe: Some(probe.admin),
        is_quick: true,
    })
    .unwrap();
    wait::until(PATIENCE, "the probe's round to pass", || {
        let page = http::request(probe.admin, "GET", "/metrics", None, None).ok()?.body;
        let passed = |line: &str| line.starts_with("probe_rounds_total{outcome=\"passed\"") && line.ends_with(" 1");
        page.lines().any(passed).then_some(())
    })
    .unwrap();

    let page = format!("http://127.0.0.1:{}/metrics", listen.metrics);
    drive(async {
        let always = talk(&mut platform).await;
        traces_are_sampled_and_whole(&store, &always);
        metrics_are_on_the_page(&platform, probe.admin, &page).await;
        span_metrics_lead_to_traces(&page).await;
        the_collectors_panels_have_data(prometheus_port).await;
    });
    logs_are_kept(&store);
    drop(platform);
    assert!(
        collector.stop(),
        "it ends when asked:\n{}",
        collector.process().log_tail()
    );
    let log = std::fs::read_to_string(collector.process().log()).unwrap();
    let complaints: Vec<&str> = log
        .lines()
        .filter(|line| {
            ["\terror\t", "\twarn\t", "deprecated"]
                .iter()
                .any(|word| line.contains(word))
        })
        .collect();
    assert!(complaints.is_empty(), "the collector complains: {complaints:#?}");
}

/// The collector, as the command says.
#[expect(clippy::disallowed_methods, reason = "an option of a command, not configuration")]
fn path() -> String {
    std::env::var("FECHATTER_COLLECTOR").expect("FECHATTER_COLLECTOR is the path of a collector")
}

/// Makes a request that fails, sends messages, and makes a request that is slow; returns the ids of the slow and the failed trace.
async fn talk(platform: &mut Platform) -> [String; 2] {
    let client = Client::new(platform).unwrap();
    let ada = flow::sign_up(&client, "Team Collector", "ada", None).await.unwrap();
    let body = json!({"kind": "private_channel", "name": "plans"});
    let chat = client.call("chat", Method::POST, "/api/chat", Some(&ada.token), Some(body));
    let path = format!("/api/chat/{}/messages", chat.await.unwrap()["id"]);
    let mut screen = client.events(&ada.token).await.unwrap();
    screen.next("ready").await.unwrap();
    let search = "/api/search/messages?q=message";
    // Before all else: what it would have to say when it is killed is lost.
    platform.kill(Service::Indexer);
    let (status, failed) = client.traced(search, &ada.token, &[]).await.unwrap();
    assert!(status >= 500, "{status}");
    platform.start_service(Service::Indexer).unwrap();
    platform.wait_until_ready(Service::Indexer).unwrap();
    client.until_healthy().await.unwrap();
    flow::conversation(&client).await.unwrap();
    for number in 0..SENDS {
        let body = json!({"content": format!("message {number}")});
        let sent = client.call("send", Method::POST, &path, Some(&ada.token), Some(body));
        sent.await.unwrap();
        screen.next("message.created").await.unwrap();
    }

    let indexer = process_id(platform.process_id(Part::Service(Service::Indexer)).unwrap());
    kill(indexer, Signal::SIGSTOP).unwrap();
    let slow = tokio::spawn({
        let (client, token) = (client.clone(), ada.token.clone());
        async move { client.traced(search, &token, &[]).await }
    });
    // Not waiting for anything: this is how slow it is.
    tokio::time::sleep(SLOW).await;
    kill(indexer, Signal::SIGCONT).unwrap();
    let (status, slow) = slow.await.unwrap().unwrap();
    assert_eq!(status, 200, "slow, and answered");
    [slow, failed].map(|response| response.split('-').nth(1).unwrap().to_owned())
}

/// Errors and slow ones are all there, of the rest a share; and what is there has all its parts.
fn traces_are_sampled_and_whole(store: &Collector, always: &[String; 2]) {
    let there = |id: &String| {
        store
            .spans()
            .iter()
            .any(|span| span.service == "gateway" && span.trace_id == *id)
    };
    for (id, what) in always.iter().zip(["slow", "failed"]) {
        wait::until(PATIENCE, &format!("the trace of what was {what}"), || {
            there(id).then_some(())
        })
        .unwrap();
    }
    // Those of the messages were decided before.
    let mut traces: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in store.spans() {
        traces.entry(span.trace_id.clone()).or_default().push(span);
    }
    traces.retain(|_, spans| spans.iter().any(|span| span.service == "gateway" && span.name == SEND));
    println!("{} of {SENT} traces of sent messages kept", traces.len());
    assert!((1..SENDS / 2).contains(&traces.len()), "{} kept", traces.len());
    for (id, spans) in &traces {
        for (service, begins) in PARTS {
            let has = spans
                .iter()
                .any(|span| span.service == service && span.name.starts_with(begins));
            assert!(has, "{id} lacks {service} {begins}: {spans:#?}");
        }
    }
}

/// Everything that a process shows at its own `/metrics` comes out of the collector, by the same name.
async fn metrics_are_on_the_page(platform: &Platform, probe: u16, page: &str) {
    let services = Service::ALL.map(|service| (service.binary(), platform.ports().admin(service)));
    for (name, admin) in services.into_iter().chain([("probe", probe)]) {
        let own = http::request(admin, "GET", "/metrics", None, None).unwrap();
        let own = series(&own.body, "");
        assert!(own.len() > 15, "{name} shows only {own:?}");
        let job = format!("job=\"fechatter/{name}\"");
        let missing = async {
            loop {
                let there = series(&fetch(page, "text/plain").await, &job);
                let missing: Vec<&String> = own.difference(&there).collect();
                if missing.is_empty() {
                    return;
                }
                println!("{name}: waiting for {missing:?}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, missing).await;
        in_time.unwrap_or_else(|_| panic!("metrics of {name} do not come out of the collector"));
    }
}

/// Names of the series with this label.
fn series(text: &str, label: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| !line.starts_with('#') && line.contains(label))
        .filter_map(|line| line.split(['{', ' ']).next())
        .filter(|name| !["target_info", "otel_scope_info", ""].contains(name))
        .map(str::to_owned)
        .collect()
}

async fn fetch(page: &str, accept: &str) -> String {
    let request = reqwest::Client::new().get(page).header("accept", accept);
    request.send().await.unwrap().text().await.unwrap()
}

/// Counted before sampling, with exemplars.
async fn span_metrics_lead_to_traces(page: &str) {
    let all: BTreeSet<&str> = Service::ALL.iter().map(|service| service.binary()).collect();
    let (mut counted, mut led) = (None, BTreeSet::new());
    let complete = async {
        // The first flush says that there is a series, with zero; exemplars are those of the last flush.
        while counted != Some(SENT) || led != all {
            let text = fetch(page, "application/openmetrics-text").await;
            counted = calls(&text);
            led.extend(all.iter().filter(|service| has_exemplar(&text, service)));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, complete).await.is_ok();
    assert!(
        in_time,
        "{counted:?} of {SENT} sent messages counted; exemplars of {led:?}"
    );
}

/// Whether one of a service's latencies leads to a trace.
fn has_exemplar(page: &str, service: &str) -> bool {
    let label = format!("service_name=\"{service}\"");
    page.lines()
        .filter(|line| line.starts_with("traces_span_metrics_duration_seconds_bucket") && line.contains(&label))
        .any(|line| line.contains("# {trace_id="))
}

/// How many spans of sent messages the gateway had.
fn calls(page: &str) -> Option<usize> {
    let mut lines = page
        .lines()
        .filter(|line| line.starts_with("traces_span_metrics_calls_total"));
    let line = lines.find(|line| line.contains("service_name=\"gateway\"") && line.contains(SEND))?;
    let value = line.split("} ").nth(1)?.split(' ').next()?;
    value.strip_suffix(".0").unwrap_or(value).parse().ok()
}

/// In a Prometheus that scrapes the collector; and its exemplars, of which Grafana makes dots.
async fn the_collectors_panels_have_data(port: u16) {
    let http = reqwest::Client::new();
    let panels = coverage::panels(true);
    assert!(!panels.is_empty(), "no panel shows what the collector measures");
    let answered = async {
        for panel in &panels {
            while !coverage::has_data(&http, port, panel).await {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        let (now, query) = (
            std::time::SystemTime::now(),
            "traces_span_metrics_duration_seconds_bucket",
        );
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        loop {
            let url = format!("http://127.0.0.1:{port}/api/v1/query_exemplars");
            let (start, end) = ((now - 300).to_string(), (now + 300).to_string());
            let asked = http
                .get(url)
                .query(&[("query", query), ("start", &start), ("end", &end)]);
            let answer: serde_json::Value = asked.send().await.unwrap().json().await.unwrap();
            let exemplars = answer["data"].as_array().cloned().unwrap_or_default();
            let id = |exemplar: &serde_json::Value| exemplar["labels"]["trace_id"].as_str().map(str::len) == Some(32);
            if exemplars
                .iter()
                .any(|series| series["exemplars"].as_array().is_some_and(|all| all.iter().any(id)))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, answered).await;
    assert!(
        in_time.is_ok(),
        "what the collector measures does not come into Prometheus"
    );
}

/// Each service's, with the trace they belong to.
fn logs_are_kept(store: &Collector) {
    let logs = store.logs();
    for service in Service::ALL {
        assert!(
            logs.iter().any(|log| log.service == service.binary()),
            "no log record of {}",
            service.binary()
        );
    }
    let traced = logs
        .iter()
        .filter(|log| log.service == "gateway" && log.trace_id.chars().any(|digit| digit != '0'));
    println!(
        "{} log records, {} of the gateway with a trace",
        logs.len(),
        traced.clone().count()
    );
    assert!(traced.count() > SENDS, "the gateway logs each request with its trace");
}
