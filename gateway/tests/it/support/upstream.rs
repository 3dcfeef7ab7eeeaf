//! An HTTP/1.1 server on a real socket that records every byte it gets and answers as it is told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These bytes, then the next request on the same connection.
    Bytes(Vec<u8>),
    /// These bytes, then the connection ends.
    BytesAndClose(Vec<u8>),
    /// These bytes, then, after the pause, the connection ends.
    BytesAndCloseLater(Vec<u8>, Duration),
    /// These bytes, then, when the semaphore gives a permit, those, then the next request.
    BytesAndLater(Vec<u8>, Arc<Semaphore>, Vec<u8>),
    /// A stream of events, each after the given pause, until the gateway leaves or the list ends.
    Events(Vec<(Duration, String)>),
    /// A stream of events, each when the semaphore gives a permit, until the gateway leaves.
    EventsWhenTold(Arc<Semaphore>),
    /// Another protocol: whatever comes is sent back, until the gateway leaves.
    Echo,
    /// No answer, until the gateway leaves.
    Silence,
}

impl Reply {
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Self::Bytes(format!("{head}{body}").into_bytes())
    }
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub head: String,
    pub body: Vec<u8>,
}

impl Recorded {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub fn fields(&self, name: &str) -> Vec<&str> {
        let fields = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        fields
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    pub fn field(&self, name: &str) -> &str {
        match self.fields(name)[..] {
            [value] => value,
            ref other => panic!("{name}: {other:?}"),
        }
    }
}

type Behaviour = dyn Fn(&Recorded) -> Reply + Send + Sync;

struct Shared {
    behaviour: Box<Behaviour>,
    requests: Mutex<Vec<Recorded>>,
    /// Every byte of everything but health checks.
    bytes: Mutex<Vec<u8>>,
    streams: AtomicUsize,
    later: AtomicUsize,
    healthy: std::sync::atomic::AtomicBool,
}

/// The server.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Upstream {
    /// Answers every request with what it was.
    pub async fn start() -> Self {
        Self::with(|request| {
            Reply::json(
                200,
                &serde_json::json!({"target": request.target(), "body_bytes": request.body.len()}),
            )
        })
        .await
    }

    pub async fn with(behaviour: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        Self::bind("127.0.0.1:0".parse().unwrap(), behaviour).await
    }

    pub async fn bind(address: SocketAddr, behaviour: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour: Box::new(behaviour),
            requests: Mutex::default(),
            bytes: Mutex::default(),
            streams: AtomicUsize::new(0),
            later: AtomicUsize::new(0),
            healthy: true.into(),
        });
        let stop = CancellationToken::new();
        let (serving, stopping) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        connections.spawn(serve(stream, Arc::clone(&serving)));
                    }
                }
            }
        });
        Self { address, shared, stop }
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.shared.bytes.lock().unwrap().clone()
    }

    pub fn open_streams(&self) -> usize {
        self.shared.streams.load(Ordering::SeqCst)
    }

    /// Bytes sent behind whole answers.
    pub fn bytes_later(&self) -> usize {
        self.shared.later.load(Ordering::SeqCst)
    }

    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, Ordering::SeqCst);
    }

    /// As a crash would: the listener and every connection end at once.
    pub fn kill(&self) {
        self.stop.cancel();
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    // Else the kernel keeps what is sent behind an answer until that is acknowledged.
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer, &shared).await {
        if request.target() == "/health/simple" {
            let status = if shared.healthy.load(Ordering::SeqCst) {
                "200 OK"
            } else {
                "503 X"
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let reply = (shared.behaviour)(&request);
        shared.requests.lock().unwrap().push(request);
        match reply {
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::BytesAndLater(bytes, permits, later) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
                permits.acquire().await.unwrap().forget();
                if stream.write_all(&later).await.is_err() {
                    return;
                }
                shared.later.fetch_add(later.len(), Ordering::SeqCst);
            }
            Reply::BytesAndClose(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Reply::BytesAndCloseLater(bytes, pause) => {
                let _ = stream.write_all(&bytes).await;
                return tokio::time::sleep(pause).await;
            }
            Reply::Silence => {
                let _ = stream.read(&mut [0; 64]).await;
                return;
            }
            Reply::Events(events) => return send_events(stream, events, &shared).await,
            Reply::Echo => return echo(stream, &shared).await,
            Reply::EventsWhenTold(permits) => return send_when_told(stream, &permits, &shared).await,
        }
    }
}

async fn send_events(mut stream: TcpStream, events: Vec<(Duration, String)>, shared: &Shared) {
    shared.streams.fetch_add(1, Ordering::SeqCst);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\ntransfer-encoding: chunked\r\n\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        for (pause, event) in events {
            tokio::time::sleep(pause).await;
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            if writer.write_all(chunk.as_bytes()).await.is_err() {
                return;
            }
        }
        let _ = writer.write_all(b"0\r\n\r\n").await;
    };
    let mut scrap = [0; 64];
    tokio::select! {
        () = sending => {}
        _ = reader.read(&mut scrap) => {}
    }
    shared.streams.fetch_sub(1, Ordering::SeqCst);
}

async fn echo(mut stream: TcpStream, shared: &Shared) {
    shared.streams.fetch_add(1, Ordering::SeqCst);
    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    let mut room = vec![0; 4_096];
    while let Ok(read @ 1..) = stream.read(&mut room).await {
        if stream.write_all(&room[..read]).await.is_err() {
            break;
        }
    }
    shared.streams.fetch_sub(1, Ordering::SeqCst);
}

async fn send_when_told(mut stream: TcpStream, permits: &Semaphore, shared: &Shared) {
    shared.streams.fetch_add(1, Ordering::SeqCst);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        while let Ok(permit) = permits.acquire().await {
            permit.forget();
            if writer.write_all(b"9\r\ndata: x\n\n\r\n").await.is_err() {
                return;
            }
        }
    };
    let mut scrap = [0; 64];
    tokio::select! {
        () = sending => {}
        _ = reader.read(&mut scrap) => {}
    }
    shared.streams.fetch_sub(1, Ordering::SeqCst);
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>, shared: &Shared) -> Option<Recorded> {
    let end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, buffer, shared).await?;
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let request = Recorded { head, body: Vec::new() };
    let body = match (
        request.fields("content-length")[..].first(),
        request.fields("transfer-encoding")[..].first(),
    ) {
        (Some(length), None) => {
            let length: usize = length.parse().unwrap();
            while buffer.len() < length {
                fill(stream, buffer, shared).await?;
            }
            buffer.drain(..length).collect()
        }
        (None, Some(&"chunked")) => read_chunks(stream, buffer, shared).await?,
        (None, None) => Vec::new(),
        other => panic!("ambiguous framing reached the upstream: {other:?}"),
    };
    Some(Recorded { body, ..request })
}

async fn read_chunks(stream: &mut TcpStream, buffer: &mut Vec<u8>, shared: &Shared) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = loop {
            if let Some(at) = find(buffer, b"\r\n") {
                break at;
            }
            fill(stream, buffer, shared).await?;
        };
        let size = usize::from_str_radix(std::str::from_utf8(&buffer[..line]).unwrap(), 16).unwrap();
        while buffer.len() < line + 2 + size + 2 {
            fill(stream, buffer, shared).await?;
        }
        body.extend_from_slice(&buffer[line + 2..line + 2 + size]);
        buffer.drain(..line + 2 + size + 2);
        if size == 0 {
            return Some(body);
        }
    }
}

async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, shared: &Shared) -> Option<()> {
    let mut chunk = vec![0; 16_384];
    match stream.read(&mut chunk).await {
        Ok(0) | Err(_) => None,
        Ok(read) => {
            if !chunk[..read].starts_with(b"GET /health/simple ") {
                shared.bytes.lock().unwrap().extend_from_slice(&chunk[..read]);
            }
            buffer.extend_from_slice(&chunk[..read]);
            Some(())
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
