//! One line per request, with what an operator needs and nothing secret.

use crate::support::raw::Raw;
use crate::support::setup;

#[tokio::test]
async fn a_line_has_what_leads_to_the_request() {
    let setup = setup(&[]).await;
    let token = setup.issuer.token(42);
    let client = setup.gateway.http2();
    let answer = client
        .post(setup.gateway.url("/api/chat/5/messages?secret=1"))
        .bearer_auth(&token)
        .body("{\"content\":\"hello\"}")
        .send()
        .await
        .unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let trace = answer.headers()["traceresponse"].to_str().unwrap()[3..35].to_owned();
    let size = answer.bytes().await.unwrap().len();
    let line = setup.gateway.access_line(&id).await;
    assert_eq!(line["route"], "/api/chat/{id}/messages");
    assert_eq!(line["method"], "POST");
    assert_eq!(line["status"], 200);
    assert_eq!(line["trace_id"], trace.as_str());
    assert_eq!(line["user_id"], 42);
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(line["bytes_in"], 19);
    assert_eq!(line["bytes_out"], size);
    assert_eq!(line["upstream"], setup.upstream.address.to_string());
    assert_eq!(line["rate_limit"], "allowed");
    assert_eq!(line["protocol"], "h2");
    for duration in ["duration_ms", "headers_ms", "upstream_ms", "tls_ms"] {
        assert!(line[duration].as_f64().is_some_and(|ms| ms > 0.0), "{duration}: {line}");
    }
    let log = setup.gateway.log();
    for secret in ["secret=1", token.as_str(), "hello"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn refusals_say_why() {
    let setup = setup(&[]).await;
    let answer = setup
        .gateway
        .http2()
        .get(setup.gateway.url("/api/me"))
        .send()
        .await
        .unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap();
    let line = setup.gateway.access_line(id).await;
    assert_eq!(
        (&line["status"], &line["refused"]),
        (&401.into(), &"token_absent".into())
    );

    let mut raw = Raw::connect(&setup.gateway).await;
    raw.send(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let id = raw.answer().await.body()["request_id"].as_str().unwrap().to_owned();
    let line = setup.gateway.access_line(&id).await;
    assert_eq!(
        (&line["status"], &line["refused"]),
        (&400.into(), &"two_lengths".into())
    );
}

#[tokio::test]
async fn lines_are_left_out_as_configured_and_the_counts_are_not() {
    let settings = [
        ("ACCESS_LOG__SAMPLE_PERCENT", "0"),
        ("ACCESS_LOG__SAMPLE_REFUSED_PERCENT", "100"),
        ("ACCESS_LOG__SLOW_MS", "3600000"),
    ];
    let setup = setup(&settings).await;
    let client = setup.gateway.http2();
    let get = async |token: &str| {
        let request = client.get(setup.gateway.url("/api/me")).bearer_auth(token);
        let answer = request.send().await.unwrap();
        answer.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    let good = get(&setup.issuer.token(7)).await;
    let refused = get("nonsense").await;
    setup.upstream.kill();
    let failed = get(&setup.issuer.token(7)).await;
    for id in [&refused, &failed] {
        setup.gateway.access_line(id).await;
    }
    let log = setup.gateway.log();
    let line = |id: &str| log.lines().any(|line| line.contains("\"access\"") && line.contains(id));
    assert!(line(&refused) && line(&failed) && !line(&good), "{log}");
}

#[tokio::test]
async fn the_log_is_looked_at_more_closely_without_a_restart() {
    let setup = setup(&[("LOG__FILTER", "error")]).await;
    let client = setup.gateway.http2();
    let get = async || {
        let answer = client.get(setup.gateway.url("/openapi.json")).send().await.unwrap();
        answer.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    let url = format!("http://{}/log", setup.gateway.admin);
    assert_eq!(reqwest::get(&url).await.unwrap().text().await.unwrap(), "error\n");
    let unseen = get().await;
    let put = async |filter: &'static str| {
        let answer = reqwest::Client::new().put(&url).body(filter).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(
        put("info,async_nats=off").await,
        (200, "info,async_nats=off\n".to_owned())
    );
    let seen = get().await;
    setup.gateway.access_line(&seen).await;
    assert!(!setup.gateway.log().contains(&unseen));
    let (status, text) = put("info,=,=").await;
    assert_eq!(status, 400, "{text}");
    assert_eq!(
        reqwest::get(&url).await.unwrap().text().await.unwrap(),
        "info,async_nats=off\n",
        "what cannot be read changes nothing"
    );
    let public = client.get(setup.gateway.url("/log")).send().await.unwrap();
    assert_eq!(public.status(), 404);
}

#[tokio::test]
async fn profiles_of_processor_and_memory_are_taken_under_load_one_at_a_time() {
    let setup = setup(&[("RATE_LIMITS__READ", "{requests=1000000,window_seconds=1}")]).await;
    let client = setup.gateway.http2();
    let url = setup.gateway.url("/openapi.json");
    let load = tokio::spawn(async move {
        loop {
            client.get(&url).send().await.unwrap();
        }
    });
    let admin = setup.gateway.admin;
    let get = async |path: &str| {
        reqwest::get(format!("http://{admin}/debug/pprof/{path}"))
            .await
            .unwrap()
    };
    let (heap, second) = tokio::join!(get("heap?seconds=2"), async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        get("profile?seconds=1").await
    });
    assert_eq!((heap.status().as_u16(), second.status().as_u16()), (200, 409));
    let heap = heap.bytes().await.unwrap();
    let text = String::from_utf8_lossy(&heap);
    for part in ["alloc_space", "inuse_space", "pingora"] {
        assert!(text.contains(part), "{part} is not in {} bytes", heap.len());
    }
    let processor = get("profile?seconds=1").await.text().await.unwrap();
    assert!(processor.contains("<svg"), "{processor:.200}");
    assert_eq!(get("heap?seconds=0").await.status(), 400);
    load.abort();
}

#[tokio::test]
async fn route_metrics_have_templates_and_no_ids() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http2();
    for chat in 100..105 {
        client
            .get(setup.gateway.url(&format!("/api/chat/{chat}")))
            .bearer_auth(setup.issuer.token(7))
            .send()
            .await
            .unwrap();
    }
    let metrics = crate::support::eventually("the request metrics", async || {
        Some(setup.gateway.metrics().await).filter(|metrics| metrics.contains("http_server_request_duration"))
    })
    .await;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("http_server_request_duration_seconds_count") && line.contains("/api/chat/{id}"))
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(
        line.contains("http_request_method=\"GET\"") && line.contains("http_response_status_code=\"200\""),
        "{line}"
    );
    assert!(line.ends_with(" 5"), "{line}");
    assert!(!metrics.contains("/api/chat/100"));
}
