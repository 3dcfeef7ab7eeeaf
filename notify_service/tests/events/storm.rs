//! Everybody returns at once.

use fechatter_core::chat::ChatKind;
use futures::future::join_all;
use serde_json::json;

use crate::world::{User, World};

const USERS: usize = 40;
/// Of each user.
const DEVICES: usize = 5;
const EVENTS: i64 = 300;

/// What is inside the window comes from memory and from the stream. PostgreSQL is not merely spared: it is away.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_all_return_at_once_need_no_postgresql_for_what_is_inside_the_window() {
    let mut server = dev::postgres::Server::temporary().unwrap();
    let mut world = World::on(&server).await;
    let ada = world.workspace("storm").await;
    let mut users = vec![ada];
    for _ in 1..USERS {
        users.push(world.user(ada.workspace).await);
    }
    let chat = world.chat(ChatKind::PrivateChannel, &users).await;
    // One holds everything in memory, the other next to nothing and reads the stream back.
    let processes = [
        world.notify(&[]).await,
        world.notify(&[("RING__MAX_EVENTS", "3")]).await,
    ];
    let devices: Vec<(usize, User)> = (0..DEVICES)
        .flat_map(|number| users.iter().map(move |user| (number % 2, *user)))
        .collect();
    // Every process knows every user: each has devices on both.
    let mut cursors = Vec::new();
    for (process, user) in &devices {
        let (sse, _) = world.follow(&processes[*process], *user, None).await;
        cursors.push(sse.cursor.expect("a cursor"));
    }
    // All of them are gone by now, for a moment.
    tokio::task::block_in_place(|| server.kill());
    for seq in 1..=EVENTS {
        world.send(chat, ada, seq, "while they were away").await;
    }
    for (number, process) in processes.iter().enumerate() {
        let mut sse = world.open(process, ada, Some(&cursors[number * USERS])).await;
        let mut last = 0;
        while last < EVENTS {
            let frame = sse.next().await.expect("an open stream");
            last = frame.data["message"]["seq"].as_i64().unwrap_or(last);
        }
    }
    let returning = devices.iter().zip(&cursors).map(|((process, user), cursor)| {
        let (world, process) = (&world, &processes[*process]);
        async move { world.follow(process, *user, Some(cursor)).await }
    });
    for (_stream, frames) in join_all(returning).await {
        assert_eq!(frames[0].data, json!({"count": EVENTS}), "{:?}", frames[0]);
        let seqs = frames[1..].iter().map(|frame| frame.data["message"]["seq"].as_i64());
        assert!(seqs.eq((1..=EVENTS).map(Some)));
    }
    for (process, source) in processes.iter().zip(["ring", "stream"]) {
        let metrics = world.metrics(process).await;
        let replays = metrics
            .lines()
            .find(|line| line.starts_with("notify_replays_total") && line.contains(&format!("source=\"{source}\"")));
        let replays: usize = replays
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .expect("a number");
        assert!(replays >= DEVICES / 2 * USERS, "{replays} from the {source}");
    }
}
