//! Who may pass: forgeries, rotation, an absent key source.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fechatter_core::token::Claims;
use jsonwebtoken::{Algorithm, EncodingKey, Header};

use crate::support::issuer::{Key, claims};
use crate::support::{Gateway, Issuer, Reply, Upstream, eventually, problem, setup};

#[tokio::test]
async fn forgeries_are_401_and_reach_nobody() {
    // So that the longest is judged as a token; by default it is 431 as too long a field.
    let setup = setup(&[("LIMITS__HEADER_BYTES", "131072")]).await;
    let (key, good) = (&setup.issuer.key, claims(7));
    let signed = key.sign(&good);
    let payload = signed.split('.').nth(1).unwrap().to_owned();
    let header = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let mut symmetric = Header::new(Algorithm::HS256);
    symmetric.kid = Some(key.kid.clone());
    let now = good.iat;
    let with = |change: &dyn Fn(&mut Claims)| {
        let mut changed = good.clone();
        change(&mut changed);
        key.sign(&changed)
    };
    let mut future = serde_json::to_value(&good).unwrap();
    future["nbf"] = (now + 600).into();
    let mut tampered = signed.clone().into_bytes();
    let middle = signed.find('.').unwrap() + 10;
    tampered[middle] = if tampered[middle] == b'A' { b'B' } else { b'A' };

    let forgeries = [
        (
            "none",
            format!("{}.{payload}.", header(r#"{"alg":"none","kid":"first"}"#)),
        ),
        (
            "none with signature",
            format!("{}.{payload}.AAAA", header(r#"{"alg":"None","kid":"first"}"#)),
        ),
        (
            "HS256 with the public key",
            jsonwebtoken::encode(&symmetric, &good, &EncodingKey::from_secret(&key.public)).unwrap(),
        ),
        ("another key, same kid", Key::new("first").sign(&good)),
        ("unknown kid", Key::new("other").sign(&good)),
        ("no kid", format!("{}.{payload}.AAAA", header(r#"{"alg":"EdDSA"}"#))),
        ("expired", with(&|claims| claims.exp = now - 60)),
        ("not yet valid", key.sign(&future)),
        ("wrong issuer", with(&|claims| claims.iss = "evil".into())),
        ("wrong audience", with(&|claims| claims.aud = "evil".into())),
        ("no user", with(&|claims| claims.sub = "0".into())),
        ("truncated", signed[..signed.len() - 8].to_owned()),
        ("tampered", String::from_utf8(tampered).unwrap()),
        ("two parts", signed.rsplit_once('.').unwrap().0.to_owned()),
        ("not a token", "x".to_owned()),
        ("very long", "x".repeat(16_000)),
        ("64 KiB", format!("{signed}{}", "x".repeat(65_536))),
    ];
    let client = setup.gateway.http2();
    for (name, token) in forgeries {
        let answer = client
            .get(setup.gateway.url("/api/me"))
            .bearer_auth(&token)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 401, "{name}");
        assert_eq!(
            answer.headers()["www-authenticate"],
            "Bearer error=\"invalid_token\"",
            "{name}"
        );
        problem(answer, 401, "invalid_token").await;
    }
    for authorization in ["Basic QTpC", "Bearer", "bearer ", "Token x"] {
        let answer = client
            .get(setup.gateway.url("/api/me"))
            .header("authorization", authorization)
            .send()
            .await
            .unwrap();
        problem(answer, 401, "invalid_token").await;
    }
    let twice = client
        .get(setup.gateway.url("/api/me"))
        .bearer_auth(&signed)
        .bearer_auth(&signed)
        .send()
        .await
        .unwrap();
    problem(twice, 401, "invalid_token").await;
    let absent = client.get(setup.gateway.url("/api/me")).send().await.unwrap();
    assert_eq!(absent.headers()["www-authenticate"], "Bearer");
    problem(absent, 401, "unauthenticated").await;
    assert!(setup.upstream.bytes().is_empty());

    let good = client
        .get(setup.gateway.url("/api/me"))
        .bearer_auth(&signed)
        .send()
        .await
        .unwrap();
    assert_eq!(good.status(), 200);
}

#[tokio::test]
async fn a_new_key_is_fetched_when_first_seen_and_an_old_one_goes_with_the_set() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http2();
    let status = async |token: &str| {
        client
            .get(setup.gateway.url("/api/me"))
            .bearer_auth(token)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let old = setup.issuer.token(7);
    assert_eq!(status(&old).await, 200);

    let (first, second) = (setup.issuer.key.clone(), Key::new("second"));
    setup.issuer.publish(vec![first, second.clone()]);
    let new = second.sign(&claims(7));
    assert_eq!(
        status(&new).await,
        200,
        "the first request with a new key already works"
    );
    assert_eq!(status(&old).await, 200);

    // The key source is away: what is known keeps working, unknown keys stay unknown.
    setup.issuer.server.kill();
    assert_eq!(status(&new).await, 200);
    assert_eq!(status(&Key::new("third").sign(&claims(7))).await, 401);
}

#[tokio::test]
async fn keys_change_under_load_and_no_request_fails() {
    let setup = setup(&[("RATE_LIMITS__READ", "{requests=1000000,window_seconds=1}")]).await;
    let url = setup.gateway.url("/api/me");
    let (old, new) = (setup.issuer.key.clone(), Key::new("second"));
    setup.issuer.publish(vec![old.clone(), new.clone()]);
    let mut load = tokio::task::JoinSet::new();
    // A user's id is at least 1.
    for worker in 1..=8 {
        // Both at once from the first request on, by connections that several threads serve.
        let key = if worker % 2 == 0 { &new } else { &old };
        let (client, token, url) = (setup.gateway.http2(), key.sign(&claims(worker)), url.clone());
        load.spawn(async move {
            for _ in 0..50 {
                assert_eq!(client.get(&url).bearer_auth(&token).send().await.unwrap().status(), 200);
            }
        });
    }
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn without_keys_nobody_passes_and_with_them_everybody_does() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let address = issuer.server.address;
    issuer.server.kill();
    let gateway = Gateway::start_unready(&issuer, &[&upstream], &[]).await;
    let client = gateway.http2();
    let get = async |path: &str| {
        let request = client.get(gateway.url(path)).bearer_auth(issuer.token(7));
        request.send().await.unwrap()
    };
    let answer = get("/api/me").await;
    assert_eq!(answer.headers()["retry-after"], "1");
    problem(answer, 503, "unavailable").await;
    assert_eq!(get("/openapi.json").await.status(), 200, "what needs no token goes on");
    let ready = reqwest::get(format!("http://{}/ready", gateway.admin)).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.text().await.unwrap(), "not ready: no signing keys fetched yet\n");
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.target() == "/openapi.json")
    );

    let key = issuer.key.jwk();
    let _back = Upstream::bind(address, move |_| Reply::json(200, &serde_json::json!({"keys": [key]}))).await;
    eventually("the keys", async || {
        (get("/api/me").await.status() == 200).then_some(())
    })
    .await;
}

/// The same id with another key, as after a restore or a mistake: what was remembered of the old one is worth nothing.
#[tokio::test]
async fn a_key_id_used_again_ends_the_tokens_of_the_key_before() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http2();
    let status = async |token: &str| {
        let request = client.get(setup.gateway.url("/api/me")).bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    let old = setup.issuer.token(7);
    assert_eq!(status(&old).await, 200);
    let again = Key::new(&setup.issuer.key.kid);
    setup.issuer.publish(vec![again.clone()]);
    // A key nobody knows has the set fetched.
    assert_eq!(status(&Key::new("unknown").sign(&claims(7))).await, 401);
    assert_eq!(status(&old).await, 401);
    assert_eq!(status(&again.sign(&claims(7))).await, 200);
}

#[tokio::test]
async fn unknown_keys_cause_few_fetches() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http2();
    let before = setup.issuer.server.requests().len();
    for number in 0..50 {
        let token = Key::new(&format!("unknown-{number}")).sign(&claims(7));
        let answer = client
            .get(setup.gateway.url("/api/me"))
            .bearer_auth(token)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 401);
    }
    let fetched = setup.issuer.server.requests().len() - before;
    assert!((1..=5).contains(&fetched), "{fetched} fetches for 50 unknown keys");
}

#[tokio::test]
async fn verdicts_are_counted() {
    let setup = setup(&[]).await;
    let client = setup.gateway.http2();
    let token = setup.issuer.token(7);
    for _ in 0..3 {
        client
            .get(setup.gateway.url("/api/me"))
            .bearer_auth(&token)
            .send()
            .await
            .unwrap();
    }
    client.get(setup.gateway.url("/api/me")).send().await.unwrap();
    eventually("token metrics", async || {
        let metrics = setup.gateway.metrics().await;
        let has = |verdict: &str, count: u32| {
            metrics.lines().any(|line| {
                line.starts_with("gateway_tokens")
                    && line.contains(&format!("verdict=\"{verdict}\""))
                    && line.ends_with(&format!(" {count}"))
            })
        };
        (has("verified", 1) && has("remembered", 2) && has("absent", 1)).then_some(())
    })
    .await;
}
