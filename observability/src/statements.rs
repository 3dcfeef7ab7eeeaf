//! SQL statements as spans and as `db.client.operation.duration`, for every query of every service.
//!
//! sqlx reports each statement it has run as a record of the target `sqlx::query`, with its text and its time. Here it
//! becomes a span of the request in whose course it ran. Statements are constants of our code, so their summaries are a
//! bounded set; parameters are not part of them.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use opentelemetry::metrics::Histogram;
use opentelemetry::trace::{Span as _, SpanKind, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue, global};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context as LayerContext;

use crate::buckets::DATABASE_DURATION_BUCKETS;

/// Target of sqlx's records.
pub(crate) const TARGET: &str = "sqlx::query";
/// More statements than this cannot be constants.
const SUMMARIES_MAX: usize = 1_000;
const OTHER: &str = "other";

/// Turns sqlx's records into spans and measurements.
pub(crate) struct Statements {
    service: &'static str,
    summaries: RwLock<HashMap<String, String>>,
    duration: OnceLock<Histogram<f64>>,
}

impl Statements {
    pub(crate) fn new(service: &'static str) -> Self {
        Self {
            service,
            summaries: RwLock::default(),
            duration: OnceLock::new(),
        }
    }

    fn summary_of(&self, text: &str) -> String {
        let known = self.summaries.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(summary) = known.get(text) {
            return summary.clone();
        }
        let is_full = known.len() >= SUMMARIES_MAX;
        drop(known);
        if is_full {
            return OTHER.to_owned();
        }
        let summary = summarise(text);
        self.summaries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(text.to_owned(), summary.clone());
        summary
    }

    fn duration(&self) -> &Histogram<f64> {
        self.duration.get_or_init(|| {
            crate::instruments::Instruments::of("observability").seconds(
                "db.client.operation.duration",
                "Time of SQL statements, from sending to the last row.",
                &DATABASE_DURATION_BUCKETS,
            )
        })
    }
}

impl<S: Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let mut statement = Statement::default();
        event.record(&mut statement);
        let text = statement.text();
        let summary = self.summary_of(text);
        let attributes = [
            KeyValue::new("db.system.name", "postgresql"),
            KeyValue::new("db.query.summary", summary.clone()),
        ];
        self.duration().record(statement.seconds, &attributes);
        let parent = Context::current();
        if !parent.span().span_context().is_sampled() {
            return;
        }
        let ended = SystemTime::now();
        let took = Duration::try_from_secs_f64(statement.seconds).unwrap_or_default();
        let tracer = global::tracer(self.service);
        let builder = tracer
            .span_builder(summary)
            .with_kind(SpanKind::Client)
            .with_start_time(ended.checked_sub(took).unwrap_or(ended))
            .with_attributes(attributes);
        let mut span = tracer.build_with_context(builder, &parent);
        span.set_attribute(KeyValue::new(
            "db.query.text",
            text.split_whitespace().collect::<Vec<_>>().join(" "),
        ));
        if statement.rows > 0 {
            span.set_attribute(KeyValue::new("db.response.returned_rows", statement.rows));
        }
        span.end_with_timestamp(ended);
    }
}

/// The fields of sqlx's record that matter here.
#[derive(Default)]
struct Statement {
    /// All of a short statement, the beginning of a long one.
    summary: String,
    /// All of a long one.
    long: String,
    seconds: f64,
    rows: i64,
}

impl Statement {
    fn text(&self) -> &str {
        let long = self.long.trim();
        if long.is_empty() { self.summary.trim() } else { long }
    }
}

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.long),
            _ => {}
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.seconds = value;
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "rows_returned" {
            self.rows = i64::try_from(value).unwrap_or(i64::MAX);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

/// `db.query.summary` as the conventions describe it: each verb with the tables it works on, in their order.
fn summarise(text: &str) -> String {
    let spaced = text.replace(['(', ')', ','], " $0 ").replace("$0", " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    // Names of common table expressions are not tables.
    let local: Vec<&str> = words
        .windows(2)
        .filter(|pair| pair[1].eq_ignore_ascii_case("as"))
        .map(|pair| pair[0])
        .filter(|name| text.contains(&format!("{name} AS (")) || text.contains(&format!("{name} AS MATERIALIZED (")))
        .collect();
    let mut parts: Vec<String> = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let previous = at.checked_sub(1).and_then(|at| words.get(at)).copied().unwrap_or("");
        let next = words.get(at + 1).copied().unwrap_or("");
        let (verb, table) = match *word {
            "INTO" if previous == "INSERT" => ("INSERT", next),
            "UPDATE" if previous != "FOR" && previous != "KEY" && previous != "DO" => ("UPDATE", next),
            "FROM" if previous == "DELETE" => ("DELETE", next),
            "FROM" | "JOIN" if previous != "DISTINCT" => ("SELECT", next),
            _ => continue,
        };
        let is_table = !local.contains(&table)
            && table.starts_with(|c: char| c.is_ascii_lowercase())
            && table
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
            && !text.contains(&format!("{table}("));
        let part = format!("{verb} {table}");
        if is_table && !parts.contains(&part) {
            parts.push(part);
        }
    }
    if parts.is_empty() {
        return words.first().copied().unwrap_or(OTHER).to_ascii_uppercase();
    }
    let mut summary = parts.join(" ");
    // The conventions' bound.
    summary.truncate(255);
    summary
}

#[cfg(test)]
mod tests {
    use super::summarise;

    #[test]
    fn a_summary_names_verbs_and_tables_and_no_values() {
        for (text, summary) in [
            ("SELECT 1", "SELECT"),
            ("SELECT id FROM users WHERE email = $1 FOR UPDATE", "SELECT users"),
            (
                "SELECT c.id FROM chats AS c JOIN chat_members AS m ON m.chat_id = c.id",
                "SELECT chats SELECT chat_members",
            ),
            (
                "WITH member AS MATERIALIZED (SELECT chat_id FROM chat_members FOR KEY SHARE), \
                 chat AS ( UPDATE chats AS c SET last_seq = 1 FROM member RETURNING id ) \
                 INSERT INTO messages (id) SELECT id FROM chat",
                "SELECT chat_members UPDATE chats INSERT messages",
            ),
            (
                "INSERT INTO reads (a) SELECT a FROM unnest($1) ON CONFLICT (a) DO UPDATE SET a = 1",
                "INSERT reads",
            ),
            ("DELETE FROM sessions WHERE a IS DISTINCT FROM b", "DELETE sessions"),
            ("select pg_try_advisory_lock($1)", "SELECT"),
        ] {
            assert_eq!(summarise(text), summary, "{text}");
        }
    }
}
