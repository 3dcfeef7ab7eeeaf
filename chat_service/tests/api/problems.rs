//! Every client's mistake has its answer, and none is a 500.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::jam::hold_chat;
use crate::support::{App, answer, assert_problem};

#[tokio::test]
async fn malformed_requests_are_told_apart() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    let url = format!("{}/api/chat/{chat}/messages", app.url);
    let post = || app.http.post(&url).bearer_auth(&owner.token);
    let json_post = || post().header("content-type", "application/json");
    assert_problem(&answer(json_post().body("{\"content\":")).await, 400, "malformed_json");
    assert_problem(
        &answer(json_post().body(b"{\"content\":\"\xff\"}".to_vec())).await,
        400,
        "malformed_json",
    );
    assert_problem(&answer(json_post().body("")).await, 400, "malformed_json");
    assert_problem(
        &answer(json_post().body("{\"content\":\"x\",\"admin\":true}")).await,
        422,
        "validation_failed",
    );
    assert_problem(
        &answer(json_post().body("{\"content\":7}")).await,
        422,
        "validation_failed",
    );
    assert_problem(&answer(json_post().body("{}")).await, 422, "validation_failed");
    assert_problem(&answer(post().body("content=x")).await, 415, "unsupported_media_type");
    assert_problem(
        &answer(post().header("content-type", "text/plain").body("{}")).await,
        415,
        "unsupported_media_type",
    );
    // An array is no object, although its items could be its members.
    assert_problem(&answer(json_post().body("[\"x\"]")).await, 422, "validation_failed");
    assert_problem(&answer(json_post().body("null")).await, 422, "validation_failed");
    let members = format!("{}/api/chat/{chat}/members", app.url);
    let nobody = answer(app.http.delete(&members).bearer_auth(&owner.token)).await;
    assert_problem(&nobody, 422, "validation_failed");
    assert_eq!(nobody.1["errors"][0]["field"], "member_ids");
    let delete = || {
        app.http
            .delete(format!("{members}?member_ids=1"))
            .bearer_auth(&owner.token)
    };
    let other = delete().json(&json!({"member_ids": [2]}));
    assert_problem(&answer(other).await, 422, "validation_failed");
    let broken = delete()
        .header("content-type", "application/json")
        .body("{\"member_ids\":");
    assert_problem(&answer(broken).await, 400, "malformed_json");
    let text = delete().header("content-type", "text/plain").body("x");
    assert_problem(&answer(text).await, 415, "unsupported_media_type");
    let keys = json_post()
        .body("{\"content\":\"x\"}")
        .header("idempotency-key", "a")
        .header("idempotency-key", "b");
    assert_problem(&answer(keys).await, 422, "validation_failed");
    let huge = format!("{{\"content\":\"{}\"}}", "x".repeat(2_000_000));
    assert_problem(&answer(json_post().body(huge)).await, 413, "payload_too_large");
    assert_problem(
        &app.anonymous(Method::GET, "/api/nothing", None).await,
        404,
        "not_found",
    );
    assert_problem(
        &app.anonymous(Method::PATCH, "/api/signin", Some(json!({}))).await,
        405,
        "method_not_allowed",
    );
}

#[tokio::test]
async fn answers_carry_the_request_id_and_the_trace() {
    let app = App::start().await;
    let response = app
        .http
        .get(format!("{}/api/me", app.url))
        .header("x-request-id", "edge-request-1")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["x-request-id"], "edge-request-1");
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["request_id"], "edge-request-1");
    let forged = app
        .http
        .get(format!("{}/api/me", app.url))
        .header("x-request-id", "a b\u{7f}")
        .send()
        .await;
    if let Ok(response) = forged {
        assert_ne!(response.headers()["x-request-id"], "a b\u{7f}");
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_503_and_not_500() {
    let app = App::start().await;
    let owner = app.owner().await;
    let name: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    let server = dev::postgres::Server::shared();
    server
        .psql(
            "postgres",
            &format!(
                "ALTER DATABASE {name} ALLOW_CONNECTIONS false;
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            ),
        )
        .unwrap();
    let away = owner.get("/api/me").await;
    assert_problem(&away, 503, "unavailable");
    let health = app.anonymous(Method::GET, "/health", None).await;
    assert_eq!((health.0.as_u16(), health.1["status"].as_str()), (503, Some("down")));
    assert_eq!(
        app.anonymous(Method::GET, "/health/simple", None).await.0.as_u16(),
        200,
        "the process is alive"
    );
    server
        .psql("postgres", &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        .unwrap();
    assert_eq!(owner.get("/api/me").await.0.as_u16(), 200, "and it works again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_holds_makes_nobody_wait_for_ever() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    let holder = hold_chat(&app, chat).await;
    let path = format!("/api/chat/{chat}/messages");
    // More than there are connections: who comes first gives its connection back.
    let sends = (0..20).map(|_| owner.post(&path, json!({"content": "x"})));
    for refused in futures::future::join_all(sends).await {
        assert_problem(&refused, 503, "unavailable");
        assert!(refused.1["retry_after"].is_number());
    }
    assert_eq!(owner.get("/api/me").await.0.as_u16(), 200);
    holder.rollback().await.unwrap();
    owner.say(chat, "free again").await;
}

#[tokio::test]
async fn methods_paths_and_members_are_told_apart() {
    let app = App::start().await;
    let owner = app.owner().await;
    let chat = owner.chat("private_channel", &[]).await;
    let send = |method: Method, path: &str| {
        let request = app
            .http
            .request(method, format!("{}{path}", app.url))
            .bearer_auth(&owner.token);
        async move { request.send().await.unwrap() }
    };
    for (method, path, allow) in [
        (Method::PUT, "/api/chat".to_owned(), "GET,HEAD,POST"),
        (Method::OPTIONS, "/api/signin".to_owned(), "POST"),
        (Method::POST, format!("/api/chat/{chat}"), "GET,HEAD,PATCH,DELETE"),
    ] {
        let refused = send(method, &path).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.headers()["allow"], allow, "{path}");
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
    }
    for path in [
        "/api/chat/",
        "//api/chat",
        "/api/CHAT",
        &format!("/api/chat/{chat}/"),
        "/api/chat/%ff",
    ] {
        let unknown = send(Method::GET, path).await;
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(unknown.headers()["content-type"], "application/problem+json", "{path}");
    }
    let head = send(Method::HEAD, "/api/me").await;
    assert_eq!(head.status(), StatusCode::OK);
    assert!(head.bytes().await.unwrap().is_empty());

    let url = format!("{}/api/chat/{chat}/messages", app.url);
    let post = |body: &'static str| {
        let request = app.http.post(&url).bearer_auth(&owner.token);
        answer(request.header("content-type", "application/json").body(body))
    };
    let twice = post(r#"{"content":"a","content":"b"}"#).await;
    assert_problem(&twice, 422, "validation_failed");
    assert_problem(&post(r#"{"content":"\ud800"}"#).await, 400, "malformed_json");
    let number = post(r#"{"content":"a","idempotency_key":7}"#).await;
    assert_eq!(number.1["errors"][0]["field"], "idempotency_key", "{}", number.1);
    // Compressed bodies are not read, and not taken for broken JSON.
    let packed = app
        .http
        .post(&url)
        .bearer_auth(&owner.token)
        .header("content-type", "application/json");
    let packed = packed.header("content-encoding", "gzip").body(vec![0x1f, 0x8b, 8, 0]);
    assert_problem(&answer(packed).await, 415, "unsupported_media_type");
    let page = owner.get(&format!("/api/chat/{chat}/messages")).await.1;
    assert_eq!(page["items"], json!([]), "nothing came of all that");
    // What is wrong is said in words for people.
    let wrong = owner
        .post("/api/chat", json!({"kind": "group", "member_ids": ["x"]}))
        .await;
    let detail = wrong.1["errors"][0]["detail"].as_str().unwrap();
    assert!(detail.ends_with("expected an integer"), "{detail}");
    let wrong = owner.get("/api/chat?limit=x").await;
    let detail = wrong.1["errors"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("integer"), "{detail}");
}
