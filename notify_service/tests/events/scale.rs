//! What a stream costs and how long an event to many takes; run by hand: `cargo test --release -- --ignored scale`.

use std::time::Instant;

use fechatter_core::chat::ChatKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{Notify, PATIENCE, User, World, eventually};

async fn metric(world: &World, notify: &Notify, name: &str) -> f64 {
    let metrics = world.metrics(notify).await;
    let line = metrics.lines().find(|line| line.starts_with(name)).expect("the metric");
    line.rsplit(' ').next().expect("a value").parse().expect("a number")
}

/// Opens a stream with as little as possible on this side.
async fn open(notify: &Notify, token: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", notify.port))
        .await
        .expect("a connection");
    let request = format!("GET /events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    read_until(&mut stream, b"caught_up").await;
    stream
}

async fn read_until(stream: &mut TcpStream, what: &[u8]) {
    let mut buffer = Vec::with_capacity(1_024);
    while !buffer.windows(what.len()).any(|window| window == what) {
        let read = tokio::time::timeout(3 * PATIENCE, stream.read_buf(&mut buffer))
            .await
            .expect("in time");
        assert!(read.expect("bytes") > 0, "the stream ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn many_streams() {
    const STREAMS: u32 = 8_000;
    let mut world = World::new().await;
    let ada = world.workspace("scale").await;
    let chat = world.chat(ChatKind::PrivateChannel, &[ada]).await;
    let ids: Vec<i64> = sqlx::query_scalar(
        "WITH made AS (INSERT INTO users (workspace_id, fullname, email, password_hash)
             SELECT $1, 'Somebody', 'u' || n || '@scale.test', 'x' FROM generate_series(1, $3) AS n RETURNING id),
         seats AS (INSERT INTO chat_members (chat_id, user_id, workspace_id) SELECT $2, id, $1 FROM made)
         SELECT id FROM made",
    )
    .bind(ada.workspace)
    .bind(chat.id)
    .bind(i32::try_from(STREAMS).expect("few"))
    .fetch_all(&world.pool)
    .await
    .expect("users");
    let notify = world.notify(&[("LOG__FILTER", "warn")]).await;
    let before = metric(&world, &notify, "process_memory_usage_bytes").await;
    let started = Instant::now();
    let mut streams = Vec::new();
    for ids in ids.chunks(200) {
        let opening = ids.iter().map(|id| {
            let token = world.token(User {
                id: *id,
                workspace: ada.workspace,
            });
            let notify = &notify;
            async move { open(notify, &token).await }
        });
        streams.extend(futures::future::join_all(opening).await);
    }
    let opened = started.elapsed();
    eventually("all to be counted", async || {
        metric(&world, &notify, "notify_streams{").await >= f64::from(STREAMS)
    })
    .await;
    let after = metric(&world, &notify, "process_memory_usage_bytes").await;
    println!(
        "{STREAMS} streams in {opened:?}, {} bytes each",
        (after - before) / f64::from(STREAMS)
    );
    for round in 1..=5 {
        let text = format!("round {round} for everybody");
        let started = Instant::now();
        world.send(chat, ada, round, &text).await;
        let sent = started.elapsed();
        let reading = streams.iter_mut().map(|stream| read_until(stream, text.as_bytes()));
        futures::future::join_all(reading).await;
        println!(
            "sent in {sent:?}, at the last of {STREAMS} after {:?}",
            started.elapsed()
        );
    }
    let latency = world.metrics(&notify).await;
    for line in latency
        .lines()
        .filter(|line| line.starts_with("notify_delivery_latency"))
    {
        println!("{line}");
    }
    let memory = metric(&world, &notify, "process_memory_usage_bytes").await;
    println!("{} bytes each after the events", (memory - before) / f64::from(STREAMS));
    drop(streams);
    eventually("all to be gone", async || {
        metric(&world, &notify, "notify_streams{").await == 0.0
    })
    .await;
}
