//! A collector that is away, silent or out of its mind costs the platform's users nothing, and the log one line.

#![expect(clippy::unwrap_used, reason = "in a test, what is not there is a failure")]

use std::io::Write as _;
use std::net::TcpListener;
use std::time::Duration;

use dev::platform::{Platform, Service};
use dev::{http, ports, wait};

use crate::client::Client;
use crate::{drive, flow};

#[test]
fn a_collector_that_refuses_costs_nothing() {
    let port = ports::free().unwrap();
    requests_go_on(&format!("http://127.0.0.1:{port}"));
}

#[test]
fn a_collector_that_is_silent_or_talks_nonsense_costs_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for (number, stream) in listener.incoming().flatten().enumerate() {
            if number % 2 == 0 {
                silent.push(stream);
            } else {
                let mut stream = stream;
                // Whoever hears it may hang up first.
                let _ = stream.write_all(b"\x00\xffthis is no HTTP\r\n\r\n");
            }
        }
    });
    requests_go_on(&url);
}

fn requests_go_on(collector: &str) {
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "100"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
    ];
    let platform = Platform::temporary_with(&[], &env).unwrap();
    drive(flow::conversation(&Client::new(&platform).unwrap())).unwrap();
    for service in Service::ALL {
        let admin = platform.ports().admin(service);
        for signal in ["span", "log", "metric"] {
            let series = format!("otel_sdk_exporter_{signal}_exported_total{{error_type=");
            let counted = wait::until(Duration::from_secs(20), &series, || {
                let metrics = http::request(admin, "GET", "/metrics", None, None).ok()?.body;
                metrics.contains(&series).then_some(())
            });
            counted.unwrap_or_else(|error| panic!("{}: {error:#}", service.binary()));
        }
        let log = std::fs::read_to_string(platform.log(service)).unwrap();
        let lines = log.lines().filter(|line| {
            line.contains("observability::exporting") || (line.contains("opentelemetry") && line.contains("Export"))
        });
        assert_eq!(lines.count(), 1, "{}:\n{log}", service.binary());
    }
}
