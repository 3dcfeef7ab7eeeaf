//! Who takes the telemetry of a platform under load: the collector where one is built, else a sink of our own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use dev::otelcol::{self, Stores};
use dev::{ports, tools};

/// A receiver of OTLP over HTTP on a port that stays the same; killed, nothing answers there.
#[derive(Debug)]
pub struct Receiver {
    ports: otelcol::Ports,
    running: Option<Running>,
}

/// Dropped, it ends.
#[derive(Debug)]
#[expect(dead_code, reason = "held for its end")]
enum Running {
    /// With the configuration that operators install; what it keeps goes to a sink of ours.
    Collector(otelcol::Server, Sink),
    Sink(Sink),
}

impl Receiver {
    /// One that does not run yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            ports: otelcol::Ports {
                otlp: ports::free()?,
                metrics: ports::free()?,
                health: ports::free()?,
            },
            running: None,
        })
    }

    /// What it is, for the result.
    pub fn kind() -> &'static str {
        if tools::collector().is_some() {
            "OpenTelemetry Collector with observability/collector/otelcol.yaml"
        } else {
            "a sink of our own; `cargo dev collector` builds the collector where Go is"
        }
    }

    /// What goes into `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> String {
        self.ports.url()
    }

    /// Starts it, unless it runs.
    pub fn start(&mut self, folder: &Path) -> anyhow::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        self.running = Some(match tools::collector() {
            Some(path) => {
                let stores = Sink::start(ports::free()?)?;
                let options = otelcol::Options {
                    path,
                    ports: self.ports,
                    stores: Stores::At(stores.url()),
                    log: folder.join("collector.log"),
                    dir: folder.to_owned(),
                };
                Running::Collector(otelcol::Server::start(&options)?, stores)
            }
            None => Running::Sink(Sink::start(self.ports.otlp)?),
        });
        Ok(())
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        self.running = None;
    }
}

/// Answers 200 to whatever is posted. Dropped, it closes its port and its connections.
#[derive(Debug)]
struct Sink {
    port: u16,
    is_over: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Sink {
    fn start(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).context("cannot open the telemetry's sink")?;
        let sink = Self {
            port,
            is_over: Arc::default(),
            open: Arc::default(),
        };
        let (is_over, open) = (sink.is_over.clone(), sink.open.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(other) = stream.try_clone() {
                    open.lock().unwrap_or_else(PoisonError::into_inner).push(other);
                }
                std::thread::spawn(move || while serve(&stream).is_some() {});
            }
        });
        Ok(sink)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Its thread waits for a connection; this is the last one.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Fails for one that is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Takes one request; `None` at the end of the connection.
fn serve(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().ok()?;
        }
    }
    // One request at a time on a connection, so nothing of the next one is in the buffer.
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).ok()?;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
    let mut writer = stream;
    writer.write_all(answer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_takes_what_is_posted_until_it_is_dropped() {
        let port = ports::free().unwrap();
        let sink = Sink::start(port).unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        for _ in 0..2 {
            stream
                .write_all(b"POST /v1/traces HTTP/1.1\r\ncontent-length: 5\r\n\r\nspans")
                .unwrap();
            let mut line = String::new();
            BufReader::with_capacity(1, &stream).read_line(&mut line).unwrap();
            assert_eq!(line, "HTTP/1.1 200 OK\r\n");
            // Up to the end of the head.
            let mut rest = BufReader::with_capacity(1, &stream);
            while line != "\r\n" {
                line.clear();
                rest.read_line(&mut line).unwrap();
            }
        }
        drop(sink);
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "the connection is closed");
        dev::wait::until(std::time::Duration::from_secs(5), "the port to be closed", || {
            TcpStream::connect(("127.0.0.1", port)).is_err().then_some(())
        })
        .unwrap();
    }
}
