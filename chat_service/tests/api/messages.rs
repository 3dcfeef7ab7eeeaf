//! Sending, listing, editing, deleting, reading.

use fechatter_core::events::MessageEvent;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{App, answer, assert_problem};

#[tokio::test]
async fn messages_count_from_one_and_are_stored_as_sent() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    for (number, content) in ["  spaces stay  ", "line\nbreak\ttab", "日本語 🎉", "<b>&amp;"]
        .iter()
        .enumerate()
    {
        let message = owner.say(chat, content).await;
        assert_eq!(message["seq"].as_u64().unwrap(), number as u64 + 1);
        assert_eq!(message["content"], *content);
    }
    let (_, view) = owner.get(&format!("/api/chat/{chat}")).await;
    assert_eq!(
        (view["last_seq"].as_i64(), view["unread_count"].as_i64()),
        (Some(4), Some(0)),
        "who writes has read"
    );
}

#[tokio::test]
async fn the_event_of_a_message_is_what_the_contract_says() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("public_channel", &[]).await;
    // Often enough to meet a time that ends in a zero.
    for _ in 0..30 {
        let sent = owner.say(chat, "quoted \"text\" \u{1F600}").await;
        let (kind, data) = app.events(chat).await.pop().unwrap();
        assert_eq!(kind, "message.created");
        let event: MessageEvent = serde_json::from_value(data.clone()).unwrap();
        assert_eq!(
            serde_json::to_value(&event).unwrap(),
            data,
            "nothing more and nothing less than the type"
        );
        assert_eq!(data["message"], sent, "the event shows what the answer showed");
        assert_eq!((event.version, event.chat.id.0), (1, chat));
    }
}

#[tokio::test]
async fn bad_content_is_refused_and_leaves_no_hole() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    let path = format!("/api/chat/{chat}/messages");
    for content in [
        String::new(),
        "a".repeat(10_001),
        "bell\u{7}".to_owned(),
        "nul\u{0}".to_owned(),
    ] {
        assert_problem(
            &owner.post(&path, json!({"content": content})).await,
            422,
            "validation_failed",
        );
    }
    assert_eq!(owner.say(chat, &"界".repeat(10_000)).await["seq"], 1);
    // Four bytes each, and escapes of twelve on the wire: the longest there is.
    let longest = "\u{1f980}".repeat(10_000);
    let message = owner.say(chat, &longest).await;
    assert_eq!(message["content"], longest);
    let path = format!("{path}/{}", message["id"]);
    for content in [String::new(), "a".repeat(10_001), "nul\u{0}".to_owned()] {
        let refused = owner.patch(&path, json!({"content": content})).await;
        assert_problem(&refused, 422, "validation_failed");
    }
    let (status, edited) = owner.patch(&path, json!({"content": "a".repeat(10_000)})).await;
    assert_eq!((status, edited["seq"].as_i64()), (StatusCode::OK, Some(2)));
}

#[tokio::test]
async fn a_key_gives_the_first_message_again_for_ever() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let chat = owner.chat("private_channel", &[&bob]).await;
    let path = format!("/api/chat/{chat}/messages");
    let body = json!({"content": "once", "idempotency_key": "k-1"});
    let (status, first) = owner.post(&path, body.clone()).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, again) = owner.post(&path, body).await;
    assert_eq!((status, &again), (StatusCode::OK, &first));
    let header = app
        .http
        .post(format!("{}{path}", app.url))
        .bearer_auth(&owner.token)
        .header("idempotency-key", "k-1");
    let (status, by_header) = answer(header.json(&json!({"content": "once"}))).await;
    assert_eq!((status, &by_header["id"]), (StatusCode::OK, &first["id"]));
    let other_body = owner
        .post(&path, json!({"content": "twice", "idempotency_key": "k-1"}))
        .await;
    assert_problem(&other_body, 422, "idempotency_mismatch");
    // Keys are the sender's and the chat's own.
    let (status, bobs) = bob
        .post(&path, json!({"content": "once", "idempotency_key": "k-1"}))
        .await;
    assert_eq!((status, bobs["seq"].as_i64()), (StatusCode::CREATED, Some(2)));
    let elsewhere = owner.chat("private_channel", &[]).await;
    let (status, _) = owner
        .post(
            &format!("/api/chat/{elsewhere}/messages"),
            json!({"content": "once", "idempotency_key": "k-1"}),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED);
    // The first message was edited since: a retry still finds it.
    owner
        .patch(&format!("{path}/{}", first["id"]), json!({"content": "edited"}))
        .await;
    let (status, edited) = owner
        .post(&path, json!({"content": "once", "idempotency_key": "k-1"}))
        .await;
    assert_eq!((status, edited["content"].as_str()), (StatusCode::OK, Some("edited")));
    for bad in ["", "ключ", "new\nline"] {
        let refused = owner.post(&path, json!({"content": "x", "idempotency_key": bad})).await;
        assert_problem(&refused, 422, "validation_failed");
    }
}

#[tokio::test]
async fn lists_go_both_ways_by_seq() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    for number in 1..=7 {
        owner.say(chat, &format!("message {number}")).await;
    }
    let seqs = |page: &Value| -> Vec<i64> {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["seq"].as_i64().unwrap())
            .collect()
    };
    let path = format!("/api/chat/{chat}/messages");
    let (_, newest) = owner.get(&format!("{path}?limit=3")).await;
    assert_eq!(
        (seqs(&newest), newest["has_more"].as_bool()),
        (vec![7, 6, 5], Some(true))
    );
    let (_, before) = owner.get(&format!("{path}?before=3")).await;
    assert_eq!((seqs(&before), before["has_more"].as_bool()), (vec![2, 1], Some(false)));
    let (_, after) = owner.get(&format!("{path}?after=4&limit=2")).await;
    assert_eq!((seqs(&after), after["has_more"].as_bool()), (vec![5, 6], Some(true)));
    let (_, beyond) = owner.get(&format!("{path}?after=9007199254740991")).await;
    assert_eq!(seqs(&beyond), Vec::<i64>::new());
    for bad in [
        "before=0",
        "before=-1",
        "after=-1",
        "before=3&after=3",
        "after=99999999999999999999",
        "limit=101",
    ] {
        assert_problem(&owner.get(&format!("{path}?{bad}")).await, 422, "validation_failed");
    }
}

#[tokio::test]
async fn edits_keep_history_and_deletion_leaves_a_tombstone() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (bob, carol) = (app.member(&owner).await, app.member(&owner).await);
    let chat = owner.chat("private_channel", &[&bob, &carol]).await;
    let message = bob.say(chat, "first").await;
    let path = format!("/api/chat/{chat}/messages/{}", message["id"]);
    assert_problem(
        &owner.patch(&path, json!({"content": "forged"})).await,
        403,
        "forbidden",
    );
    let (status, edited) = bob.patch(&path, json!({"content": "second"})).await;
    assert_eq!((status, edited["content"].as_str()), (StatusCode::OK, Some("second")));
    assert!(edited["edited_at"].is_string());
    let (_, history) = carol.get(&format!("{path}/history")).await;
    // Page by page it is the same.
    let mut paged = Vec::new();
    let mut query = "?limit=1".to_owned();
    loop {
        let (_, page) = carol.get(&format!("{path}/history{query}")).await;
        paged.extend(page["items"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next"].as_str() else { break };
        query = format!("?limit=1&cursor={next}");
    }
    assert_eq!(&paged, history["items"].as_array().unwrap());
    let contents: Vec<&str> = history["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["content"].as_str().unwrap())
        .collect();
    assert_eq!(contents, ["first", "second"]);
    assert_problem(&carol.delete(&path).await, 403, "forbidden");
    assert_eq!(
        owner.delete(&path).await.0,
        StatusCode::NO_CONTENT,
        "the chat's owner may"
    );
    assert_eq!(
        owner.delete(&path).await.0,
        StatusCode::NO_CONTENT,
        "again changes nothing"
    );
    assert_problem(&bob.patch(&path, json!({"content": "third"})).await, 409, "conflict");
    assert_problem(&bob.get(&format!("{path}/history")).await, 404, "not_found");
    let (_, list) = bob.get(&format!("/api/chat/{chat}/messages")).await;
    let tombstone = &list["items"][0];
    assert_eq!(
        (tombstone["seq"].as_i64(), tombstone["content"].is_null()),
        (Some(1), true)
    );
    let versions: Vec<i64> = app
        .events(chat)
        .await
        .into_iter()
        .filter(|(kind, _)| kind.starts_with("message."))
        .map(|(_, data)| data["version"].as_i64().unwrap())
        .collect();
    assert_eq!(versions, [1, 2, 3]);
    let elsewhere = bob.chat("private_channel", &[]).await;
    let foreign = bob
        .patch(
            &format!("/api/chat/{elsewhere}/messages/{}", message["id"]),
            json!({"content": "x"}),
        )
        .await;
    assert_problem(&foreign, 404, "not_found");
}

#[tokio::test]
async fn the_read_cursor_only_moves_forward() {
    let app = App::start().await;
    let owner = app.owner().await;
    let bob = app.member(&owner).await;
    let chat = owner.chat("private_channel", &[&bob]).await;
    for _ in 0..3 {
        owner.say(chat, "unread").await;
    }
    let path = format!("/api/chat/{chat}/read");
    let (_, view) = bob.put(&path, json!({"seq": 2})).await;
    assert_eq!(
        (view["last_read_seq"].as_i64(), view["unread_count"].as_i64()),
        (Some(2), Some(1))
    );
    let (_, view) = bob.put(&path, json!({"seq": 1})).await;
    assert_eq!(view["last_read_seq"], 2);
    for bad in [-1, 4] {
        assert_problem(&bob.put(&path, json!({"seq": bad})).await, 422, "validation_failed");
    }
    let (_, own) = owner.get(&format!("/api/chat/{chat}")).await;
    assert_eq!(
        own["unread_count"], 0,
        "each member reads for themselves, and one's own messages at once"
    );
    let carol = app.member(&owner).await;
    owner
        .post(&format!("/api/chat/{chat}/members"), json!({"member_ids": [carol.id]}))
        .await;
    let (_, view) = carol.get(&format!("/api/chat/{chat}")).await;
    assert_eq!(
        (view["last_read_seq"].as_i64(), view["unread_count"].as_i64()),
        (Some(3), Some(0)),
        "what was said before one came is not unread"
    );
    let reads = app
        .events(chat)
        .await
        .into_iter()
        .filter(|(kind, _)| kind == "read.updated")
        .count();
    assert_eq!(reads, 1, "a cursor that stays tells nobody");
}
