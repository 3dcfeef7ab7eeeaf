//! Tickets: one use, then bound to their stream.

use serde_json::Value;
use uuid::Uuid;

use crate::world::{Notify, Sse, User, World};

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
    crate::world::eventually("the token to expire", async || {
        open(&world, &notify, &used, cursor.as_deref()).await.status == 401
            && open(&world, &notify, &unused, None).await.status == 401
    })
    .await;
    // Without anything, and with nonsense for a token.
    assert_eq!(Sse::of(world.http.get(notify.url("/events"))).await.status, 401);
    assert_eq!(world.open_as(&notify, "nonsense", None).await.status, 401);
}
