//! Tickets: one use, then bound to their stream.

use std::time::Duration;

use async_nats::jetstream::kv;
use notify_service::services::tickets::BUCKET;
use serde_json::Value;
use uuid::Uuid;

use crate::world::{Notify, Sse, User, World, eventually};

async fn ticket(world: &World, notify: &Notify, token: &str) -> String {
    let answer = world
        .http
        .post(notify.url("/events/ticket"))
        .bearer_auth(token)
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 201, "{}", notify.log());
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!(body["expires_in"], 30);
    body["ticket"].as_str().expect("a ticket").to_owned()
}

async fn open(world: &World, notify: &Notify, ticket: &str, cursor: Option<&str>) -> Sse {
    let mut request = world.http.get(notify.url(&format!("/events?ticket={ticket}")));
    if let Some(cursor) = cursor {
        request = request.header("last-event-id", cursor);
    }
    Sse::of(request).await
}

async fn world_of_one(name: &str) -> (World, User) {
    let world = World::new().await;
    let user = world.workspace(name).await;
    (world, user)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_one_stream_and_then_belongs_to_it() {
    let (world, ada) = world_of_one("tickets").await;
    let (first, second) = (world.notify(&[]).await, world.notify(&[]).await);
    let ticket = ticket(&world, &first, &world.token(ada)).await;
    // Any process redeems it.
    let mut sse = open(&world, &second, &ticket, None).await;
    assert_eq!(sse.status, 200);
    assert_eq!(sse.next().await.unwrap().event, "ready");
    let cursor = sse.cursor.clone().unwrap();
    // A second use is refused, by both; the stream's own client comes back with its cursor.
    for notify in [&first, &second] {
        assert_eq!(open(&world, notify, &ticket, None).await.status, 401);
        assert_eq!(open(&world, notify, &ticket, Some("no cursor")).await.status, 401);
        let mut again = open(&world, notify, &ticket, Some(&cursor)).await;
        assert_eq!(again.status, 200);
        assert_eq!(again.next().await.unwrap().event, "resumed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_uses_at_once_one_succeeds() {
    let (world, ada) = world_of_one("ticket-race").await;
    let (first, second) = (world.notify(&[]).await, world.notify(&[]).await);
    for _ in 0..5 {
        let ticket = ticket(&world, &first, &world.token(ada)).await;
        let uses = (0..10).map(|number| {
            let notify = if number % 2 == 0 { &first } else { &second };
            open(&world, notify, &ticket, None)
        });
        let mut statuses: Vec<u16> = futures::future::join_all(uses)
            .await
            .iter()
            .map(|sse| sse.status)
            .collect();
        statuses.sort_unstable();
        assert_eq!(statuses[..2], [200, 401]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_expired_tickets_are_refused() {
    let (world, ada) = world_of_one("forged").await;
    let notify = world.notify(&[]).await;
    for forged in ["x", &"A".repeat(43), "..", &"A".repeat(5_000), "*", "%3E"] {
        assert_eq!(open(&world, &notify, forged, None).await.status, 401, "{forged:.20}");
    }
    // A token that ends in a moment takes its ticket along, also one that was bound.
    let token = world.token_of(ada, Uuid::now_v7(), 2);
    let (used, unused) = (
        ticket(&world, &notify, &token).await,
        ticket(&world, &notify, &token).await,
    );
    let mut sse = open(&world, &notify, &used, None).await;
    assert_eq!(sse.status, 200);
    let frames = sse.rest().await;
    let last = frames.last().unwrap();
    assert_eq!(
        (last.event.as_str(), &last.data["reason"]),
        ("reauth", &Value::from("token_expires"))
    );
    let cursor = sse.cursor.clone();
    eventually("the token to expire", async || {
        open(&world, &notify, &used, cursor.as_deref()).await.status == 401
            && open(&world, &notify, &unused, None).await.status == 401
    })
    .await;
    // Without anything, and with nonsense for a token.
    assert_eq!(Sse::of(world.http.get(notify.url("/events"))).await.status, 401);
    assert_eq!(world.open_as(&notify, "nonsense", None).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_leave_the_bucket_when_their_time_is_over() {
    let (world, ada) = world_of_one("tickets-leave").await;
    let context = world.jetstream().await;
    // As an earlier version made it.
    context
        .create_key_value(kv::Config {
            bucket: BUCKET.to_owned(),
            history: 1,
            max_age: Duration::from_hours(2),
            max_bytes: 64 << 20,
            ..kv::Config::default()
        })
        .await
        .expect("the bucket");
    let notify = world.notify(&[]).await;
    let mut stream = context.get_stream(format!("KV_{BUCKET}")).await.expect("the bucket");
    let long = world.token(ada);
    for _ in 0..50 {
        ticket(&world, &notify, &long).await;
    }
    let state = stream.info().await.expect("an answer").state.clone();
    assert_eq!(state.messages, 50);
    assert!(state.bytes / state.messages < 400, "{state:?}");
    let ttl = async |sequence: u64| {
        let message = stream.direct_get(sequence).await.expect("the entry");
        let ttl = message.headers.get("Nats-TTL").expect("a lifetime");
        ttl.as_str().parse::<i64>().expect("a number")
    };
    assert_eq!(ttl(state.last_sequence).await, 30);
    // Used, it lives as long as its token.
    let used = ticket(&world, &notify, &long).await;
    let mut sse = open(&world, &notify, &used, None).await;
    assert_eq!((sse.status, sse.next().await.unwrap().event.as_str()), (200, "ready"));
    let lives = ttl(state.last_sequence + 2).await;
    assert!((880..=900).contains(&lives), "{lives}");
    let config = stream.get_info().await.expect("an answer").config;
    assert_eq!(config.max_age, Duration::from_hours(1));

    // Unused, and used, of a token that ends in a moment: nothing of them stays.
    stream.purge().await.expect("a purge");
    let short = world.token_of(ada, Uuid::now_v7(), 5);
    let (used, _unused) = (
        ticket(&world, &notify, &short).await,
        ticket(&world, &notify, &short).await,
    );
    assert_eq!(open(&world, &notify, &used, None).await.status, 200);
    eventually("the bucket to be empty", async || {
        stream.get_info().await.expect("an answer").state.messages == 0
    })
    .await;
    let last = stream.get_info().await.expect("an answer").state.last_sequence;
    assert!(last > state.last_sequence + 2, "they were there");
}
