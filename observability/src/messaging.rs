//! Spans of what is done with one message: children of the span that created it, so that a message sent is one trace
//! from the edge to the screen and into the index.
//!
//! The conventions prefer links where messages are handled in batches; a batch may have a span of its own that links to
//! all of them. These spans come on top, one a message, and only for messages whose trace is recorded: without a
//! collector they cost a comparison.

use std::time::SystemTime;

use opentelemetry::trace::{Span, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};

/// What was done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Handed to the stream.
    Publish,
    /// Handed to the streams of those who may see it.
    Deliver,
    /// Made findable.
    Index,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Deliver => "deliver",
            Self::Index => "index",
        }
    }

    const fn convention(self) -> (SpanKind, &'static str) {
        match self {
            Self::Publish => (SpanKind::Producer, "send"),
            Self::Deliver | Self::Index => (SpanKind::Consumer, "process"),
        }
    }
}

/// The subjects of our events, without their ids.
pub const DESTINATION: &str = "fechatter.{workspace}.{scope}.{id}.{type}";

/// Records that `operation` on a message, created in `parent`, began at `started` and ends now. `error` is its class, one of few,
/// and what there is to say about it.
pub fn record(
    service: &'static str,
    operation: Operation,
    parent: &SpanContext,
    started: SystemTime,
    attributes: impl IntoIterator<Item = KeyValue>,
    error: Option<(&'static str, String)>,
) {
    if !parent.is_valid() || !parent.is_sampled() {
        return;
    }
    let (kind, operation_type) = operation.convention();
    let builder = SpanBuilder::from_name(format!("{} {DESTINATION}", operation.name()))
        .with_kind(kind)
        .with_start_time(started)
        .with_attributes([
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", operation.name()),
            KeyValue::new("messaging.operation.type", operation_type),
            KeyValue::new("messaging.destination.template", DESTINATION),
        ]);
    let context = Context::new().with_remote_span_context(parent.clone());
    let mut span = global::tracer(service).build_with_context(builder, &context);
    span.set_attributes(attributes);
    if let Some((class, text)) = error {
        span.set_attribute(KeyValue::new("error.type", class));
        span.set_status(Status::error(text));
    }
    span.end();
}
