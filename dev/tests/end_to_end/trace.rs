//! One trace from the edge to the stream and into the index, in a real OTLP receiver.

use std::time::Duration;

use dev::platform::Platform;
use dev::wait;

use crate::client::Client;
use crate::collector::{Collector, Span};
use crate::{drive, flow};

#[test]
fn a_sent_message_is_one_trace_across_the_services() {
    let collector = Collector::start().unwrap();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ];
    let platform = Platform::temporary_with(&[], &env).unwrap();
    drive(flow::conversation(&Client::new(&platform).unwrap())).unwrap();

    let is_send = |span: &Span| span.name == "POST /api/chat/{id}/messages";
    let whole = wait::until(Duration::from_secs(15), "the spans of a sent message", || {
        let spans = collector.spans();
        let edge = spans.iter().find(|span| span.service == "gateway" && is_send(span))?;
        let trace: Vec<&Span> = spans.iter().filter(|span| span.trace_id == edge.trace_id).collect();
        let chat = trace
            .iter()
            .find(|span| span.service == "chat_service" && is_send(span))?;
        assert_eq!(chat.trace_id, edge.trace_id, "the service continues the edge's trace");
        assert_eq!(chat.parent_id, edge.id, "as a child of the edge's span");
        assert!(edge.parent_id.is_empty(), "the edge begins the trace");
        let has = |service: &str, name: &str| {
            trace
                .iter()
                .any(|span| span.service == service && span.name.starts_with(name))
        };
        (has("chat_service", "publish") && has("notify_service", "deliver") && has("indexer", "index")).then(|| {
            trace
                .iter()
                .map(|span| format!("{} {}", span.service, span.name))
                .collect::<Vec<_>>()
        })
    });
    match whole {
        Ok(spans) => println!("{}", spans.join("\n")),
        Err(error) => panic!("{error:#}; there were:\n{:#?}", collector.spans()),
    }
}
