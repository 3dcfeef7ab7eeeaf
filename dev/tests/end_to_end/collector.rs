//! A receiver of OTLP over HTTP: real requests of the real exporters, decoded.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

/// A span; ids in hexadecimal.
#[derive(Debug, Clone)]
pub struct Span {
    pub service: String,
    /// Of whom it is.
    pub resource: Attributes,
    pub name: String,
    pub trace_id: String,
    pub id: String,
    pub parent_id: String,
    /// As numbered by the protocol: 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    pub attributes: Attributes,
    /// Ids of the traces that it links to.
    pub links: Vec<String>,
}

/// A log record.
#[derive(Debug, Clone)]
pub struct Log {
    pub service: String,
    pub trace_id: String,
    pub attributes: Attributes,
}

/// Attributes as text.
pub type Attributes = BTreeMap<String, String>;

/// The receiver; it lives as long as the test process.
pub struct Collector {
    pub url: String,
    received: Arc<Mutex<Received>>,
}

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    logs: Vec<Log>,
    /// Exports of metrics.
    metrics: usize,
}

impl Collector {
    pub fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let received = Arc::new(Mutex::new(Received::default()));
        let sink = Arc::clone(&received);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sink = Arc::clone(&sink);
                std::thread::spawn(move || serve(&stream, &sink));
            }
        });
        Ok(Self { url, received })
    }

    /// The spans received so far.
    pub fn spans(&self) -> Vec<Span> {
        self.received
            .lock()
            .map(|received| received.spans.clone())
            .unwrap_or_default()
    }

    /// How often metrics were received so far.
    pub fn metrics(&self) -> usize {
        self.received
            .lock()
            .map(|received| received.metrics)
            .unwrap_or_default()
    }

    /// The log records received so far.
    pub fn logs(&self) -> Vec<Log> {
        self.received
            .lock()
            .map(|received| received.logs.clone())
            .unwrap_or_default()
    }
}

/// Answers requests of one connection until it closes or makes no sense.
fn serve(stream: &TcpStream, sink: &Mutex<Received>) {
    let mut reader = BufReader::new(stream);
    while let Some((path, body)) = read_request(&mut reader) {
        if path == "/v1/traces"
            && let Ok(request) = ExportTraceServiceRequest::decode(&body[..])
            && let Ok(mut received) = sink.lock()
        {
            received.spans.extend(spans_of(request));
        }
        if path == "/v1/logs"
            && let Ok(request) = ExportLogsServiceRequest::decode(&body[..])
            && let Ok(mut received) = sink.lock()
        {
            received.logs.extend(logs_of(request));
        }
        if path == "/v1/metrics"
            && let Ok(mut received) = sink.lock()
        {
            received.metrics += 1;
        }
        let mut writer = stream;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        if writer.write_all(answer).is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut gzip) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        gzip |= header.starts_with("content-encoding:") && header.contains("gzip");
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    if gzip {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).ok()?;
        body = plain;
    }
    Some((path, body))
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    let text = |value: AnyValue| match value.value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    };
    pairs
        .into_iter()
        .filter_map(|pair| Some((pair.key, text(pair.value?))))
        .collect()
}

fn resource_of(resource: Option<Resource>) -> Attributes {
    resource
        .map(|resource| attributes(resource.attributes))
        .unwrap_or_default()
}

fn service_of(resource: &Attributes) -> String {
    resource.get("service.name").cloned().unwrap_or_default()
}

fn spans_of(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource_spans in request.resource_spans {
        let resource = resource_of(resource_spans.resource);
        let service = service_of(&resource);
        for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                service: service.clone(),
                resource: resource.clone(),
                name: span.name,
                trace_id: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent_id: hex(&span.parent_span_id),
                kind: span.kind,
                attributes: attributes(span.attributes),
                links: span.links.iter().map(|link| hex(&link.trace_id)).collect(),
            });
        }
    }
    spans
}

fn logs_of(request: ExportLogsServiceRequest) -> Vec<Log> {
    let mut logs = Vec::new();
    for resource_logs in request.resource_logs {
        let service = service_of(&resource_of(resource_logs.resource));
        for record in resource_logs.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
            logs.push(Log {
                service: service.clone(),
                trace_id: hex(&record.trace_id),
                attributes: attributes(record.attributes),
            });
        }
    }
    logs
}
