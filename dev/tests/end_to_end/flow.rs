//! The conversation of the product: people, chats of each kind, a message on another's screen and in search.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Client;

const PASSWORD: &str = "correct horse battery";

/// How long the message took.
#[derive(Debug)]
pub struct Report {
    pub delivered_after: Duration,
    pub found_after: Duration,
}

/// Somebody who signed in.
pub struct Person {
    pub id: i64,
    pub token: String,
}

/// Runs the whole conversation; an error names its step.
pub async fn conversation(client: &Client) -> Result<Report, String> {
    let unique =
        format!("{}-{:?}", std::process::id(), Instant::now()).replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let workspace = format!("Team {}", &unique[unique.len().saturating_sub(40)..]);
    let ada = sign_up(client, &workspace, "ada", None).await?;
    let invitation = client
        .call(
            "invite",
            Method::POST,
            "/api/workspace/invitations",
            Some(&ada.token),
            Some(json!({"max_uses": 3})),
        )
        .await?;
    let token = invitation["token"].as_str();
    let bob = sign_up(client, &workspace, "bob", token).await?;
    let cy = sign_up(client, &workspace, "cy", token).await?;
    let eve = sign_up(client, &workspace, "eve", token).await?;

    let mut chats = Vec::new();
    for body in [
        json!({"kind": "single", "member_ids": [bob.id]}),
        json!({"kind": "group", "name": "Lunch", "member_ids": [bob.id, cy.id]}),
        json!({"kind": "private_channel", "name": "plans", "member_ids": [bob.id]}),
        json!({"kind": "public_channel", "name": "general", "member_ids": [bob.id]}),
    ] {
        let chat = client
            .call("create chat", Method::POST, "/api/chat", Some(&ada.token), Some(body))
            .await?;
        chats.push(chat["id"].as_i64().ok_or("create chat: no id")?);
    }

    let mut stream = client.events(&bob.token).await?;
    stream.next("ready").await?;
    let mut others_stream = client.events(&eve.token).await?;
    others_stream.next("ready").await?;

    let text = format!("The quarterly budget is ready, {unique}");
    let path = format!("/api/chat/{}/messages", chats[1]);
    let sent_at = Instant::now();
    let sent = client
        .call(
            "send",
            Method::POST,
            &path,
            Some(&ada.token),
            Some(json!({"content": text})),
        )
        .await?;
    let event = stream.next("message.created").await?;
    let delivered_after = sent_at.elapsed();
    if event.data["message"] != sent {
        return Err(format!("events: {} is not the message {sent}", event.data));
    }
    if event.id.is_empty() {
        return Err("events: a message without a cursor".to_owned());
    }
    let listed = client.call("list", Method::GET, &path, Some(&bob.token), None).await?;
    if listed["items"][0] != sent {
        return Err(format!("list: {listed} does not begin with {sent}"));
    }
    let found_after = find(client, &bob, &sent, sent_at).await?;

    // Who is not a member sees nothing of it, anywhere.
    let (status, _) = client.raw(Method::GET, &path, Some(&eve.token), None).await?;
    if status != 404 {
        return Err(format!("list: a stranger got {status}"));
    }
    let hits = client
        .call(
            "search",
            Method::GET,
            "/api/search/messages?q=budget",
            Some(&eve.token),
            None,
        )
        .await?;
    if hits["hits"] != json!([]) || hits["estimated_total"] != 0 {
        return Err(format!("search: a stranger found {hits}"));
    }
    // A later event of her own arrives, and nothing of the group came before it.
    let own = json!({"kind": "private_channel", "name": "eve's"});
    client
        .call("create chat", Method::POST, "/api/chat", Some(&eve.token), Some(own))
        .await?;
    loop {
        match others_stream.next_any().await?.as_str() {
            "chat.created" => break,
            kind if kind.starts_with("message.") || kind.starts_with("member.") => {
                return Err(format!("events: a stranger was told of a {kind} that is not hers"));
            }
            _ => {}
        }
    }
    Ok(Report {
        delivered_after,
        found_after,
    })
}

/// Signs somebody up, and in.
pub async fn sign_up(client: &Client, workspace: &str, name: &str, invitation: Option<&str>) -> Result<Person, String> {
    let email = format!("{name}.{}@example.org", workspace.replace(' ', ""));
    let body = json!({
        "fullname": name, "email": email, "password": PASSWORD, "workspace": workspace, "invitation": invitation,
    });
    let tokens = client
        .call("sign up", Method::POST, "/api/signup", None, Some(body))
        .await?;
    // The token of a sign-in, so that signing in is part of the way.
    let body = json!({"email": email, "password": PASSWORD});
    let signed_in = client
        .call("sign in", Method::POST, "/api/signin", None, Some(body))
        .await?;
    Ok(Person {
        id: tokens["user"]["id"].as_i64().ok_or("sign up: no id")?,
        token: signed_in["access_token"]
            .as_str()
            .ok_or("sign in: no token")?
            .to_owned(),
    })
}

/// Searches until the message is found, and says how long after it was sent.
async fn find(client: &Client, person: &Person, sent: &Value, sent_at: Instant) -> Result<Duration, String> {
    loop {
        let path = "/api/search/messages?q=quarterly%20budg";
        let found = client
            .call("search", Method::GET, path, Some(&person.token), None)
            .await?;
        let hits = found["hits"].as_array().ok_or("search: no hits")?;
        if hits.iter().any(|hit| hit["message"]["id"] == sent["id"]) {
            return Ok(sent_at.elapsed());
        }
        if sent_at.elapsed() > Duration::from_secs(10) {
            return Err(format!("search: not found within 10 s: {found}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
