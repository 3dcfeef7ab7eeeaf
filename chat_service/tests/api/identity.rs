//! Sign-up, invitations, sign-in, refresh, sessions, logout.

use std::time::{Duration, Instant};

use argon2::password_hash::PasswordHasher;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{Answer, App, PASSWORD, answer, assert_problem};

#[tokio::test]
async fn a_new_name_makes_a_workspace_and_its_owner() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (status, me) = owner.get("/api/me").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(me["role"], "owner");
    let (_, workspace) = owner.get("/api/workspace").await;
    assert_eq!(workspace["owner_id"], owner.id);
    assert_eq!(workspace["name"], owner.workspace);
}

#[tokio::test]
async fn knowing_a_workspace_lets_nobody_in() {
    let app = App::start().await;
    let owner = app.owner().await;
    let sign_up = |invitation: serde_json::Value, email: &str| {
        json!({"fullname": "Eve", "email": email, "password": PASSWORD,
               "workspace": owner.workspace.to_uppercase(), "invitation": invitation})
    };
    let refused = app
        .anonymous(
            Method::POST,
            "/api/signup",
            Some(sign_up(json!(null), "eve@example.org")),
        )
        .await;
    assert_problem(&refused, 403, "forbidden");
    let refused = app
        .anonymous(
            Method::POST,
            "/api/signup",
            Some(sign_up(json!("guess"), "eve@example.org")),
        )
        .await;
    assert_problem(&refused, 403, "forbidden");
    // Another workspace's invitation is none.
    let elsewhere = app.owner().await;
    let (_, invitation) = elsewhere.post("/api/workspace/invitations", json!({})).await;
    let refused = app
        .anonymous(
            Method::POST,
            "/api/signup",
            Some(sign_up(invitation["token"].clone(), "eve@example.org")),
        )
        .await;
    assert_problem(&refused, 403, "forbidden");
}

#[tokio::test]
async fn an_invitation_is_used_up_revoked_and_bound_to_an_address() {
    let app = App::start().await;
    let owner = app.owner().await;
    let sign_up = |token: serde_json::Value, email: String| json!({"fullname": "New", "email": email, "password": PASSWORD, "workspace": owner.workspace, "invitation": token});
    let (status, invitation) = owner.post("/api/workspace/invitations", json!({"max_uses": 2})).await;
    assert_eq!(status, StatusCode::CREATED);
    for (number, expected) in [(1, 201), (2, 201), (3, 403)] {
        let body = sign_up(
            invitation["token"].clone(),
            format!("multi{number}-{}@example.org", owner.id),
        );
        let (status, body) = app.anonymous(Method::POST, "/api/signup", Some(body)).await;
        assert_eq!(status, expected, "{body}");
    }
    let (_, bound) = owner
        .post("/api/workspace/invitations", json!({"email": "Grace@Example.org"}))
        .await;
    let refused = app
        .anonymous(
            Method::POST,
            "/api/signup",
            Some(sign_up(bound["token"].clone(), "x@example.org".into())),
        )
        .await;
    assert_problem(&refused, 403, "forbidden");
    let (status, _) = app
        .anonymous(
            Method::POST,
            "/api/signup",
            Some(sign_up(bound["token"].clone(), "grace@example.org".into())),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, revoked) = owner.post("/api/workspace/invitations", json!({})).await;
    let (status, _) = owner
        .delete(&format!("/api/workspace/invitations/{}", revoked["id"]))
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let refused = app
        .anonymous(
            Method::POST,
            "/api/signup",
            Some(sign_up(revoked["token"].clone(), "y@example.org".into())),
        )
        .await;
    assert_problem(&refused, 403, "forbidden");
    let (_, list) = owner.get("/api/workspace/invitations").await;
    assert_eq!(
        list["items"].as_array().unwrap().len(),
        0,
        "used up and revoked ones are gone: {list}"
    );
}

#[tokio::test]
async fn an_email_has_one_account_whatever_its_case() {
    let app = App::start().await;
    let owner = app.owner().await;
    let body =
        json!({"fullname": "Twin", "email": owner.email.to_uppercase(), "password": PASSWORD, "workspace": "Another"});
    assert_problem(
        &app.anonymous(Method::POST, "/api/signup", Some(body)).await,
        409,
        "conflict",
    );
    let body = json!({"email": owner.email.to_uppercase(), "password": PASSWORD});
    assert_eq!(
        app.anonymous(Method::POST, "/api/signin", Some(body)).await.0,
        StatusCode::OK
    );
}

#[tokio::test]
async fn wrong_password_and_unknown_email_are_one_answer_and_are_slowed_down() {
    let app = App::start().await;
    let owner = app.owner().await;
    let mut details = Vec::new();
    for email in [owner.email.as_str(), "nobody@example.org"] {
        let body = json!({"email": email, "password": "not the password"});
        let mut refused = app.anonymous(Method::POST, "/api/signin", Some(body)).await;
        assert_problem(&refused, 401, "invalid_credentials");
        refused.1["request_id"].take();
        details.push(refused.1);
    }
    assert_eq!(details[0], details[1]);
    let body = json!({"email": owner.email, "password": "not the password"});
    for _ in 0..4 {
        app.anonymous(Method::POST, "/api/signin", Some(body.clone())).await;
    }
    // Even the right password waits now.
    let right = json!({"email": owner.email, "password": PASSWORD});
    let slowed = app.anonymous(Method::POST, "/api/signin", Some(right)).await;
    assert_problem(&slowed, 429, "rate_limited");
    assert!(slowed.1["retry_after"].as_u64().unwrap() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_the_same_time_are_no_more_than_one_after_the_other() {
    let app = App::start().await;
    let owner = app.owner().await;
    let guesses = (0..30).map(|number| {
        // However the address is written, it is one account.
        let email = if number % 2 == 0 {
            owner.email.clone()
        } else {
            owner.email.to_uppercase()
        };
        let body = json!({"email": email, "password": format!("guess {number}")});
        app.anonymous(Method::POST, "/api/signin", Some(body))
    });
    let answers = futures::future::join_all(guesses).await;
    let tried = answers
        .iter()
        .filter(|answer| answer.0 == StatusCode::UNAUTHORIZED)
        .count();
    let slowed = answers
        .iter()
        .filter(|answer| answer.0 == StatusCode::TOO_MANY_REQUESTS)
        .count();
    assert_eq!(tried + slowed, 30);
    // Five are free; one more may come when the first second is over.
    assert!((5..=6).contains(&tried), "{tried} guesses");
}

#[tokio::test]
async fn a_success_forgets_the_failures_and_a_refused_hash_costs_nothing() {
    let app = App::start().await;
    let owner = app.owner().await;
    let wrong = json!({"email": owner.email, "password": "not the password"});
    for _ in 0..3 {
        for _ in 0..4 {
            let refused = app.anonymous(Method::POST, "/api/signin", Some(wrong.clone())).await;
            assert_problem(&refused, 401, "invalid_credentials");
        }
        app.sign_in(&owner).await;
    }
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM signin_failures")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

/// Signs in as the gateway would forward it from an address.
async fn sign_in_from(app: &App, address: &str, email: &str, password: &str) -> Answer {
    let body = json!({"email": email, "password": password});
    let request = app.http.post(format!("{}/api/signin", app.url));
    answer(request.header("x-forwarded-for", address).json(&body)).await
}

#[tokio::test]
async fn failing_in_somebodys_name_locks_nobody_out() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (home, away) = ("2001:db8:1:2::7", "198.51.100.1");
    assert_eq!(sign_in_from(&app, home, &owner.email, PASSWORD).await.0, StatusCode::OK);

    // From one address: that address waits, another does not.
    let attacker = "203.0.113.9";
    for _ in 0..5 {
        let refused = sign_in_from(&app, attacker, &owner.email, "guess").await;
        assert_problem(&refused, 401, "invalid_credentials");
    }
    let slowed = sign_in_from(&app, attacker, &owner.email, PASSWORD).await;
    assert_problem(&slowed, 429, "rate_limited");
    assert_eq!(sign_in_from(&app, away, &owner.email, PASSWORD).await.0, StatusCode::OK);

    // From everywhere: new addresses wait, those of old do not.
    for number in 0..3 {
        let refused = sign_in_from(&app, &format!("203.0.113.{}", 20 + number), &owner.email, "guess").await;
        assert_problem(&refused, 401, "invalid_credentials");
    }
    let everywhere =
        "UPDATE signin_failures SET failures = failures + 47 WHERE subject LIKE 'account:%' RETURNING failures";
    let failures: i32 = sqlx::query_scalar(everywhere).fetch_one(&app.owner).await.unwrap();
    assert_eq!(failures, 50, "each address counts for the account");
    let new_address = "192.0.2.1";
    for email in [owner.email.as_str(), "nobody@example.org"] {
        sqlx::query("INSERT INTO signin_failures VALUES ('account:' || $1, 50, now()) ON CONFLICT DO NOTHING")
            .bind(email)
            .execute(&app.owner)
            .await
            .unwrap();
        let slowed = sign_in_from(&app, new_address, email, PASSWORD).await;
        assert_problem(&slowed, 429, "rate_limited");
    }
    // A host of the same network, since of IPv6 a host has a whole one.
    let neighbour = "2001:db8:1:2:aaaa::1";
    for address in [home, neighbour, away] {
        assert_eq!(
            sign_in_from(&app, address, &owner.email, PASSWORD).await.0,
            StatusCode::OK
        );
    }
    // Nor does home guess for ever.
    for _ in 0..5 {
        sign_in_from(&app, home, &owner.email, "guess").await;
    }
    let slowed = sign_in_from(&app, home, &owner.email, PASSWORD).await;
    assert_problem(&slowed, 429, "rate_limited");
}

#[tokio::test]
async fn an_unknown_email_takes_as_long_as_a_wrong_password() {
    let app = App::start().await;
    let (known, gone) = (app.owner().await, app.owner().await);
    sqlx::query("UPDATE users SET deactivated_at = now() WHERE id = $1")
        .bind(gone.id)
        .execute(&app.owner)
        .await
        .unwrap();
    let mut fastest = [Duration::MAX; 3];
    for _ in 0..4 {
        let cases = [
            (known.email.as_str(), "not the password"),
            ("nobody@example.org", "not the password"),
            (gone.email.as_str(), PASSWORD),
        ];
        for (fastest, (email, password)) in fastest.iter_mut().zip(cases) {
            let body = json!({"email": email, "password": password});
            let begun = Instant::now();
            let refused = app.anonymous(Method::POST, "/api/signin", Some(body)).await;
            *fastest = begun.elapsed().min(*fastest);
            assert_problem(&refused, 401, "invalid_credentials");
        }
    }
    // Without a hash an answer takes a small part of the time; a busy machine makes much less of a difference.
    let (quick, slow) = (fastest.iter().min().unwrap(), fastest.iter().max().unwrap());
    assert!(*quick * 3 > *slow, "wrong, unknown, deactivated: {fastest:?}");
}

#[tokio::test]
async fn a_hash_of_weaker_parameters_is_renewed_by_the_right_password() {
    let app = App::start().await;
    let owner = app.owner().await;
    let params = argon2::Params::new(8_192, 1, 1, None).unwrap();
    let weak = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let weak = weak.hash_password(PASSWORD.as_bytes()).unwrap().to_string();
    sqlx::query("UPDATE users SET password_hash = $2 WHERE id = $1")
        .bind(owner.id)
        .bind(&weak)
        .execute(&app.owner)
        .await
        .unwrap();
    let stored = || async {
        let hash = sqlx::query_scalar::<_, String>("SELECT password_hash FROM users WHERE id = $1");
        hash.bind(owner.id).fetch_one(&app.owner).await.unwrap()
    };
    let wrong = json!({"email": owner.email, "password": "not the password"});
    let refused = app.anonymous(Method::POST, "/api/signin", Some(wrong)).await;
    assert_problem(&refused, 401, "invalid_credentials");
    assert_eq!(stored().await, weak);
    app.sign_in(&owner).await;
    assert!(stored().await.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    app.sign_in(&owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_used_by_many_at_once_lets_in_as_many_as_it_says() {
    let app = App::start().await;
    let owner = app.owner().await;
    let (_, invitation) = owner.post("/api/workspace/invitations", json!({"max_uses": 3})).await;
    let sign_ups = (0..8).map(|number| {
        let body = json!({"fullname": "New", "email": format!("crowd{number}@example.org"), "password": PASSWORD,
                          "workspace": owner.workspace, "invitation": invitation["token"]});
        app.anonymous(Method::POST, "/api/signup", Some(body))
    });
    let answers = futures::future::join_all(sign_ups).await;
    let count = |status| answers.iter().filter(|answer| answer.0 == status).count();
    assert_eq!(
        (count(StatusCode::CREATED), count(StatusCode::FORBIDDEN)),
        (3, 5),
        "{answers:?}"
    );
    let (_, users) = owner.get("/api/users").await;
    assert_eq!(
        users["items"].as_array().unwrap().len(),
        4,
        "and nothing is half-written"
    );
}

#[tokio::test]
async fn an_address_that_only_looks_like_another_is_none() {
    let app = App::start().await;
    let number = app.owner().await.id;
    for email in [
        "ada\u{200b}@example.org",
        "\u{ff41}da@example.org",
        "jo@exa\u{308}mple.de",
        "ada\u{0}@example.org",
    ] {
        let body =
            json!({"fullname": "Twin", "email": email, "password": PASSWORD, "workspace": format!("Twins {number}")});
        let refused = app.anonymous(Method::POST, "/api/signup", Some(body)).await;
        assert_problem(&refused, 422, "validation_failed");
        assert_eq!(refused.1["errors"][0]["field"], "email");
        let body = json!({"email": email, "password": PASSWORD});
        let unknown = app.anonymous(Method::POST, "/api/signin", Some(body)).await;
        assert_problem(&unknown, 401, "invalid_credentials");
    }
}

#[tokio::test]
async fn a_refresh_token_works_once_and_its_reuse_ends_the_session() {
    let app = App::start().await;
    let owner = app.owner().await;
    let refresh = |token: &str| json!({"refresh_token": token});
    let both = tokio::join!(
        app.anonymous(Method::POST, "/api/refresh", Some(refresh(&owner.refresh_token))),
        app.anonymous(Method::POST, "/api/refresh", Some(refresh(&owner.refresh_token))),
    );
    let statuses = [both.0.0.as_u16(), both.1.0.as_u16()];
    assert!(
        statuses == [200, 401] || statuses == [401, 200],
        "one of two at once wins: {statuses:?}"
    );
    let winner = if both.0.0.is_success() { both.0.1 } else { both.1.1 };
    // The race itself costs nobody the session.
    let next = app
        .anonymous(
            Method::POST,
            "/api/refresh",
            Some(refresh(winner["refresh_token"].as_str().unwrap())),
        )
        .await;
    assert_eq!(next.0, StatusCode::OK, "{}", next.1);
    // Somebody uses the first token again, later.
    sqlx::query("UPDATE refresh_tokens SET used_at = used_at - interval '1 minute' WHERE used_at IS NOT NULL")
        .execute(&app.owner)
        .await
        .unwrap();
    let reused = app
        .anonymous(Method::POST, "/api/refresh", Some(refresh(&owner.refresh_token)))
        .await;
    assert_problem(&reused, 401, "invalid_token");
    let last = next.1["refresh_token"].as_str().unwrap();
    let after = app.anonymous(Method::POST, "/api/refresh", Some(refresh(last))).await;
    assert_problem(&after, 401, "invalid_token");
    assert!(
        app.events(owner.id)
            .await
            .iter()
            .any(|(kind, _)| kind == "session.revoked")
    );
}

#[tokio::test]
async fn a_browser_keeps_the_refresh_token_in_a_cookie() {
    let app = App::start().await;
    let owner = app.owner().await;
    let body = json!({"email": owner.email, "password": PASSWORD, "refresh_cookie": true});
    let response = app
        .http
        .post(format!("{}/api/signin", app.url))
        .json(&body)
        .send()
        .await
        .unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
    for attribute in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/api"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let tokens: serde_json::Value = response.json().await.unwrap();
    assert!(tokens.get("refresh_token").is_none());
    let pair = cookie.split(';').next().unwrap();
    let refreshed = answer(
        app.http
            .post(format!("{}/api/refresh", app.url))
            .header("cookie", pair)
            .json(&json!({})),
    )
    .await;
    assert_eq!(refreshed.0, StatusCode::OK, "{}", refreshed.1);
    assert!(refreshed.1.get("refresh_token").is_none(), "it stays in the cookie");
    let without = app.anonymous(Method::POST, "/api/refresh", Some(json!({}))).await;
    assert_problem(&without, 401, "unauthenticated");
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_their_user_alone() {
    let app = App::start().await;
    let owner = app.owner().await;
    let phone = app.sign_in(&owner).await;
    let (_, sessions) = owner.get("/api/sessions").await;
    let items = sessions["items"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    assert_eq!(items.iter().filter(|session| session["current"] == true).count(), 1);
    let phone_session = items.iter().find(|session| session["current"] == false).unwrap()["id"]
        .as_str()
        .unwrap();
    let other = app.member(&owner).await;
    let foreign = other.delete(&format!("/api/sessions/{phone_session}")).await;
    assert_problem(&foreign, 404, "not_found");
    assert_eq!(
        owner.delete(&format!("/api/sessions/{phone_session}")).await.0,
        StatusCode::NO_CONTENT
    );
    let refresh = json!({"refresh_token": phone.refresh_token});
    assert_problem(
        &app.anonymous(Method::POST, "/api/refresh", Some(refresh)).await,
        401,
        "invalid_token",
    );
    assert_eq!(owner.post("/api/logout", json!({})).await.0, StatusCode::NO_CONTENT);
    let revoked = app
        .events(owner.id)
        .await
        .into_iter()
        .filter(|(kind, _)| kind == "session.revoked")
        .count();
    assert_eq!(revoked, 2, "the phone's and the own session");
}

#[tokio::test]
async fn sessions_that_ended_long_ago_are_forgotten() {
    let app = App::start().await;
    let owner = app.owner().await;
    let phone = app.sign_in(&owner).await;
    for (age, user) in [("29 days", &owner), ("31 days", &phone)] {
        sqlx::query(
            "UPDATE sessions SET expires_at = now() - $1::interval WHERE id = (
                         SELECT session_id FROM refresh_tokens WHERE token_hash = sha256($2::text::bytea))",
        )
        .bind(age)
        .bind(&user.refresh_token)
        .execute(&app.owner)
        .await
        .unwrap();
    }
    assert_eq!(app.sessions.forget_ended().await.unwrap(), 1);
    let left: Vec<i64> =
        sqlx::query_scalar("SELECT count(*) FROM sessions UNION ALL SELECT count(*) FROM refresh_tokens")
            .fetch_all(&app.owner)
            .await
            .unwrap();
    assert_eq!(left, [1, 1]);
}

#[tokio::test]
async fn a_session_that_cannot_be_refreshed_is_not_listed() {
    let app = App::start().await;
    let owner = app.owner().await;
    app.sign_in(&owner).await;
    sqlx::query("UPDATE refresh_tokens SET expires_at = now() WHERE token_hash <> sha256($1::text::bytea)")
        .bind(&owner.refresh_token)
        .execute(&app.owner)
        .await
        .unwrap();
    let (_, sessions) = owner.get("/api/sessions").await;
    assert_eq!(sessions["items"].as_array().unwrap().len(), 1, "{sessions}");
}

#[tokio::test]
async fn passwords_are_stored_as_argon2id_only() {
    let app = App::start().await;
    let owner = app.owner().await;
    let hash: String = sqlx::query_scalar("SELECT password_hash FROM users WHERE id = $1")
        .bind(owner.id)
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    let tokens: Vec<Vec<u8>> = sqlx::query_scalar("SELECT token_hash FROM refresh_tokens")
        .fetch_all(&app.owner)
        .await
        .unwrap();
    assert!(
        tokens
            .iter()
            .all(|hash| hash.len() == 32 && hash != owner.refresh_token.as_bytes())
    );
}

#[tokio::test]
async fn a_new_password_counts_at_once_and_ends_the_other_sessions() {
    let app = App::start().await;
    let owner = app.owner().await;
    let phone = app.sign_in(&owner).await;
    let change = |present: &str, new: &str| json!({"current_password": present, "new_password": new});
    for (present, new, field) in [
        ("not the password", "another horse", "current_password"),
        ("", "another horse", "current_password"),
        (PASSWORD, "short", "new_password"),
    ] {
        let refused = owner.put("/api/me/password", change(present, new)).await;
        assert_problem(&refused, 422, "validation_failed");
        assert_eq!(refused.1["errors"][0]["field"], field);
    }
    let (status, _) = owner.put("/api/me/password", change(PASSWORD, "another horse")).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let sign_in = |password: &str| Some(json!({"email": owner.email, "password": password}));
    let old = app.anonymous(Method::POST, "/api/signin", sign_in(PASSWORD)).await;
    assert_problem(&old, 401, "invalid_credentials");
    let new = app
        .anonymous(Method::POST, "/api/signin", sign_in("another horse"))
        .await;
    assert_eq!(new.0, StatusCode::OK);
    // The session that asked goes on; the other has ended, for the edge as well.
    for (user, status) in [(&owner, 200), (&phone, 401)] {
        let refresh = Some(json!({"refresh_token": user.refresh_token}));
        assert_eq!(
            app.anonymous(Method::POST, "/api/refresh", refresh).await.0.as_u16(),
            status
        );
    }
    let events = app.events(owner.id).await;
    let revoked = events.iter().filter(|(kind, _)| kind == "session.revoked");
    assert_eq!(revoked.count(), 1);
    // A stolen token does not guess the password faster than a stranger.
    for _ in 0..5 {
        let refused = owner.put("/api/me/password", change("guess", "another horse")).await;
        assert_problem(&refused, 422, "validation_failed");
    }
    let slowed = owner
        .put("/api/me/password", change("another horse", "yet another"))
        .await;
    assert_problem(&slowed, 429, "rate_limited");
}
