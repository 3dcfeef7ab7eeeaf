//! `GET /api/search/messages`: who may find what, filters, bad input.

use fechatter_core::chat::ChatKind;
use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_finds_or_counts_what_they_may_not_see() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let member = world.user(owner.workspace, "Ada Lovelace").await;
    let outsider = world.user(owner.workspace, "Eve Nomember").await;
    let stranger = world.workspace("rival").await;
    let private = world.chat(ChatKind::PrivateChannel, "plans", &[owner, member]).await;
    let public = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let single = world.chat(ChatKind::Single, "", &[owner, member]).await;
    let foreign = world.chat(ChatKind::PublicChannel, "general", &[stranger]).await;
    let in_private = world.send(private, owner, "merger talks").await;
    let in_public = world.send(public, owner, "merger rumours").await;
    let in_single = world.send(single, member, "merger gossip").await;
    let in_foreign = world.send(foreign, stranger, "merger of the rival").await;
    world.settled().await;

    assert_eq!(world.find(owner, "merger").await, [in_private, in_public, in_single]);
    assert_eq!(world.find(member, "merger").await, [in_private, in_single]);
    assert_eq!(world.find(stranger, "merger").await, [in_foreign]);
    let (status, body) = world.ask(outsider, &[("q", "merger")]).await;
    assert_eq!(
        (status, &body["estimated_total"], &body["hits"]),
        (200, &json!(0), &json!([]))
    );
    assert_eq!(
        body["facets"],
        json!({"sender_id": {}, "chat_id": {}, "kind": {}, "day": {}})
    );

    // By id: a private chat does not exist for others, a public one wants to be joined first.
    let by_chat = |id: i64| id.to_string();
    for (user, chat, expected) in [
        (outsider, private, 404),
        (outsider, single, 404),
        (outsider, public, 403),
        (stranger, public, 404),
        (stranger, private, 404),
        (owner, foreign, 404),
        (member, private, 200),
    ] {
        let (status, body) = world
            .ask(user, &[("q", "merger"), ("chat_id", &by_chat(chat.id))])
            .await;
        assert_eq!(status, expected, "{user:?} {chat:?} {body}");
    }
    assert_eq!(world.ask(owner, &[("q", "merger"), ("chat_id", "999999")]).await.0, 404);
    // By name: another's chat of that name is not meant.
    assert_eq!(world.find(stranger, "merger in:general").await, [in_foreign]);
    assert!(world.find(outsider, "merger in:plans").await.is_empty());

    // Joining and leaving count at once, without any event.
    world.join(public, outsider).await;
    assert_eq!(world.find(outsider, "merger").await, [in_public]);
    world.remove(private, member).await;
    let (_, body) = world.ask(member, &[("q", "merger")]).await;
    assert_eq!(body["facets"]["chat_id"], json!({single.id.to_string(): 1}));
    assert_eq!(body["estimated_total"], 1);
    // A deleted chat is gone before its event is.
    sqlx::query("UPDATE chats SET deleted_at = now() WHERE id = $1")
        .bind(public.id)
        .execute(&world.pool)
        .await
        .unwrap();
    assert_eq!(world.find(owner, "merger").await, [in_private, in_single]);
    assert_eq!(world.ask(owner, &[("chat_id", &by_chat(public.id))]).await.0, 404);
    // A message deleted in PostgreSQL and not yet in the index is not shown, an edited one as it is now.
    sqlx::query("UPDATE messages SET content = NULL, deleted_at = now(), version = 2 WHERE id = $1")
        .bind(in_private)
        .execute(&world.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE messages SET content = 'redacted <b>', edited_at = now(), version = 2 WHERE id = $1")
        .bind(in_single)
        .execute(&world.pool)
        .await
        .unwrap();
    let (_, body) = world.ask(owner, &[("q", "merger")]).await;
    assert_eq!(body["hits"].as_array().unwrap().len(), 1);
    assert_eq!(body["hits"][0]["message"]["content"], "redacted <b>");
    assert_eq!(body["hits"][0]["highlight"], "redacted &lt;b&gt;");
    assert!(!body.to_string().contains("gossip"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_a_good_token_are_refused() {
    let world = World::new().await;
    let owner = world.workspace("acme").await;
    let get = |token: Option<String>| {
        let request = world.http.get(world.url("/api/search/messages?q=x"));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
        .send()
    };
    assert_eq!(get(None).await.unwrap().status(), 401);
    assert_eq!(get(Some("nonsense".to_owned())).await.unwrap().status(), 401);
    assert_eq!(get(Some(world.token(owner))).await.unwrap().status(), 200);
    // A workspace that is not the user's, a user that is not there, a user that was deactivated.
    let elsewhere = crate::world::User {
        workspace: owner.workspace + 1,
        ..owner
    };
    assert_eq!(get(Some(world.token(elsewhere))).await.unwrap().status(), 401);
    let nobody = crate::world::User {
        id: owner.id + 1_000,
        ..owner
    };
    assert_eq!(get(Some(world.token(nobody))).await.unwrap().status(), 401);
    let leaver = world.user(owner.workspace, "Old Hand").await;
    assert_eq!(get(Some(world.token(leaver))).await.unwrap().status(), 200);
    sqlx::query("UPDATE users SET deactivated_at = now() WHERE id = $1")
        .bind(leaver.id)
        .execute(&world.pool)
        .await
        .unwrap();
    let answer = get(Some(world.token(leaver))).await.unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert_eq!(
        answer.json::<serde_json::Value>().await.unwrap()["code"],
        "invalid_token"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_facets_operators_and_paging() {
    let mut world = World::new().await;
    let owner = world.workspace("acme").await;
    let ada = world.user(owner.workspace, "Ada Lovelace").await;
    let bob = world.user(owner.workspace, "Bob Ray").await;
    let general = world.chat(ChatKind::PublicChannel, "General", &[owner, ada, bob]).await;
    let group = world.chat(ChatKind::Group, "", &[owner, ada, bob]).await;
    let a = world.send(general, ada, "roadmap at https://example.org").await;
    let b = world.send(general, bob, "roadmap draft").await;
    let c = world.send(group, ada, "roadmap of the group").await;
    world.settled().await;

    for (q, expected) in [
        ("roadmap", vec![a, b, c]),
        ("roadmap from:ada", vec![a, c]),
        ("roadmap from:@Lovelace", vec![a, c]),
        ("roadmap from:\"Bob Ray\"", vec![b]),
        ("roadmap from:me", vec![]),
        ("roadmap from:nobody", vec![]),
        ("roadmap in:general", vec![a, b]),
        ("roadmap in:#GENERAL from:ada", vec![a]),
        ("has:link", vec![a]),
        ("\"roadmap draft\"", vec![b]),
        ("roadmpa", vec![a, b, c]),
        ("road", vec![a, b, c]),
        ("roadmap before:2020-01-01", vec![]),
        ("roadmap after:2020-01-01", vec![a, b, c]),
    ] {
        assert_eq!(world.find(owner, q).await, expected, "{q}");
    }
    let (_, body) = world.ask(owner, &[("q", "roadmap"), ("kind", "group")]).await;
    assert_eq!(body["hits"][0]["message"]["id"], c);
    assert_eq!(body["facets"]["kind"], json!({"group": 1}));
    let (_, body) = world
        .ask(owner, &[("q", "roadmap"), ("sender_id", &bob.id.to_string())])
        .await;
    assert_eq!(body["hits"][0]["message"]["id"], b);
    let (_, body) = world
        .ask(
            owner,
            &[("q", "roadmap"), ("chat_id", &group.id.to_string()), ("sort", "newest")],
        )
        .await;
    assert_eq!(body["hits"].as_array().unwrap().len(), 1);

    let (_, body) = world
        .ask(
            owner,
            &[("q", "roadmap"), ("sort", "newest"), ("limit", "1"), ("offset", "1")],
        )
        .await;
    assert_eq!(body["hits"][0]["message"]["id"], b);
    assert_eq!(body["hits"].as_array().unwrap().len(), 1);
    assert_eq!(body["estimated_total"], 3);
    assert_eq!(
        body["facets"]["sender_id"],
        json!({ada.id.to_string(): 2, bob.id.to_string(): 1})
    );
    assert_eq!(
        body["facets"]["chat_id"],
        json!({general.id.to_string(): 2, group.id.to_string(): 1})
    );
    assert_eq!(body["facets"]["kind"], json!({"group": 1, "public_channel": 2}));
    let today = time::OffsetDateTime::now_utc().date().to_string();
    assert_eq!(body["facets"]["day"][&today], 3);
    assert!(body["took_ms"].as_f64().unwrap() > 0.0);
    // A rename is seen at once, without an event and without touching a document.
    sqlx::query("UPDATE chats SET name = 'strategy' WHERE id = $1")
        .bind(general.id)
        .execute(&world.pool)
        .await
        .unwrap();
    assert_eq!(world.find(owner, "roadmap in:strategy").await, [a, b]);
    assert!(world.find(owner, "roadmap in:general").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_named_and_never_an_error_of_ours() {
    let world = World::new().await;
    let owner = world.workspace("acme").await;
    world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    let long = "x".repeat(1_001);
    for (name, value) in [
        ("q", long.as_str()),
        ("q", "a\u{0}b"),
        ("q", "before:2026-02-30"),
        ("q", "has:everything"),
        ("chat_id", "x"),
        ("chat_id", "-1"),
        ("sender_id", "99999999999999999999"),
        ("kind", "channel"),
        ("from", "2026-13-01"),
        ("to", "tomorrow"),
        ("sort", "best"),
        ("limit", "0"),
        ("limit", "101"),
        ("limit", "1.5"),
        ("offset", "10001"),
        ("offset", "-1"),
        ("offset", "9223372036854775808"),
        ("limit", "1e1"),
        ("limit", "１０"),
        ("from", "2026-02-29"),
        ("to", "2026-01-01T25:00:00Z"),
        ("kind", "group' OR '1'='1"),
        ("chat_id", "1 OR workspace_id = 2"),
        ("page", "2"),
    ] {
        let (status, body) = world.ask(owner, &[(name, value)]).await;
        assert_eq!(
            (status, &body["code"]),
            (422, &json!("validation_failed")),
            "{name}={value:.40} {body}"
        );
        assert!(!body["errors"][0]["field"].as_str().unwrap().is_empty(), "{body}");
    }
    for (name, value) in [
        ("q", "\"never closed"),
        ("q", "chat_id IN [1] OR workspace_id = 2"),
        ("q", "+a -b (c OR d) [x TO y] ^2 ~ * ? \\"),
        ("q", "unknown:operator from: in:"),
        ("q", "\u{202e}\u{200f}"),
        ("q", "%00%ff"),
        ("q", "💥"),
        ("chat_id", ""),
        ("offset", "10000"),
        ("from", "1970-01-01"),
        ("to", "9998-12-31"),
    ] {
        let (status, body) = world.ask(owner, &[(name, value)]).await;
        assert_eq!((status, &body["hits"]), (200, &json!([])), "{name}={value} {body}");
    }
    let answer = world.http.post(world.url("/api/search/messages")).send().await.unwrap();
    assert_eq!(answer.status(), 405);
    // The process answers searches before it has found the stream; it says so until then.
    world
        .eventually("health to say that every part is ok", async || {
            let answer = world.http.get(world.url("/health")).send().await.unwrap();
            let health: serde_json::Value = answer.json().await.unwrap();
            health["status"] == "ok"
                && ["postgres", "nats", "search", "indexing"]
                    .iter()
                    .all(|check| health["checks"][check]["status"] == "ok")
        })
        .await;
}
