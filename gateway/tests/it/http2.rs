//! HTTP/2 as attackers speak it: what is refused, that memory stays flat, and that others are served meanwhile.

use std::time::{Duration, Instant};

use crate::support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    block, frame, request,
};
use crate::support::{Gateway, Issuer, Reply, Setup, Upstream, setup};

const PRIORITY: u8 = 2;

/// Memory an attack may make the process keep, in bytes. The allocator keeps some of what was freed, in each thread; the answers
/// that nobody takes would be 240 MiB.
const GROWTH_MAX: u64 = 32 << 20;

/// Others are served, and memory has not grown by much.
struct Unharmed {
    memory: u64,
}

impl Unharmed {
    async fn before(gateway: &Gateway) -> Self {
        // Buffers that every gateway makes at the first requests of each of its threads are no growth.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let clients: Vec<_> = (0..threads).map(|_| gateway.http2()).collect();
        for client in &clients {
            serve(gateway, client).await;
        }
        Self {
            memory: gateway.memory(),
        }
    }

    async fn check(&self, attack: &str, gateway: &Gateway) {
        serve(gateway, &gateway.http2()).await;
        let grown = gateway.memory().saturating_sub(self.memory);
        assert!(grown < GROWTH_MAX, "{attack}: {} KiB more", grown >> 10);
    }
}

async fn serve(gateway: &Gateway, client: &reqwest::Client) {
    for _ in 0..20 {
        let started = Instant::now();
        let answer = client.get(gateway.url("/openapi.json")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
}

/// Sends `bytes` again and again until the gateway has had enough; returns how often it took them.
async fn flood(connection: &mut Http2, bytes: &[u8], times: usize) -> usize {
    for sent in 0..times {
        if !connection.flood(bytes, Duration::from_secs(3)).await {
            return sent;
        }
    }
    times
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let setup = setup(&[]).await;
    let unharmed = Unharmed::before(&setup.gateway).await;
    let mut connection = Http2::connect(&setup.gateway).await;
    let head = request("GET", "/openapi.json", &[]);
    let cancel = 8_u32.to_be_bytes();
    let mut all = Vec::new();
    for stream in (1..20_000_u32).step_by(2) {
        all.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        all.extend(frame(RST_STREAM, 0, stream, &cancel));
    }
    connection.flood(&all, Duration::from_secs(10)).await;
    let goaway = connection.find(|frame| frame.kind == GOAWAY).await;
    assert!(goaway.is_none_or(|frame| frame.error() == 11), "ENHANCE_YOUR_CALM");
    while connection.next().await.is_some() {}
    unharmed.check("rapid reset", &setup.gateway).await;
    let served = setup.upstream.requests().len();
    assert!(
        served < 2_000,
        "{served} of 10,000 cancelled requests reached the upstream"
    );
}

#[tokio::test]
async fn a_flood_of_continuations_ends_the_connection() {
    let setup = setup(&[]).await;
    let unharmed = Unharmed::before(&setup.gateway).await;
    let before = setup.upstream.requests().len();
    for piece in [
        Vec::new(),
        block(&[("x", "y")]),
        block(&[("x", &"y".repeat(100))]).repeat(100),
    ] {
        let mut connection = Http2::connect(&setup.gateway).await;
        connection
            .send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/openapi.json", &[])))
            .await;
        flood(&mut connection, &frame(CONTINUATION, 0, 1, &piece), 100_000).await;
        // Panics when the connection does not end.
        while connection.next().await.is_some() {}
    }
    let arrived = setup.upstream.requests().len();
    assert_eq!(arrived, before, "none of these was a request");
    unharmed.check("continuations", &setup.gateway).await;
}

#[tokio::test]
async fn floods_of_pings_and_settings_that_nobody_reads_the_answers_of_end_the_connection() {
    let setup = setup(&[("LIMITS__WRITE_SECONDS", "1")]).await;
    let unharmed = Unharmed::before(&setup.gateway).await;
    for (name, one) in [
        ("pings", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
    ] {
        let mut connection = Http2::connect(&setup.gateway).await;
        // 100 MB in all: more than any buffer on the way.
        let times = flood(&mut connection, &one.repeat(10_000), 600).await;
        assert!(
            times < 600,
            "{name}: the gateway goes on answering a client that reads nothing"
        );
        unharmed.check(name, &setup.gateway).await;
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_or_half_a_thing_is_let_go() {
    let setup = setup(&[("LIMITS__HEADER_TIMEOUT_MS", "400"), ("LIMITS__IDLE_SECONDS", "1")]).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = [preface.clone(), frame(SETTINGS, 0, 0, &[])].concat();
    let half = [
        settings.clone(),
        frame(HEADERS, END_STREAM, 1, &request("GET", "/openapi.json", &[])),
    ];
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("half a preface", preface[..10].to_vec()),
        ("no request", settings.clone()),
        ("half a head", half.concat()),
    ] {
        let mut connection = Http2::silent(&setup.gateway).await;
        connection.send(&bytes).await;
        let started = Instant::now();
        while connection.next().await.is_some() {}
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{name}: {:?}",
            started.elapsed()
        );
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408_and_the_others_of_its_connection_go_on() {
    let setup = setup(&[("LIMITS__BODY_TIMEOUT_MS", "400")]).await;
    let mut connection = Http2::connect(&setup.gateway).await;
    let head = request("POST", "/api/signin", &[("content-length", "9")]);
    connection.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    connection.send(&frame(DATA, 0, 1, b"{")).await;
    let refused = connection
        .find(|frame| frame.kind == DATA && frame.stream == 1)
        .await
        .unwrap();
    assert!(
        String::from_utf8_lossy(&refused.payload).contains("request_timeout"),
        "{refused:?}"
    );
    let head = request("GET", "/openapi.json", &[]);
    connection
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &head))
        .await;
    assert!(
        connection
            .find(|frame| frame.kind == DATA && frame.stream == 3)
            .await
            .is_some()
    );
    assert_eq!(setup.upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_large_body_that_trickles_is_over_when_its_time_is() {
    let setup = setup(&[("LIMITS__BODY_TIMEOUT_MS", "700")]).await;
    let mut connection = Http2::connect(&setup.gateway).await;
    let token = format!("Bearer {}", setup.issuer.token(7));
    let mut head = request("POST", "/api/chat/1/messages", &[("content-length", "100000")]);
    head.extend(long_field("authorization", &token));
    connection.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    for _ in 0..6 {
        connection.send(&frame(DATA, 0, 1, &[b'a'; 10_000])).await;
    }
    let started = Instant::now();
    let refused = loop {
        connection.send(&frame(DATA, 0, 1, b"a")).await;
        let next = tokio::time::timeout(Duration::from_millis(50), connection.next()).await;
        if let Ok(Some(frame)) = next
            && (frame.kind == DATA || frame.kind == RST_STREAM)
        {
            break frame;
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "a byte now and then keeps the request open"
        );
    };
    assert!(
        String::from_utf8_lossy(&refused.payload).contains("request_timeout"),
        "{refused:?}"
    );
    assert!(setup.upstream.requests().is_empty(), "half a request is none");
}

/// A literal field that is longer than [`block`] takes.
fn long_field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend_from_slice(name.as_bytes());
    let mut rest = value.len() - 127;
    bytes.push(127);
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

/// Frames that cost nothing to send, each a flood of its own beside a request that is not over.
#[tokio::test]
async fn floods_of_frames_that_say_nothing_harm_nobody() {
    let setup = setup(&[]).await;
    let unharmed = Unharmed::before(&setup.gateway).await;
    let before = setup.upstream.requests().len();
    for (name, one) in [
        ("empty data", frame(DATA, 0, 1, &[])),
        (
            "padded empty data",
            frame(DATA, 8, 1, &[[255].as_slice(), &[0; 255]].concat()),
        ),
        (
            "window updates of the connection",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ),
        ("window updates of a stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        (
            "windows beyond what there is",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        ),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        (
            "priorities of streams that are not",
            frame(PRIORITY, 0, 2_001, &[0, 0, 0, 0, 1]),
        ),
        ("frames nobody knows", frame(0xfa, 0, 0, &[0; 100])),
        (
            "resets of a stream that is not",
            frame(RST_STREAM, 0, 2_001, &[0, 0, 0, 8]),
        ),
        ("acknowledged pings nobody sent", frame(PING, 1, 0, &[0; 8])),
        (
            "heads of one stream",
            frame(HEADERS, END_HEADERS, 1, &request("POST", "/api/signin", &[])),
        ),
    ] {
        let mut connection = Http2::connect(&setup.gateway).await;
        let head = request("POST", "/api/signin", &[]);
        connection.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        flood(&mut connection, &one.repeat(1_000), 10).await;
        unharmed.check(name, &setup.gateway).await;
    }
    let signed_in = setup.upstream.requests().into_iter().skip(before);
    let signed_in = signed_in.filter(|request| request.target() == "/api/signin").count();
    assert_eq!(signed_in, 0, "none of these was a request");
}

/// Has the gateway reset its own streams ("made you reset"): each is over for the protocol and goes on behind it.
#[tokio::test]
async fn resets_the_gateway_is_made_to_send_are_bounded() {
    let setup = setup(&[("RATE_LIMITS__READ", "{requests=1000000,window_seconds=1}")]).await;
    let unharmed = Unharmed::before(&setup.gateway).await;
    let before = setup.upstream.requests().len();
    let mut connection = Http2::connect(&setup.gateway).await;
    let head = request("GET", "/openapi.json", &[]);
    let mut all = Vec::new();
    for stream in (1..20_000_u32).step_by(2) {
        all.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        // An increment of nothing is an error of the stream.
        all.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
    }
    connection.flood(&all, Duration::from_secs(10)).await;
    while connection.next().await.is_some() {}
    unharmed.check("made to reset", &setup.gateway).await;
    let served = setup.upstream.requests().len() - before;
    assert!(served < 2_500, "{served} of 10,000 reset requests reached the upstream");
}

/// A small block that stands for a large head: one field put into the table, then named again and again.
#[tokio::test]
async fn a_small_block_that_stands_for_a_large_head_is_refused() {
    let setup = setup(&[]).await;
    let unharmed = Unharmed::before(&setup.gateway).await;
    let before = setup.upstream.requests().len();
    for (stream, times) in [(1_u32, 40), (3, 4_000), (5, 16_000)] {
        let mut connection = Http2::connect(&setup.gateway).await;
        let mut head = request("GET", "/openapi.json", &[]);
        let mut field = long_field("x", &"a".repeat(3_900));
        // With a place in the table, which is then the first of the dynamic ones.
        field[0] = 0x40;
        head.extend(field);
        head.extend(std::iter::repeat_n(0xbe, times));
        for (part, piece) in head.chunks(16_000).enumerate() {
            let last = if (part + 1) * 16_000 >= head.len() {
                END_HEADERS
            } else {
                0
            };
            let (kind, flags) = if part == 0 {
                (HEADERS, END_STREAM | last)
            } else {
                (CONTINUATION, last)
            };
            connection.send(&frame(kind, flags, stream, piece)).await;
        }
        let answer = connection
            .find(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY))
            .await;
        assert!(
            answer
                .as_ref()
                .is_none_or(|frame| frame.kind != HEADERS || frame.payload.first() != Some(&0x88)),
            "{times}: {answer:?}"
        );
    }
    assert_eq!(setup.upstream.requests().len(), before);
    unharmed.check("large heads", &setup.gateway).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_nothing() {
    let issuer = Issuer::start().await;
    let body = "x".repeat(8 << 20);
    let large = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let upstream = Upstream::with(move |request| match request.target() {
        "/docs" => Reply::Bytes(large.clone()),
        _ => Reply::json(200, &serde_json::json!({})),
    })
    .await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("LIMITS__WRITE_SECONDS", "1")]).await;
    let unharmed = Unharmed::before(&gateway).await;
    let mut connections = Vec::new();
    for _ in 0..30 {
        // No window beyond the first 64 KiB, and nothing is read of that.
        let mut connection = Http2::connect(&gateway).await;
        let head = request("GET", "/docs", &[]);
        connection
            .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head))
            .await;
        connections.push(connection);
    }
    unharmed.check("30 answers of 8 MiB nobody takes", &gateway).await;
    for connection in &mut connections {
        let end = connection
            .find(|frame| frame.kind == RST_STREAM || frame.kind == GOAWAY)
            .await;
        drop(end);
    }
}

/// Header blocks that must never become a request.
fn tricks() -> Vec<(&'static str, Vec<u8>)> {
    let get = |fields: &[(&str, &str)]| request("GET", "/openapi.json", fields);
    let (method, scheme, authority, path) = (
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/openapi.json"),
    );
    vec![
        ("CR LF in a value", get(&[("x", "a\r\nhost: evil")])),
        ("LF in a value", get(&[("x", "a\nhost: evil")])),
        ("NUL in a value", get(&[("x", "a\0b")])),
        ("CR LF in a name", get(&[("x\r\nhost", "evil")])),
        ("colon in a name", get(&[("x:y", "z")])),
        ("capital letters", get(&[("X-Upper", "z")])),
        ("transfer-encoding", get(&[("transfer-encoding", "chunked")])),
        ("connection", get(&[("connection", "close")])),
        ("keep-alive", get(&[("keep-alive", "1")])),
        ("upgrade", get(&[("upgrade", "websocket")])),
        ("te other than trailers", get(&[("te", "gzip")])),
        ("another host", get(&[("host", "other")])),
        ("two lengths", get(&[("content-length", "0"), ("content-length", "5")])),
        ("signed length", get(&[("content-length", "+0")])),
        ("length list", get(&[("content-length", "0, 0")])),
        ("length of a body that does not come", get(&[("content-length", "5")])),
        ("proxy-connection", get(&[("proxy-connection", "close")])),
        ("TAB in a name", get(&[("x\ty", "z")])),
        ("empty name", get(&[("", "z")])),
        ("DEL in a value", get(&[("x", "a\x7fb")])),
        ("many crumbs", get(&[("cookie", "a=b"); 150])),
        (
            "two authorities",
            block(&[method, scheme, authority, (":authority", "other"), path]),
        ),
        (
            "two schemes",
            block(&[method, scheme, (":scheme", "http"), authority, path]),
        ),
        (
            "protocol",
            block(&[
                (":method", "CONNECT"),
                scheme,
                authority,
                path,
                (":protocol", "websocket"),
            ]),
        ),
        ("status", block(&[method, scheme, authority, path, (":status", "200")])),
        ("no scheme", block(&[method, authority, path])),
        ("LF in the method", request("GET\n", "/docs", &[])),
        ("asterisk", request("OPTIONS", "*", &[])),
        ("backslash in the path", request("GET", "/docs\\x", &[])),
        ("dots in the path", request("GET", "/x/../docs", &[])),
        (
            "list in the authority",
            block(&[method, scheme, (":authority", "localhost, other"), path]),
        ),
        (
            "two paths",
            block(&[method, scheme, authority, path, (":path", "/docs")]),
        ),
        (
            "two methods",
            block(&[method, (":method", "POST"), scheme, authority, path]),
        ),
        (
            "pseudo-field after a field",
            block(&[method, scheme, authority, ("x", "y"), path]),
        ),
        (
            "unknown pseudo-field",
            block(&[method, scheme, authority, path, (":x", "y")]),
        ),
        ("no path", block(&[method, scheme, authority])),
        ("no method", block(&[scheme, authority, path])),
        ("empty path", block(&[method, scheme, authority, (":path", "")])),
        (
            "CR LF in the path",
            request("GET", "/docs HTTP/1.1\r\nhost: evil\r\n\r\n", &[]),
        ),
        ("space in the path", request("GET", "/docs HTTP/1.1", &[])),
        ("space in the method", request("GET /docs HTTP/1.1", "/docs", &[])),
        ("absolute path", request("GET", "https://other/docs", &[])),
        (
            "CR LF in the authority",
            block(&[method, scheme, (":authority", "a\r\nx: y"), path]),
        ),
        (
            "user in the authority",
            block(&[method, scheme, (":authority", "a@localhost"), path]),
        ),
        (
            "path in the authority",
            block(&[method, scheme, (":authority", "localhost/x"), path]),
        ),
        ("no authority", block(&[method, scheme, path])),
        (
            "CONNECT",
            block(&[(":method", "CONNECT"), (":authority", "localhost:1")]),
        ),
    ]
}

#[tokio::test]
async fn no_trick_with_fields_reaches_an_upstream() {
    let Setup { gateway, upstream, .. } = setup(&[]).await;
    let mut passed = Vec::new();
    for (name, head) in tricks() {
        let mut connection = Http2::connect(&gateway).await;
        connection
            .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head))
            .await;
        let answer = connection
            .find(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY))
            .await;
        let is_success = answer.as_ref().is_some_and(|frame| {
            // 0x88 is `:status: 200` of the static table.
            frame.kind == HEADERS && frame.flags & END_HEADERS != 0 && frame.payload.first() == Some(&0x88)
        });
        let leaked = upstream.bytes();
        if is_success || !leaked.is_empty() {
            passed.push(format!("{name}: {answer:?} {}", String::from_utf8_lossy(&leaked)));
        }
    }
    assert!(passed.is_empty(), "{}", passed.join("\n"));
}

#[tokio::test]
async fn a_body_of_another_length_than_declared_is_refused() {
    let setup = setup(&[]).await;
    for (declared, sent) in [("2", &b"{} smuggled"[..]), ("20", b"{}")] {
        let mut connection = Http2::connect(&setup.gateway).await;
        let head = request("POST", "/api/signin", &[("content-length", declared)]);
        connection.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        connection.send(&frame(DATA, END_STREAM, 1, sent)).await;
        let end = connection
            .find(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY))
            .await;
        assert!(
            end.is_none_or(|frame| frame.kind != HEADERS || frame.payload.first() != Some(&0x88)),
            "{declared}"
        );
    }
    assert!(setup.upstream.bytes().is_empty());
}

#[tokio::test]
async fn who_sends_the_whole_body_before_listening_learns_why_it_was_refused() {
    let setup = setup(&[]).await;
    let mut connection = Http2::connect(&setup.gateway).await;
    let fields = [("content-type", "application/json"), ("content-length", "300000")];
    let head = request("POST", "/api/signin", &fields);
    connection.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    let (mut left, mut of_stream, mut of_connection) = (300_000_i64, 65_535_i64, 65_535_i64);
    let mut answer = Vec::new();
    while left > 0 || !answer.ends_with(b"}") {
        let size = left.min(of_stream).min(of_connection).min(16_384);
        if left > 0 && size > 0 {
            left -= size;
            of_stream -= size;
            of_connection -= size;
            let end = if left == 0 { END_STREAM } else { 0 };
            let bytes = vec![b'a'; usize::try_from(size).unwrap()];
            connection.send(&frame(DATA, end, 1, &bytes)).await;
            continue;
        }
        let got = connection.next().await.expect("the connection goes on");
        match got.kind {
            WINDOW_UPDATE if got.stream == 0 => of_connection += i64::from(number(&got.payload)),
            WINDOW_UPDATE => of_stream += i64::from(number(&got.payload)),
            SETTINGS => {
                // 4 is the window that streams begin with.
                let windows = got.payload.chunks_exact(6).filter(|setting| setting[..2] == [0, 4]);
                of_stream += windows
                    .map(|setting| i64::from(number(&setting[2..])) - 65_535)
                    .sum::<i64>();
            }
            DATA => answer.extend_from_slice(&got.payload),
            RST_STREAM => panic!("reset with {left} bytes left: {}", got.error()),
            _ => {}
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("payload_too_large"), "{answer}");
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}
