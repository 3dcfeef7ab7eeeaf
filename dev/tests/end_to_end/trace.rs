//! One trace from the edge to the stream and into the index, in a real OTLP receiver.

#![expect(clippy::unwrap_used, reason = "in a test, what is not there is a failure")]

use std::time::Duration;

use dev::platform::{Platform, Service};
use dev::{http, wait};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::collector::{Collector, Span};
use crate::{drive, flow};

const SEND: &str = "POST /api/chat/{id}/messages";
/// Kinds of spans, as the protocol numbers them.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;

/// The parts of the trace of one sent message.
struct SendTrace {
    edge: Span,
    chat: Span,
    statement: Span,
    publish: Span,
    deliver: Span,
    index: Span,
    /// The batch in which it was indexed, which is a trace of its own with a link.
    batch: Span,
}

impl SendTrace {
    /// Complete, or not yet.
    fn find(spans: &[Span]) -> Option<Self> {
        let edge = spans
            .iter()
            .find(|span| span.service == "gateway" && span.name == SEND)?;
        let find = |service: &str, begins: &str| {
            let matches = |span: &&Span| {
                span.trace_id == edge.trace_id && span.service == service && span.name.starts_with(begins)
            };
            spans.iter().find(matches).cloned()
        };
        Some(Self {
            edge: edge.clone(),
            chat: find("chat_service", SEND)?,
            statement: find("chat_service", "SELECT chat_members UPDATE chats INSERT messages")?,
            publish: find("chat_service", "publish")?,
            deliver: find("notify_service", "deliver")?,
            index: find("indexer", "index")?,
            batch: spans
                .iter()
                .find(|span| span.service == "indexer" && span.links.contains(&edge.trace_id))?
                .clone(),
        })
    }
}

#[test]
fn a_sent_message_is_one_trace_across_the_services() {
    let collector = Collector::start().unwrap();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "200"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test,k8s.namespace.name=chat",
        ),
        ("FECHATTER_CHAT__LOG__FORMAT", "json"),
        ("FECHATTER_GATEWAY__LOG__FORMAT", "json"),
    ];
    let platform = Platform::temporary_with(&[], &env).unwrap();
    drive(flow::conversation(&Client::new(&platform).unwrap())).unwrap();

    let whole = wait::until(Duration::from_secs(15), "the spans of a sent message", || {
        SendTrace::find(&collector.spans())
    });
    let trace = whole.unwrap_or_else(|error| panic!("{error:#}; there were:\n{:#?}", collector.spans()));
    has_the_right_parents(&trace);
    follows_the_conventions(&trace);
    is_of_known_processes(&trace);
    is_named_by_its_log_lines(&trace, &platform, &collector);
}

fn has_the_right_parents(trace: &SendTrace) {
    assert!(trace.edge.parent_id.is_empty(), "the edge begins the trace");
    assert_eq!(trace.chat.parent_id, trace.edge.id, "chat_service works for the edge");
    assert_eq!(
        trace.statement.parent_id, trace.chat.id,
        "the statement is part of the request"
    );
    for span in [&trace.publish, &trace.deliver, &trace.index] {
        assert_eq!(
            span.parent_id, trace.chat.id,
            "{}: the context that created the message",
            span.name
        );
    }
    assert_ne!(
        trace.batch.trace_id, trace.edge.trace_id,
        "a batch of several messages is a trace of its own"
    );
}

fn follows_the_conventions(trace: &SendTrace) {
    for (span, kind, attributes) in [
        (
            &trace.edge,
            SERVER,
            vec![
                ("http.request.method", "POST"),
                ("http.route", "/api/chat/{id}/messages"),
                ("http.response.status_code", "201"),
                ("url.scheme", "https"),
                ("url.path", trace.edge.attributes["url.path"].as_str()),
                ("network.protocol.version", "2"),
                ("client.address", "127.0.0.1"),
            ],
        ),
        (
            &trace.chat,
            SERVER,
            vec![
                ("http.request.method", "POST"),
                ("http.route", "/api/chat/{id}/messages"),
                ("http.response.status_code", "201"),
                ("url.scheme", "http"),
                // As the gateway passed it on.
                ("url.path", trace.edge.attributes["url.path"].as_str()),
            ],
        ),
        (
            &trace.statement,
            CLIENT,
            vec![
                ("db.system.name", "postgresql"),
                ("db.query.summary", trace.statement.name.as_str()),
            ],
        ),
        (
            &trace.publish,
            PRODUCER,
            vec![("messaging.system", "nats"), ("messaging.operation.type", "send")],
        ),
        (
            &trace.deliver,
            CONSUMER,
            vec![("messaging.system", "nats"), ("messaging.operation.type", "process")],
        ),
        (
            &trace.index,
            CONSUMER,
            vec![("messaging.system", "nats"), ("messaging.operation.type", "process")],
        ),
    ] {
        assert_eq!(span.kind, kind, "{span:?}");
        for (name, value) in attributes {
            assert_eq!(
                span.attributes.get(name).map(String::as_str),
                Some(value),
                "{name} of {span:?}"
            );
        }
    }
    let statement = &trace.statement.attributes["db.query.text"];
    assert!(
        statement.contains("INSERT INTO messages") && statement.contains("$4") && !statement.contains("quarterly"),
        "parameters stay out of it: {statement}"
    );
}

/// Every process says who it is and where it runs, the same to all three signals.
fn is_of_known_processes(trace: &SendTrace) {
    let mut instances = std::collections::BTreeSet::new();
    for span in [&trace.edge, &trace.chat, &trace.deliver, &trace.index] {
        let attribute = |name: &str| span.resource.get(name).map(String::as_str);
        assert_eq!(attribute("service.name"), Some(span.service.as_str()));
        assert_eq!(attribute("service.namespace"), Some("fechatter"));
        assert_eq!(attribute("service.version"), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(attribute("telemetry.sdk.language"), Some("rust"));
        assert_eq!(attribute("deployment.environment.name"), Some("test"));
        assert_eq!(attribute("k8s.namespace.name"), Some("chat"));
        instances.insert(attribute("service.instance.id").unwrap_or_default());
    }
    assert_eq!(instances.len(), 4, "each process is one instance: {instances:?}");
}

/// Messages that come while the database is busy are stored by one statement; each trace stays whole.
#[test]
fn messages_stored_together_keep_their_traces_and_are_linked() {
    const MESSAGES: usize = 8;
    let collector = Collector::start().unwrap();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ];
    let mut platform = Platform::temporary_with(&[Service::Notify, Service::Indexer], &env).unwrap();
    let (token, path) = drive(async {
        let client = Client::new(&platform).unwrap();
        let ada = flow::sign_up(&client, "Team Together", "ada", None).await.unwrap();
        let chat = json!({"kind": "private_channel", "name": "together", "member_ids": []});
        let chat = client.call("chat", Method::POST, "/api/chat", Some(&ada.token), Some(chat));
        let path = format!("/api/chat/{}/messages", chat.await.unwrap()["id"]);
        // Only who has sent to a chat takes part.
        let first = client.call(
            "send",
            Method::POST,
            &path,
            Some(&ada.token),
            Some(json!({"content": "first"})),
        );
        first.await.unwrap();
        (ada.token, path)
    });
    let client = Client::new(&platform).unwrap();
    let server = &*platform.postgres().unwrap();
    std::thread::scope(|scope| {
        // The first message waits at the outbox, so the others wait for it.
        let hold = "BEGIN; LOCK outbox_shards; SELECT pg_sleep(1.5); COMMIT";
        let holder = scope.spawn(|| server.psql("fechatter", hold).unwrap());
        wait::until(Duration::from_secs(5), "the outbox to be held", || {
            let locks = "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock' AND relation = 'outbox_shards'::regclass";
            (server.psql("fechatter", locks).ok()?.trim() == "1").then_some(())
        })
        .unwrap();
        drive(async {
            let mut sends = JoinSet::new();
            for number in 0..MESSAGES {
                let (client, path, token) = (client.clone(), path.clone(), token.clone());
                let body = json!({"content": format!("message {number}")});
                sends.spawn(async move { client.call("send", Method::POST, &path, Some(&token), Some(body)).await });
            }
            for answer in sends.join_all().await {
                answer.unwrap();
            }
        });
        holder.join().unwrap();
    });
    let found = wait::until(Duration::from_secs(15), "the spans of a batch", || {
        let spans = collector.spans();
        let edges: Vec<&str> = spans
            .iter()
            .filter(|span| span.service == "gateway" && span.name == SEND)
            .map(|span| span.trace_id.as_str())
            .collect();
        // Each message's own trace leads on to its publication.
        let published = |trace: &str| {
            spans
                .iter()
                .any(|span| span.trace_id == trace && span.name.starts_with("publish"))
        };
        if edges.len() <= MESSAGES || !edges.iter().all(|trace| published(trace)) {
            return None;
        }
        let batch = spans
            .iter()
            .find(|span| span.name == "store messages" && span.links.len() > 1)?;
        spans
            .iter()
            .find(|span| span.parent_id == batch.id && span.kind == CLIENT && span.name.contains("INSERT messages"))?;
        let linked_back = spans
            .iter()
            .filter(|span| span.service == "chat_service" && span.name == SEND && span.links.contains(&batch.trace_id));
        (linked_back.count() >= batch.links.len())
            .then(|| (batch.clone(), edges.iter().map(ToString::to_string).collect()))
    });
    let (batch, edges): (Span, Vec<String>) =
        found.unwrap_or_else(|error| panic!("{error:#}: {:#?}", collector.spans()));
    assert!(batch.links.iter().all(|trace| edges.contains(trace)), "{batch:?}");
    assert_eq!(
        batch.attributes.get("db.operation.batch.size"),
        Some(&batch.links.len().to_string()),
        "{batch:?}"
    );
}

#[test]
fn what_clients_send_about_traces_neither_forces_nor_names_one() {
    let collector = Collector::start().unwrap();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
    ];
    let mut platform = Platform::temporary_with(&[Service::Notify, Service::Indexer], &env).unwrap();
    let theirs = "0af7651916cd43dd8448eb211c80319c";
    drive(async {
        let client = Client::new(&platform).unwrap();
        let ada = flow::sign_up(&client, "Team Traces", "ada", None).await.unwrap();
        for traceparent in [
            format!("00-{theirs}-b7ad6b7169203331-01"),
            format!("ff-{theirs}-b7ad6b7169203331-01"),
            "00-ffff".to_owned(),
        ] {
            let headers = [
                ("traceparent", traceparent.as_str()),
                ("tracestate", "vendor=1"),
                ("baggage", "sampling.priority=1"),
                ("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"),
            ];
            let (status, response) = client.traced("/api/me", &ada.token, &headers).await.unwrap();
            assert_eq!(status, 200);
            assert!(response.ends_with("-00") && !response.contains(theirs), "{response}");
        }
    });
    what_they_make_up_makes_no_series(&platform);
    platform.stop();
    assert_eq!(collector.spans().len(), 0, "nobody asked for one");
}

/// Methods, paths, hosts and names of agents are theirs to choose; labels are not.
fn what_they_make_up_makes_no_series(platform: &Platform) {
    let ports = platform.ports();
    let pages = || {
        [ports.gateway_admin, ports.chat_admin]
            .map(|port| http::request(port, "GET", "/metrics", None, None).unwrap().body)
    };
    let count = |page: &String| {
        page.lines()
            .filter(|line| line.starts_with("http_server_request_duration_seconds_count"))
            .count()
    };
    let before = pages().map(|page| count(&page));
    drive(async {
        let client = Client::new(platform).unwrap();
        for number in 0..50 {
            let method = Method::from_bytes(format!("BREW{number}").as_bytes()).unwrap();
            for (method, path) in [
                (method, "/api/me".to_owned()),
                (Method::GET, format!("/made-up-{number}")),
                (Method::GET, format!("/api/chat/{number}/messages?made-up={number}")),
            ] {
                let status = client.status(method.clone(), &path, None, None).await.unwrap();
                assert!((400..500).contains(&status), "{method} {path}: {status}");
                // Past the gateway, as somebody within could.
                let own = http::request(ports.chat, method.as_str(), &path, None, None).unwrap();
                assert!((400..500).contains(&own.status), "{method} {path}: {}", own.status);
            }
        }
    });
    for (page, before) in pages().iter().zip(before) {
        assert!(!page.contains("made-up") && !page.contains("BREW"), "{page}");
        // At most one of each method and status for each of few routes.
        assert!(count(page) <= before + 6, "{before} series became {}", count(page));
    }
}

#[test]
fn what_is_pending_is_sent_before_a_process_ends() {
    let collector = Collector::start().unwrap();
    // Nothing is sent for its time, in this test.
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "600000"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "600000"),
    ];
    let mut platform = Platform::temporary_with(&[], &env).unwrap();
    drive(flow::conversation(&Client::new(&platform).unwrap())).unwrap();
    assert_eq!((collector.spans().len(), collector.metrics()), (0, 0));
    platform.stop();
    assert!(
        SendTrace::find(&collector.spans()).is_some(),
        "a whole trace: {:#?}",
        collector.spans()
    );
    for service in Service::ALL {
        let name = service.binary();
        assert!(
            collector.logs().iter().any(|log| log.service == name),
            "no log of {name}"
        );
    }
    assert!(
        collector.metrics() >= Service::ALL.len(),
        "{} exports",
        collector.metrics()
    );
}

/// On standard output and over OTLP.
fn is_named_by_its_log_lines(trace: &SendTrace, platform: &Platform, collector: &Collector) {
    let id = &trace.edge.trace_id;
    for service in [Service::Gateway, Service::Chat] {
        let lines = std::fs::read_to_string(platform.log(service)).unwrap_or_default();
        let line = lines
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find(|line| line["trace_id"] == id.as_str() && line["status"] == 201);
        let line = line.unwrap_or_else(|| panic!("{} logged no line with {id}", service.binary()));
        assert!(line["request_id"].is_string(), "{line}");
    }
    for service in [Service::Gateway, Service::Chat] {
        let service = service.binary();
        let exported = wait::until(
            Duration::from_secs(5),
            &format!("the exported log record of {service}"),
            || {
                let mut logs = collector.logs().into_iter();
                logs.find(|log| log.service == service && log.trace_id == *id)
            },
        );
        let exported = exported.unwrap_or_else(|error| panic!("{error:#}"));
        assert!(exported.attributes.contains_key("request_id"), "{exported:?}");
    }
}
