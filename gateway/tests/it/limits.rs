//! Rate limits through the whole gateway.

use futures::future::join_all;

use crate::support::{problem, setup};

#[tokio::test]
async fn exactly_the_quota_passes_and_the_fields_say_so() {
    let setup = setup(&[("RATE_LIMITS__READ", "{requests=20,window_seconds=3600}")]).await;
    let client = setup.gateway.http2();
    let noisy = setup.issuer.token(7);
    let url = setup.gateway.url("/api/me");
    let answers = join_all((0..50).map(|_| client.get(&url).bearer_auth(&noisy).send())).await;
    let (mut passed, mut limited) = (0, 0);
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.headers()["ratelimit-policy"], "\"read\";q=20;w=3600");
        if answer.status() == 200 {
            passed += 1;
        } else {
            limited += 1;
            let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((170..=180).contains(&wait), "{wait}");
            let state = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
            assert_eq!(state, format!("\"read\";r=0;t={wait}"));
            let body = problem(answer, 429, "rate_limited").await;
            assert_eq!(body["retry_after"], wait);
        }
    }
    assert_eq!((passed, limited), (20, 30));
    assert_eq!(setup.upstream.requests().len(), 20);

    // Another user, another session of whom nobody has heard, is not touched.
    let quiet = client
        .get(&url)
        .bearer_auth(setup.issuer.token(8))
        .send()
        .await
        .unwrap();
    assert_eq!(quiet.status(), 200);
    // The same user by another token is the same user.
    let again = client
        .get(&url)
        .bearer_auth(setup.issuer.token(7))
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), 429);
}

#[tokio::test]
async fn strangers_are_limited_by_address() {
    let setup = setup(&[
        ("RATE_LIMITS__AUTH", "{requests=3,window_seconds=3600}"),
        ("TRUSTED_PROXIES", "[\"127.0.0.0/8\"]"),
    ])
    .await;
    let client = setup.gateway.http2();
    let sign_in = async |address: &str| {
        let request = client
            .post(setup.gateway.url("/api/signin"))
            .header("x-forwarded-for", address);
        request.body("{}").send().await.unwrap().status().as_u16()
    };
    for _ in 0..3 {
        assert_eq!(sign_in("2001:db8::1").await, 200);
    }
    assert_eq!(sign_in("2001:db8::2").await, 429, "the same /64");
    assert_eq!(sign_in("2001:db8:0:1::1").await, 200, "another /64");
    assert_eq!(sign_in("192.0.2.1").await, 200);
}
