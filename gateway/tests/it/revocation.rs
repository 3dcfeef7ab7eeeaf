//! A session that ends stops working here within a second, on the strength of a real event stream.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use fechatter_core::events::{Event, EventType, STREAM, SUBJECTS, SessionRevokedEvent};
use time::OffsetDateTime;

use crate::support::issuer::claims;
use crate::support::{Gateway, Issuer, Upstream, eventually, problem, start_nats};

#[tokio::test]
async fn tokens_of_an_ended_session_are_refused_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let nats = start_nats(folder.path().to_owned()).await;
    let chat = async_nats::ConnectOptions::with_user_and_password("chat".to_owned(), "c".to_owned());
    let chat = chat
        .custom_inbox_prefix("_INBOX_chat")
        .connect(nats.url())
        .await
        .unwrap();
    let jetstream = jetstream::new(chat);
    let stream = Config {
        name: STREAM.to_owned(),
        subjects: vec![SUBJECTS.to_owned()],
        ..Config::default()
    };
    jetstream.create_stream(stream).await.unwrap();
    let publish = async |session_id| {
        let payload = SessionRevokedEvent {
            session_id,
            user_id: 7.into(),
        };
        let event = Event::new(
            EventType::SessionRevoked,
            1.into(),
            7,
            OffsetDateTime::now_utc(),
            payload,
        );
        let bytes = serde_json::to_vec(&event).unwrap();
        let subject = EventType::SessionRevoked.subject(1.into(), 7);
        jetstream.publish(subject, bytes.into()).await.unwrap().await.unwrap();
    };
    let issuer = Issuer::start().await;
    let upstream = Upstream::start().await;
    let (early, late, other) = (claims(7), claims(7), claims(7));
    // One session ended before this replica was there.
    publish(early.sid).await;
    let settings = [
        ("NATS__URL", &*nats.url()),
        ("NATS__USER", "gateway"),
        ("NATS__PASSWORD", "g"),
        ("REVOCATIONS_WAIT_SECONDS", "60"),
    ];
    let gateway = Gateway::start(&issuer, &[&upstream], &settings).await;
    let replica = Gateway::start(&issuer, &[&upstream], &settings).await;
    let (client, other_client) = (gateway.http2(), replica.http2());
    let get = async |token: &str| {
        let request = client.get(gateway.url("/api/me")).bearer_auth(token);
        request.send().await.unwrap()
    };
    let get_elsewhere = async |token: &str| {
        let request = other_client.get(replica.url("/api/me")).bearer_auth(token);
        request.send().await.unwrap()
    };
    // Not even for a moment: it opened when it knew.
    problem(get(&issuer.key.sign(&early)).await, 401, "invalid_token").await;

    let token = issuer.key.sign(&late);
    assert_eq!(get(&token).await.status(), 200);
    assert_eq!(get_elsewhere(&token).await.status(), 200);
    publish(late.sid).await;
    let published = Instant::now();
    eventually("the revocation at every replica", async || {
        let both = [get(&token).await.status(), get_elsewhere(&token).await.status()];
        (both == [401, 401]).then_some(())
    })
    .await;
    assert!(
        published.elapsed() < Duration::from_secs(1),
        "{:?}",
        published.elapsed()
    );
    assert_eq!(
        get(&issuer.key.sign(&other)).await.status(),
        200,
        "another session of the same user goes on"
    );

    let following = async |value: &str| {
        let metrics = gateway.metrics().await;
        let mut lines = metrics
            .lines()
            .filter(|line| line.starts_with("gateway_revocations_connected"));
        lines.next()?.ends_with(value).then_some(())
    };
    eventually("the connection to show", async || following(" 1").await).await;
    drop(nats);
    eventually("the interruption to show", async || following(" 0").await).await;
    assert_eq!(get(&token).await.status(), 401, "what is known stays known");
}

#[tokio::test]
async fn without_nats_the_gateway_opens_after_its_patience_and_says_so() {
    let issuer = Issuer::start().await;
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&issuer, &[&upstream], &[("REVOCATIONS_WAIT_SECONDS", "1")]).await;
    let log = gateway.log();
    assert!(
        log.contains("opening without knowing which sessions have ended"),
        "{log}"
    );
    let answer = gateway
        .http2()
        .get(gateway.url("/api/me"))
        .bearer_auth(issuer.token(7))
        .send();
    assert_eq!(answer.await.unwrap().status(), 200);
}
