//! Who and what a request is: its id, its trace, the client's address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use opentelemetry::global::{BoxedSpan, BoxedTracer};
use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, ContextGuard, KeyValue};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The identity of one request.
#[derive(Debug)]
pub struct Identity {
    pub request_id: HeaderValue,
    /// The client, as far as trusted proxies tell.
    pub client: IpAddr,
    pub trace: Trace,
}

/// Gives requests their identity.
#[derive(Debug)]
pub struct Identifier {
    tracer: BoxedTracer,
    trusted: Vec<IpNet>,
}

impl Identifier {
    /// Believes what proxies in `trusted` say.
    pub fn new(trusted: Vec<IpNet>) -> Self {
        Self {
            tracer: opentelemetry::global::tracer("gateway"),
            trusted,
        }
    }

    /// Whether this is the address of a proxy in front of us.
    pub fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// The identity of a request that came from `peer`.
    pub fn identify(&self, peer: IpAddr, headers: &HeaderMap) -> Identity {
        // A listener on [::] sees IPv4 clients as ::ffff:a.b.c.d, which no IPv4 network contains.
        let peer = peer.to_canonical();
        let believed = self.is_trusted(peer);
        let kept = headers
            .get(REQUEST_ID)
            .filter(|id| believed && is_request_id(id.as_bytes()));
        Identity {
            request_id: kept.cloned().unwrap_or_else(new_request_id),
            client: if believed { self.client(peer, headers) } else { peer },
            trace: Trace::start(&self.tracer, believed.then_some(headers)),
        }
    }

    /// The nearest address on the way that is not one of ours: what stands left of it may be made up.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        let lines: Vec<&str> = headers
            .get_all(&FORWARDED_FOR)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .collect();
        for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let Some(address) = address_of(hop.trim()) else {
                break;
            };
            client = address.to_canonical();
            if !self.is_trusted(client) {
                break;
            }
        }
        client
    }
}

/// The address of a hop, which some proxies write with its port.
fn address_of(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(hop).parse();
    address.or_else(|_| hop.parse::<SocketAddr>().map(|hop| hop.ip())).ok()
}

/// Whether a request id can be kept: 8 to 128 of `A-Z a-z 0-9 . _ -`.
fn is_request_id(text: &[u8]) -> bool {
    (8..=128).contains(&text.len()) && text.iter().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(b))
}

/// An id that sorts by time.
pub fn new_request_id() -> HeaderValue {
    let mut buffer = [0; uuid::fmt::Simple::LENGTH];
    let id = uuid::Uuid::now_v7().simple().encode_lower(&mut buffer);
    HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("00000000"))
}

/// The trace a request is in, and our span in it.
#[derive(Debug)]
pub struct Trace {
    context: SpanContext,
    span: Option<BoxedSpan>,
}

impl Trace {
    /// Starts a span: a child of the trusted caller's, else the root of a new trace.
    fn start(tracer: &BoxedTracer, trusted: Option<&HeaderMap>) -> Self {
        let parent = trusted.map_or_else(Context::new, observability::propagation::extract_http);
        let builder = tracer.span_builder("request").with_kind(SpanKind::Server);
        let span = tracer.build_with_context(builder, &parent);
        let context = span.span_context().clone();
        if context.is_valid() {
            return Self {
                context,
                span: span.is_recording().then_some(span),
            };
        }
        // Without telemetry a request still has a trace id, so that the logs of all services can be joined.
        Self {
            context: SpanContext::new(
                random_trace_id(),
                random_span_id(),
                TraceFlags::NOT_SAMPLED,
                false,
                TraceState::NONE,
            ),
            span: None,
        }
    }

    /// The trace id in hexadecimal.
    pub fn id(&self) -> TraceId {
        self.context.trace_id()
    }

    /// Makes this the trace of what is logged on this thread until the guard goes, on standard output and over OTLP.
    pub fn of_log_lines(&self) -> ContextGuard {
        Context::new().with_remote_span_context(self.context.clone()).attach()
    }

    /// W3C `traceparent`, also the value of `traceresponse`.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// The same as text.
    pub fn text(&self) -> [u8; 55] {
        let context = &self.context;
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..35], &context.trace_id().to_bytes());
        write_hex(&mut text[36..52], &context.span_id().to_bytes());
        if context.is_sampled() {
            text[54] = b'1';
        }
        text
    }

    /// Names and describes the span and ends it. Nothing happens the second time or when it is not sampled.
    pub fn end(&mut self, name: impl FnOnce() -> String, attributes: impl FnOnce() -> Vec<KeyValue>, failed: bool) {
        if let Some(mut span) = self.span.take() {
            span.update_name(name());
            span.set_attributes(attributes());
            if failed {
                span.set_status(opentelemetry::trace::Status::error(""));
            }
            span.end();
        }
    }
}

/// Two digits for each byte; written by hand since every request needs them twice and `fmt` costs as much as the rest.
fn write_hex(room: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in room.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
}

fn random_trace_id() -> TraceId {
    TraceId::from_bytes(*uuid::Uuid::new_v4().as_bytes())
}

fn random_span_id() -> SpanId {
    // The last eight bytes hold no version; the variant bits are constant, and 62 random bits are enough.
    let [.., last] = *uuid::Uuid::new_v4().as_bytes().as_chunks::<8>().0 else {
        return SpanId::INVALID;
    };
    SpanId::from_bytes(last)
}

/// What limits and connection counts go by: an IPv4 address, or the /64 an IPv6 client can choose addresses from.
pub fn network_of(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
    }
}

/// A network of [`network_of`] for a log line.
pub fn network_name(network: u128) -> String {
    let address = Ipv6Addr::from_bits(network);
    match address.to_ipv4_mapped() {
        Some(v4) => v4.to_string(),
        None => format!("{address}/64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identifier() -> Identifier {
        Identifier::new(vec!["10.0.0.0/8".parse().unwrap()])
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    const CLAIMS: [(&str, &str); 3] = [
        ("x-request-id", "chosen-by-client"),
        ("x-forwarded-for", "6.6.6.6, 203.0.113.9, 10.1.1.1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];

    #[test]
    fn strangers_are_not_believed() {
        let peer: IpAddr = "198.51.100.1".parse().unwrap();
        let identity = identifier().identify(peer, &headers(&CLAIMS));
        assert_eq!(identity.client, peer);
        assert_ne!(identity.request_id, "chosen-by-client");
        assert_ne!(identity.trace.id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn trusted_proxies_name_the_nearest_stranger() {
        let identity = identifier().identify("10.2.2.2".parse().unwrap(), &headers(&CLAIMS));
        assert_eq!(identity.client.to_string(), "203.0.113.9");
        assert_eq!(identity.request_id, "chosen-by-client");
        let mapped = identifier().identify("::ffff:10.2.2.2".parse().unwrap(), &headers(&CLAIMS));
        assert_eq!(mapped.client.to_string(), "203.0.113.9");
        for (hop, client) in [
            ("203.0.113.9:5555", "203.0.113.9"),
            ("[2001:db8::9]:5555", "2001:db8::9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("2001:db8::9", "2001:db8::9"),
            ("unknown", "10.2.2.2"),
            ("_hidden", "10.2.2.2"),
            ("203.0.113.9:", "10.2.2.2"),
        ] {
            let identity = identifier().identify("10.2.2.2".parse().unwrap(), &headers(&[("x-forwarded-for", hop)]));
            assert_eq!(identity.client.to_string(), client, "{hop}");
        }
        let odd = identifier().identify(
            "10.2.2.2".parse().unwrap(),
            &headers(&[("x-request-id", "a b"), ("x-forwarded-for", "junk")]),
        );
        assert_eq!(odd.client.to_string(), "10.2.2.2");
        assert_ne!(odd.request_id, "a b");
    }

    #[test]
    fn the_trace_is_written_as_it_is() {
        for flags in [TraceFlags::NOT_SAMPLED, TraceFlags::SAMPLED] {
            let context = SpanContext::new(
                TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap(),
                SpanId::from_hex("b7ad6b7169203331").unwrap(),
                flags,
                false,
                TraceState::NONE,
            );
            let written = Trace {
                context: context.clone(),
                span: None,
            }
            .header();
            assert_eq!(written, observability::propagation::traceparent(&context).unwrap());
        }
    }

    #[test]
    fn ipv6_clients_count_by_their_64() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network_name(network("2001:db8::1")), "2001:db8::/64");
        assert_eq!(network_name(network("192.0.2.1")), "192.0.2.1");
    }
}
