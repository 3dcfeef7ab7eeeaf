//! One line a log record on standard output, with the ids that lead from it to the trace and back.

use std::fmt::Write as _;
use std::io::Write as _;

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context as LayerContext;
use tracing_subscriber::registry::LookupSpan;

use crate::LogFormat;

/// Span fields that every line within the span repeats.
pub(crate) const CARRIED: [&str; 2] = ["request_id", "user.id"];

/// Writes log records to standard output.
#[derive(Debug)]
pub(crate) struct LogLines {
    service: &'static str,
    format: LogFormat,
}

/// The carried fields of one span.
struct Carried(Map<String, Value>);

impl LogLines {
    pub(crate) const fn new(service: &'static str, format: LogFormat) -> Self {
        Self { service, format }
    }

    fn json(&self, record: &Line) -> String {
        let mut object = Map::new();
        object.insert("timestamp".into(), record.time.clone().into());
        object.insert("level".into(), record.level.into());
        object.insert("service".into(), self.service.into());
        object.insert("target".into(), record.target.clone().into());
        object.insert("message".into(), record.message.clone().into());
        if let Some((trace_id, span_id)) = &record.trace {
            object.insert("trace_id".into(), trace_id.clone().into());
            object.insert("span_id".into(), span_id.clone().into());
        }
        object.extend(record.carried.clone());
        object.extend(record.fields.clone());
        Value::Object(object).to_string()
    }

    fn text(record: &Line) -> String {
        let mut line = format!(
            "{} {:5} {}: {}",
            record.time, record.level, record.target, record.message
        );
        for (name, value) in record.fields.iter().chain(&record.carried) {
            // Control characters in a value must not move a reader's terminal or forge a line.
            let value = match value {
                Value::String(text) if text.contains([' ', '"']) || text.chars().any(char::is_control) => {
                    format!("{text:?}")
                }
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let _ = write!(line, " {name}={value}");
        }
        if let Some((trace_id, _)) = &record.trace {
            let _ = write!(line, " trace_id={trace_id}");
        }
        line
    }
}

struct Line {
    time: String,
    level: &'static str,
    target: String,
    message: String,
    fields: Map<String, Value>,
    carried: Map<String, Value>,
    trace: Option<(String, String)>,
}

impl<S> tracing_subscriber::Layer<S> for LogLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: LayerContext<'_, S>) {
        let mut carried = Fields::carried();
        attributes.record(&mut carried);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Carried(carried.map));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: LayerContext<'_, S>) {
        let mut carried = Fields::carried();
        values.record(&mut carried);
        if let Some(span) = context.span(id)
            && let Some(before) = span.extensions_mut().get_mut::<Carried>()
        {
            before.0.extend(carried.map);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: LayerContext<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut carried = Map::new();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(Carried(outer)) = span.extensions().get::<Carried>() {
                for (name, value) in outer {
                    carried.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
        }
        let current = Context::current();
        let span = current.span();
        let ids = span.span_context();
        let mut fields = fields.map;
        // What the `log` crate's records carry about themselves.
        let target = match fields.remove("log.target") {
            Some(Value::String(target)) => target,
            _ => event.metadata().target().to_owned(),
        };
        fields.retain(|name, _| !name.starts_with("log."));
        let message = match fields.remove("message") {
            Some(Value::String(message)) => message,
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let record = Line {
            time: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            level: event.metadata().level().as_str(),
            target,
            message,
            fields,
            carried,
            trace: ids
                .is_valid()
                .then(|| (ids.trace_id().to_string(), ids.span_id().to_string())),
        };
        let mut line = match self.format {
            LogFormat::Json => self.json(&record),
            LogFormat::Text => Self::text(&record),
        };
        line.push('\n');
        // A closed standard output must not take the process down.
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    }
}

/// Takes fields as JSON has them.
#[derive(Default)]
struct Fields {
    map: Map<String, Value>,
    /// Only those of [`CARRIED`]: every span of every request passes here.
    carried_only: bool,
}

impl Fields {
    fn carried() -> Self {
        Self {
            carried_only: true,
            ..Self::default()
        }
    }

    fn put<V: Into<Value>>(&mut self, field: &Field, value: impl FnOnce() -> V) {
        if !self.carried_only || CARRIED.contains(&field.name()) {
            self.map.insert(field.name().to_owned(), value().into());
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, || format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, || value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, || value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, || value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, || value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, || value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line {
            time: "2026-11-23T10:00:00Z".into(),
            level: "INFO",
            target: "request".into(),
            message: "request".into(),
            fields: Map::from_iter([("path".to_owned(), Value::from("a\nb"))]),
            carried: Map::from_iter([("request_id".to_owned(), Value::from("abc"))]),
            trace: Some(("0af7".into(), "b7ad".into())),
        }
    }

    #[test]
    fn json_lines_carry_the_ids() {
        let value: Value = serde_json::from_str(&LogLines::new("chat_service", LogFormat::Json).json(&line())).unwrap();
        assert_eq!(value["trace_id"], "0af7");
        assert_eq!(value["request_id"], "abc");
        assert_eq!(value["service"], "chat_service");
    }

    #[test]
    fn a_value_cannot_forge_a_line() {
        let text = LogLines::text(&line());
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(r#"path="a\nb""#), "{text}");
    }
}
