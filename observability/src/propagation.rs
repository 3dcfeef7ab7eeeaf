//! W3C trace context over HTTP and NATS headers and in the outbox.

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry::{Context, global};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Name of the header, in HTTP, NATS and the outbox's column.
pub const TRACEPARENT: &str = "traceparent";

struct HttpHeaders<'a>(&'a http::HeaderMap);

impl Extractor for HttpHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct NatsHeaders<'a>(&'a async_nats::HeaderMap);

impl Extractor for NatsHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        // Go clients write headers in their canonical case.
        let capitalised = || {
            let mut letters = key.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
        };
        self.0
            .get(key)
            .or_else(|| self.0.get(capitalised()?.as_str()))
            .map(async_nats::HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

struct NatsHeadersMut<'a>(&'a mut async_nats::HeaderMap);

impl Injector for NatsHeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(key, value.as_str());
        }
    }
}

/// The context that HTTP headers carry; empty when they carry none that is valid.
pub fn extract_http(headers: &http::HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &HttpHeaders(headers))
}

/// The context that a NATS message carries; empty when it carries none that is valid.
pub fn extract_nats(headers: &async_nats::HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &NatsHeaders(headers))
}

/// Writes a context into NATS headers.
pub fn inject_nats(context: &Context, headers: &mut async_nats::HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut NatsHeadersMut(headers));
}

/// `traceparent` of the span in hand, if there is one.
pub fn current_traceparent() -> Option<String> {
    traceparent(Span::current().context().span().span_context())
}

/// `traceparent` of a span context, if it is valid.
pub fn traceparent(context: &SpanContext) -> Option<String> {
    context.is_valid().then(|| {
        format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags().to_u8()
        )
    })
}

/// Reads a `traceparent` strictly; `None` for anything but a valid one of version 00.
pub fn context_from_traceparent(text: &str) -> Option<Context> {
    Some(Context::new().with_remote_span_context(span_context_from_traceparent(text)?))
}

/// Like [`context_from_traceparent`], for links.
pub fn span_context_from_traceparent(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if parts.next().is_some() || version != "00" || !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        flags,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// Makes `context` the parent of a span that has just been made and not been entered yet.
pub fn set_parent(span: &Span, context: Context) {
    if context.span().span_context().is_valid() {
        // Fails only for a span that is disabled, which has no parent to set.
        let _ = span.set_parent(context);
    }
}

/// Links a span to the context of what it works on.
pub fn add_link(span: &Span, context: &Context) {
    span.add_link(context.span().span_context().clone());
}

/// Sets the process-wide propagator; part of [`crate::init`].
pub fn install() {
    global::set_text_map_propagator(TraceContextPropagator::new());
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_strictly() {
        let context = span_context_from_traceparent(GOOD).unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(traceparent(&context).unwrap(), GOOD);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert!(span_context_from_traceparent(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn it_travels_over_http_and_nats() {
        let context = context_from_traceparent(GOOD).unwrap();
        let mut http = http::HeaderMap::new();
        http.insert(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(
            extract_http(&http).span().span_context().trace_id(),
            context.span().span_context().trace_id()
        );

        let mut nats = async_nats::HeaderMap::new();
        inject_nats(&context, &mut nats);
        assert_eq!(nats.get(TRACEPARENT).unwrap().as_str(), GOOD);
        let mut from_go = async_nats::HeaderMap::new();
        from_go.insert("Traceparent", GOOD);
        assert!(extract_nats(&from_go).span().span_context().is_valid());
        assert!(
            !extract_nats(&async_nats::HeaderMap::new())
                .span()
                .span_context()
                .is_valid()
        );
    }
}
