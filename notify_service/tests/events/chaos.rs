//! Nothing lost, doubled or leaked while clients return at random and processes and servers fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fechatter_core::chat::ChatKind;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Barrier;

use crate::world::{Chat, Notify, PATIENCE, Publisher, User, World};

const SEED: u64 = 0x00FE_C4A7;

/// What one device has seen, by chat.
#[derive(Debug, Default)]
struct Seen {
    seqs: HashMap<i64, Vec<i64>>,
    reconnects: usize,
    gaps: Vec<String>,
}

/// What all devices share.
#[derive(Clone)]
struct Play {
    world: Arc<World>,
    processes: Arc<Vec<Notify>>,
    /// All have a stream: publishing may begin.
    begun: Arc<Barrier>,
    /// Whether a process may be away for a moment.
    is_rough: bool,
}

/// Reads as `user`, leaving and returning at random (to any of the processes), until every chat has reached `last`.
async fn device(play: Play, user: User, seed: u64, last: HashMap<i64, i64>) -> Seen {
    let mut random = StdRng::seed_from_u64(seed);
    let mut gathered = Seen::default();
    let mut cursor: Option<String> = None;
    let deadline = tokio::time::Instant::now() + 4 * PATIENCE;
    loop {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{user:?} is left with {gathered:?}"
        );
        let notify = &play.processes[random.random_range(0..play.processes.len())];
        let mut sse = match play.world.try_open(notify, user, cursor.as_deref()).await {
            Some(sse) if sse.status == 200 => sse,
            _ if play.is_rough => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            answer => panic!("{:?}: {}", answer.map(|sse| sse.status), notify.log()),
        };
        let mut stay = random.random_range(0..60);
        let Some(first) = sse.next().await else {
            assert!(play.is_rough, "{}", notify.log());
            continue;
        };
        if cursor.is_none() {
            play.begun.wait().await;
        }
        match (first.event.as_str(), &cursor) {
            ("ready", None) | ("resumed", Some(_)) => {}
            ("gap", _) => gathered.gaps.push(first.data.to_string()),
            other => panic!("{other:?}"),
        }
        while let Some(frame) = sse.within(Duration::from_millis(1_500)).await {
            if frame.event == "message.created" {
                let message = &frame.data["message"];
                let (chat, seq) = (
                    message["chat_id"].as_i64().expect("a number"),
                    message["seq"].as_i64().expect("a number"),
                );
                gathered.seqs.entry(chat).or_default().push(seq);
            }
            stay -= 1;
            if stay < 0 {
                break;
            }
        }
        cursor = sse.cursor.clone();
        let is_done = |(chat, last): (&i64, &i64)| gathered.seqs.get(chat).and_then(|seqs| seqs.last()) == Some(last);
        if last.iter().all(is_done) {
            return gathered;
        }
        gathered.reconnects += 1;
    }
}

fn assert_whole(seen: &Seen, expected: &HashMap<i64, i64>) {
    assert_eq!(seen.gaps, Vec::<String>::new());
    for (chat, last) in expected {
        assert_eq!(seen.seqs[chat], (1..=*last).collect::<Vec<_>>(), "chat {chat}");
    }
    assert_eq!(seen.seqs.len(), expected.len(), "only their own chats");
}

async fn publish(mut publisher: Publisher, chats: Vec<(Chat, User)>, each: i64, pause: Duration) {
    for seq in 1..=each {
        for (chat, sender) in &chats {
            publisher.message(*chat, *sender, seq, &"x".repeat(50)).await;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Two workspaces, six users, eight chats with other members each.
async fn cast(world: &World) -> (Vec<User>, Vec<(Chat, Vec<User>)>) {
    let (ada, eve) = (world.workspace("one").await, world.workspace("two").await);
    let mut users = vec![ada, eve];
    for workspace in [ada.workspace, ada.workspace, ada.workspace, eve.workspace] {
        users.push(world.user(workspace).await);
    }
    let of = |workspace: i64| {
        users
            .iter()
            .copied()
            .filter(|user| user.workspace == workspace)
            .collect::<Vec<_>>()
    };
    let (ones, twos) = (of(ada.workspace), of(eve.workspace));
    let mut chats = Vec::new();
    for members in [
        &ones[..],
        &ones[1..],
        &ones[..2],
        &ones[2..],
        &ones[3..],
        &twos[..],
        &twos[1..],
        &ones[..],
    ] {
        chats.push((world.chat(ChatKind::PrivateChannel, members).await, members.to_vec()));
    }
    (users, chats)
}

fn expected(user: User, chats: &[(Chat, Vec<User>)], each: i64) -> HashMap<i64, i64> {
    let own = chats.iter().filter(|(_, members)| members.contains(&user));
    own.map(|(chat, _)| (chat.id, each)).collect()
}

/// Publishes to all chats while every user's device leaves and returns; `trouble` happens meanwhile.
async fn run(world: Arc<World>, processes: Arc<Vec<Notify>>, each: i64, trouble: Option<impl Future<Output = ()>>) {
    let (users, chats) = cast(&world).await;
    let play = Play {
        world: world.clone(),
        processes: processes.clone(),
        begun: Arc::new(Barrier::new(users.len() + 1)),
        is_rough: trouble.is_some(),
    };
    let devices: Vec<_> = users
        .iter()
        .zip(SEED..)
        .map(|(user, seed)| {
            let expected = expected(*user, &chats, each);
            let device = device(play.clone(), *user, seed, expected.clone());
            tokio::spawn(async move { assert_whole(&device.await, &expected) })
        })
        .collect();
    play.begun.wait().await;
    let pause = Duration::from_millis(if play.is_rough { 30 } else { 0 });
    let senders = chats.iter().map(|(chat, members)| (*chat, members[0])).collect();
    let publishing = tokio::spawn(publish(world.publisher.clone(), senders, each, pause));
    if let Some(trouble) = trouble {
        trouble.await;
    }
    publishing.await.expect("publishing");
    for device in devices {
        device.await.unwrap_or_else(|error| {
            let logs: String = processes.iter().map(Notify::log).collect();
            panic!("seed {SEED:#x}: {error}\n{logs}")
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_that_leave_and_return_at_random_get_everything_once() {
    let world = Arc::new(World::new().await);
    // The first keeps much in memory, the second next to nothing, so that it reads the stream.
    let processes = Arc::new(vec![
        world.notify(&[]).await,
        world.notify(&[("RING__MAX_EVENTS", "25")]).await,
    ]);
    run(world.clone(), processes.clone(), 150, None::<std::future::Ready<()>>).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_of_nats_and_of_processes_lose_and_double_nothing() {
    let world = Arc::new(World::new().await);
    let processes = Arc::new(vec![
        world.notify(&[("RING__MAX_EVENTS", "40")]).await,
        world.notify(&[("RING__MAX_EVENTS", "40")]).await,
    ]);
    let trouble = {
        let (world, processes) = (world.clone(), processes.clone());
        async move {
            let mut random = StdRng::seed_from_u64(SEED);
            for round in 0..6 {
                tokio::time::sleep(Duration::from_millis(random.random_range(100..700))).await;
                let pause = Duration::from_millis(random.random_range(0..500));
                if round % 2 == 0 {
                    world.nats().kill();
                    tokio::time::sleep(pause).await;
                    tokio::task::block_in_place(|| world.nats().restart()).expect("NATS again");
                } else {
                    let notify = &processes[random.random_range(0..2)];
                    notify.kill();
                    tokio::time::sleep(pause).await;
                    notify.restart();
                }
            }
        }
    };
    run(world, processes, 80, Some(trouble)).await;
}
