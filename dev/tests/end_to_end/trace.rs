//! One trace from the edge to the stream and into the index, in a real OTLP receiver.

use std::time::Duration;

use dev::platform::{Platform, Service};
use dev::wait;

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
