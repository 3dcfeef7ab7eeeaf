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
