//! Messages that arrive at once are stored together, and nobody can tell but by the time it takes.

use std::collections::HashSet;
use std::time::Duration;

use chat_service::error::Error;
use chat_service::services::messages::Sent;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::jam::{Jam, Message, Sending, assert_outbox_agrees, hold_chat, introduce, said, statements, workspace_of};
use crate::support::App;

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_meanwhile_is_stored_by_one_statement_in_the_order_of_arrival() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (bob, cy) = (app.member(&owner).await, app.member(&owner).await);
    let mut chats = Vec::new();
    for _ in 0..3 {
        chats.push(owner.chat("private_channel", &[&bob, &cy]).await);
    }
    let before = owner.say(chats[0], "before").await;
    let messages: Vec<Message> = (0..40)
        .map(|number| {
            let sender = [&owner, &bob, &cy][number / 3 % 3];
            Message::new(sender, chats[number % 3], format!("{number:02} “ü” \\ \"q\""))
        })
        .collect();
    introduce(&app, &messages).await;
    let jam = Jam::new(&app, &owner).await;
    let sendings = jam.arrive(&messages).await;
    let sent = jam.open(sendings).await;
    for chat in &chats {
        // After the introductions of three.
        let first = if *chat == chats[0] { 5 } else { 4 };
        let answered: Vec<(i64, String)> = sent
            .iter()
            .map(|result| result.as_ref().unwrap())
            .filter(|sent| sent.message.chat_id.0 == *chat)
            .map(|sent| (sent.message.seq, sent.message.content.clone().unwrap()))
            .collect();
        let arrived = messages.iter().filter(|message| message.chat == *chat);
        let expected: Vec<(i64, String)> = (first..).zip(arrived.map(|message| message.content.clone())).collect();
        assert_eq!(answered, expected);
        assert_eq!(said(&app, *chat).await[usize::from(first == 5)..], expected);
    }
    assert_eq!(statements(&app, &chats).await, [1, 40], "one statement for all");
    assert_outbox_agrees(&app).await;
    // Who sends has read, and the answers are what is stored.
    let (_, listed) = bob.get(&format!("/api/chat/{}/messages?limit=100", chats[0])).await;
    for result in sent
        .iter()
        .filter(|result| result.as_ref().unwrap().message.chat_id.0 == chats[0])
    {
        let message = serde_json::to_value(&result.as_ref().unwrap().message).unwrap();
        assert!(
            listed["items"].as_array().unwrap().contains(&message),
            "{message} in {listed}"
        );
    }
    let read: i64 = sqlx::query_scalar("SELECT last_read_seq FROM chat_members WHERE chat_id = $1 AND user_id = $2")
        .bind(chats[1])
        .bind(bob.id)
        .fetch_one(&app.owner)
        .await
        .unwrap();
    let last_of_bob = sent
        .iter()
        .map(|result| &result.as_ref().unwrap().message)
        .filter(|message| message.chat_id.0 == chats[1] && message.sender_id.0 == bob.id)
        .map(|message| message.seq)
        .max();
    assert_eq!(Some(read), last_of_bob);
    // Events are written the same way by both statements.
    let events = app.events(chats[0]).await;
    let created: Vec<&Value> = events
        .iter()
        .filter(|(kind, data)| kind == "message.created" && data["message"]["content"] != "hello")
        .map(|(_, data)| data)
        .collect();
    assert_eq!(created[0]["message"], before);
    for (data, result) in created[1..].iter().zip(
        sent.iter()
            .map(|result| result.as_ref().unwrap())
            .filter(|sent| sent.message.chat_id.0 == chats[0]),
    ) {
        assert_eq!(data["message"], serde_json::to_value(&result.message).unwrap());
        assert_eq!(data["chat"], created[0]["chat"]);
        assert_eq!(data["version"], 1);
    }
    let metrics = observability::metrics::render();
    let of = |name: &str| -> f64 {
        metrics
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    assert!(
        of("fechatter_send_batch_size_sum") > of("fechatter_send_batch_size_count"),
        "{metrics}"
    );
}

/// What a sender is told, without what differs between two worlds.
fn told(result: &Result<Sent, Error>) -> String {
    match result {
        Ok(sent) => format!(
            "new {}, seq {}, {:?}",
            sent.is_new, sent.message.seq, sent.message.content
        ),
        Err(error) => format!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_and_stores_what_single_statements_would() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (bob, stranger) = (app.member(&owner).await, app.owner().await);
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut worlds = Vec::new();
        for _ in 0..2 {
            let chats = [
                owner.chat("private_channel", &[&bob]).await,
                owner.chat("public_channel", &[]).await,
                owner.chat("private_channel", &[&bob]).await,
                stranger.chat("private_channel", &[]).await,
                i64::MAX,
            ];
            let (status, _) = owner.delete(&format!("/api/chat/{}", chats[2])).await;
            assert_eq!(status, StatusCode::NO_CONTENT);
            let earlier = Message::new(&owner, chats[0], "earlier").keyed("key 0");
            assert!(earlier.send(&app).await.unwrap().is_new);
            worlds.push(chats);
        }
        let plan: Vec<(usize, usize, usize, Option<usize>)> = (0..random.random_range(2..90))
            .map(|_| {
                let key = random.random_bool(0.4).then(|| random.random_range(0..4));
                // Most go to where something can happen.
                let chat = if random.random_bool(0.7) {
                    random.random_range(0..2)
                } else {
                    random.random_range(0..5)
                };
                (random.random_range(0..3), chat, random.random_range(0..3), key)
            })
            .collect();
        let messages = |world: &[i64; 5]| -> Vec<Message> {
            plan.iter()
                .map(|(sender, chat, content, key)| Message {
                    sender: [&owner, &bob, &stranger][*sender].id,
                    chat: world[*chat],
                    content: format!("content {content}"),
                    key: key.map(|key| format!("key {key}")),
                })
                .collect()
        };
        for world in &worlds {
            introduce(&app, &messages(world)).await;
        }
        let jam = Jam::new(&app, &owner).await;
        let sendings = jam.arrive(&messages(&worlds[0])).await;
        let together: Vec<String> = jam.open(sendings).await.iter().map(told).collect();
        let mut alone = Vec::new();
        for message in messages(&worlds[1]) {
            alone.push(told(&message.send(&app).await));
        }
        assert_eq!(together, alone, "seed {seed}: {plan:?}");
        for (one, other) in worlds[0].iter().zip(&worlds[1]) {
            assert_eq!(said(&app, *one).await, said(&app, *other).await, "seed {seed}");
        }
        if seed > 0 {
            assert!(
                statements(&app, &worlds[0]).await.iter().any(|size| *size > 1) || together.len() < 8,
                "seed {seed}: nothing went together"
            );
        }
    }
    assert_outbox_agrees(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_database_refuses_fails_alone() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chats = [
        owner.chat("private_channel", &[]).await,
        owner.chat("private_channel", &[]).await,
    ];
    sqlx::query("ALTER TABLE messages ADD CONSTRAINT no_poison CHECK (content <> 'poison')")
        .execute(&app.owner)
        .await
        .unwrap();
    let messages: Vec<Message> = (0..20)
        .map(|number| {
            let content = if number == 7 {
                "poison".to_owned()
            } else {
                format!("{number}")
            };
            Message::new(&owner, chats[number % 2], content).keyed(format!("{number}"))
        })
        .collect();
    introduce(&app, &messages).await;
    let jam = Jam::new(&app, &owner).await;
    let sendings = jam.arrive(&messages).await;
    let sent = jam.open(sendings).await;
    for (number, result) in sent.iter().enumerate() {
        match result {
            Ok(sent) => assert!(number != 7 && sent.is_new),
            Err(error) => assert!(number == 7 && error.violates("no_poison"), "{number}: {error:?}"),
        }
    }
    for (chat, count) in [(chats[0], 10), (chats[1], 9)] {
        let seqs: Vec<i64> = said(&app, chat).await.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(seqs, (2..=count + 1).collect::<Vec<i64>>());
    }
    assert_outbox_agrees(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_away_take_nothing_from_the_others() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    let messages: Vec<Message> = (0..20)
        .map(|number| Message::new(&owner, chat, format!("{number}")))
        .collect();
    introduce(&app, &messages).await;
    // Before the statement: nothing of theirs is stored.
    let jam = Jam::new(&app, &owner).await;
    let mut sendings = jam.arrive(&messages).await;
    let mut kept = Vec::new();
    for (number, sending) in sendings.drain(..).enumerate() {
        if number % 2 == 0 {
            kept.push(sending);
        }
    }
    assert!(jam.open(kept).await.iter().all(Result::is_ok));
    let contents: Vec<String> = said(&app, chat).await.into_iter().map(|(_, content)| content).collect();
    assert_eq!(contents, (0..10).map(|n| format!("{}", n * 2)).collect::<Vec<_>>());
    // In the middle of it: all are, and the chat is free again.
    let jam = Jam::new(&app, &owner).await;
    let sendings = jam.arrive(&messages).await;
    // They take long, so that others may begin.
    let openers = tokio::spawn(join_all(jam.openers));
    until("the batch waits at the outbox", async || {
        waiting_statements(&app).await >= 5
    })
    .await;
    drop(sendings);
    jam.holder.rollback().await.unwrap();
    openers.await.unwrap();
    until("all are stored", async || said(&app, chat).await.len() == 30).await;
    assert_eq!(owner.say(chat, "after").await["seq"], 32);
    // Alone, in the middle of its statement: others go on.
    let holder = hold_chat(&app, chat).await;
    let alone = tokio::time::timeout(Duration::from_millis(20), messages[0].send(&app)).await;
    assert!(alone.is_err());
    holder.rollback().await.unwrap();
    owner.say(chat, "at last").await;
    assert_outbox_agrees(&app).await;
}

async fn waiting_statements(app: &App) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .fetch_one(&app.owner)
    .await
    .unwrap()
}

async fn until<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_that_somebody_holds_keeps_no_other_chat_waiting() {
    let app = App::start().await;
    let owner = app.owner().await;
    let held = owner.chat("private_channel", &[]).await;
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(owner.chat("private_channel", &[]).await);
    }
    let messages: Vec<Message> = (0..60)
        .map(|number| {
            let chat = if number % 3 == 0 { held } else { others[number % 20] };
            Message::new(&owner, chat, format!("{number:02}"))
        })
        .collect();
    introduce(&app, &messages).await;
    let jam = Jam::new(&app, &owner).await;
    let holder = hold_chat(&app, held).await;
    let sendings = jam.arrive(&messages).await;
    let (mut to_held, mut to_others) = (Vec::new(), Vec::new());
    for (message, sending) in messages.iter().zip(sendings) {
        if message.chat == held {
            to_held.push(sending);
        } else {
            to_others.push(sending);
        }
    }
    assert!(
        jam.open(to_others).await.iter().all(Result::is_ok),
        "they do not wait for the held one"
    );
    assert_eq!(said(&app, held).await, []);
    // What comes to the held chat now waits behind what is there, and all go when it is free.
    let late = Message::new(&owner, held, "late");
    let mut late = late.sending(&app, workspace_of(&app, owner.id).await);
    let answers = async {
        tokio::time::timeout(Duration::from_millis(50), &mut late)
            .await
            .unwrap_err();
        holder.rollback().await.unwrap();
        late.await.unwrap()
    };
    let (sent, late) = tokio::join!(join_all(to_held), answers);
    assert!(sent.iter().all(Result::is_ok));
    assert_eq!(late.message.seq, 22);
    let said = said(&app, held).await;
    assert!(said.iter().map(|(seq, _)| *seq).eq(2..=22), "{said:?}");
    assert_outbox_agrees(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_know_of_a_chat_waits_for_no_message_of_its_members() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (outsider, bob) = (app.member(&owner).await, app.member(&owner).await);
    let chat = owner.chat("private_channel", &[&bob]).await;
    for user in [&owner, &bob] {
        user.say(chat, "hello").await;
    }
    // Bob takes part, until he is found out to be no member any more.
    let removal = format!("/api/chat/{chat}/members?member_ids={}", bob.id);
    assert_eq!(owner.delete(&removal).await.0, StatusCode::NO_CONTENT);
    let path = format!("/api/chat/{chat}/messages");
    assert_eq!(
        bob.post(&path, json!({"content": "back"})).await.0,
        StatusCode::NOT_FOUND
    );
    let holder = hold_chat(&app, chat).await;
    let workspace = workspace_of(&app, owner.id).await;
    let mut under_way: Vec<Sending> = Vec::new();
    for content in ["first", "second"] {
        under_way.push(Message::new(&owner, chat, content).sending(&app, workspace));
        assert!(futures::poll!(under_way.last_mut().unwrap()).is_pending());
    }
    for user in [&outsider, &bob] {
        let (status, _) = user.post(&path, json!({"content": "psst"})).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    assert!(
        under_way
            .iter_mut()
            .all(|sending| futures::FutureExt::now_or_never(sending).is_none())
    );
    holder.rollback().await.unwrap();
    let seqs: Vec<i64> = join_all(under_way)
        .await
        .iter()
        .map(|sent| sent.as_ref().unwrap().message.seq)
        .collect();
    assert_eq!(seqs, [3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_takes_no_harm() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    let workspace = workspace_of(&app, owner.id).await;
    owner.say(chat, "hello").await;
    let jam = Jam::new(&app, &owner).await;
    let messages = vec![Message::new(&owner, chat, "one of many"); 8_192];
    let mut waiting: Vec<Sending> = Vec::new();
    for message in &messages {
        waiting.push(message.sending(&app, workspace));
        assert!(futures::poll!(waiting.last_mut().unwrap()).is_pending());
    }
    let (status, answer) = owner
        .post(&format!("/api/chat/{chat}/messages"), json!({"content": "too many"}))
        .await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable"))
    );
    drop(waiting);
    jam.open(Vec::new()).await;
    assert_eq!(owner.say(chat, "room again").await["seq"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_dies_under_a_batch_loses_nothing_and_doubles_nothing() {
    let mut server = dev::postgres::Server::temporary().unwrap();
    let app = App::on(&server).await;
    let owner = app.owner().await;
    let mut chats = Vec::new();
    for _ in 0..6 {
        chats.push(owner.chat("private_channel", &[]).await);
    }
    let workspace = workspace_of(&app, owner.id).await;
    let mut answered: HashSet<i64> = HashSet::new();
    let mut failures = 0;
    for round in 0..4_usize {
        let messages: Vec<Message> = (0..400)
            .map(|number| {
                Message::new(&owner, chats[number % 6], format!("{round} {number}")).keyed(format!("{round} {number}"))
            })
            .collect();
        // The server dies while the senders are at it, at another moment each time.
        let sends = join_all(messages.iter().map(|message| message.sending(&app, workspace)));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(10 + 15 * round as u64)).await;
            tokio::task::block_in_place(|| server.kill());
        };
        let (sent, ()) = tokio::join!(sends, kill);
        failures += sent.iter().filter(|result| result.is_err()).count();
        answered.extend(sent.iter().flatten().map(|sent| sent.message.id.0));
        tokio::task::block_in_place(|| server.restart()).unwrap();
        // Whoever was told of a failure sends again, until it is answered.
        for (message, result) in messages.iter().zip(&sent) {
            if result.is_err() {
                let mut again = message.sending(&app, workspace).await;
                let deadline = std::time::Instant::now() + Duration::from_secs(20);
                while again.is_err() && std::time::Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    again = message.sending(&app, workspace).await;
                }
                answered.insert(again.unwrap().message.id.0);
            }
        }
    }
    assert!(failures > 0, "nothing was under way when the server died");
    assert!(statements(&app, &chats).await.iter().any(|size| *size > 1));
    let stored: Vec<i64> = sqlx::query_scalar("SELECT id FROM messages")
        .fetch_all(&app.owner)
        .await
        .unwrap();
    assert_eq!(stored.len(), 1_600, "each once");
    assert_eq!(answered, stored.into_iter().collect(), "and what was answered is there");
    assert_outbox_agrees(&app).await;
}
