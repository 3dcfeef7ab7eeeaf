//! A demo workspace with people, channels and a few hundred messages, made through the public API.

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::http;

/// Name of the demo workspace.
pub const WORKSPACE: &str = "Analytical Engines";
/// Password of everybody in it.
pub const PASSWORD: &str = "demo demo demo";

const PEOPLE: [(&str, &str); 6] = [
    ("Ada Lovelace", "ada@demo.example"),
    ("Charles Babbage", "charles@demo.example"),
    ("Grace Hopper", "grace@demo.example"),
    ("Alan Turing", "alan@demo.example"),
    ("Edsger Dijkstra", "edsger@demo.example"),
    ("Barbara Liskov", "barbara@demo.example"),
];

const CHANNELS: [(&str, &str); 4] = [
    ("general", "What concerns everybody"),
    ("engine", "The machine itself: gears, cards, the mill and the store"),
    ("releases", "What ships, and when"),
    ("random", "Tea, weather, puzzles"),
];

const SUBJECTS: [&str; 10] = [
    "the difference engine",
    "the punched cards",
    "the store",
    "the mill",
    "the compiler",
    "the nightly build",
    "the tea kettle",
    "the release notes",
    "the proof",
    "the crank handle",
];
const REMARKS: [&str; 10] = [
    "needs oil before Friday",
    "passed every test this morning",
    "is quicker than yesterday, by a third",
    "made a strange noise again: see https://example.org/noise",
    "should be reviewed by somebody with fresh eyes",
    "is documented at last",
    "lost a tooth; spare parts are on their way",
    "wants a name, 提案を歓迎します",
    "survived being switched off in the middle of a sum",
    "is the talk of the café",
];

/// Talks to chat_service as one user.
struct Person {
    port: u16,
    token: String,
    id: i64,
}

impl Person {
    fn call(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = (!body.is_null()).then_some(body);
        let answer = http::request(self.port, method, path, Some(&self.token), body)?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {} {}", answer.status, answer.body);
        }
        Ok(answer.json())
    }
}

/// Makes the demo workspace unless it is there; returns whether it was made. `port` is chat_service's own.
pub fn run(port: u16, messages: usize, say: &dyn Fn(&str)) -> anyhow::Result<bool> {
    let sign_in = json!({"email": PEOPLE[0].1, "password": PASSWORD});
    if http::request(port, "POST", "/api/signin", None, Some(&sign_in))?.status == 200 {
        return Ok(false);
    }
    let owner = sign_up(port, PEOPLE[0], None)?;
    let invitation = owner.call("POST", "/api/workspace/invitations", &json!({"max_uses": PEOPLE.len()}))?;
    let mut people = vec![owner];
    for person in &PEOPLE[1..] {
        people.push(sign_up(port, *person, invitation["token"].as_str())?);
    }
    let others: Vec<i64> = people[1..].iter().map(|person| person.id).collect();
    let mut chats = Vec::new();
    for (name, description) in CHANNELS {
        let body = json!({"kind": "public_channel", "name": name, "description": description, "member_ids": others});
        chats.push(
            people[0].call("POST", "/api/chat", &body)?["id"]
                .as_i64()
                .context("a chat without an id")?,
        );
    }
    for body in [
        json!({"kind": "group", "name": "Lunch", "member_ids": others[..3]}),
        json!({"kind": "private_channel", "name": "founders", "member_ids": others[..1]}),
        json!({"kind": "single", "member_ids": others[..1]}),
    ] {
        people[0].call("POST", "/api/chat", &body)?;
    }
    for number in 0..messages {
        // Strides without a common factor, so that people, chats and texts do not march in step.
        let person = &people[number * 5 % people.len()];
        let chat = chats[number * 3 % chats.len()];
        let text = format!(
            "{} {}",
            capitalise(SUBJECTS[number * 7 % SUBJECTS.len()]),
            REMARKS[(number / 3 + number) % REMARKS.len()]
        );
        let body = json!({"content": text, "idempotency_key": format!("seed-{number}")});
        person.call("POST", &format!("/api/chat/{chat}/messages"), &body)?;
        if (number + 1) % 100 == 0 {
            say(&format!("seeding: {} of {messages} messages", number + 1));
        }
    }
    Ok(true)
}

fn sign_up(port: u16, (fullname, email): (&str, &str), invitation: Option<&str>) -> anyhow::Result<Person> {
    let body = json!({
        "fullname": fullname, "email": email, "password": PASSWORD, "workspace": WORKSPACE, "invitation": invitation,
    });
    let answer = http::request(port, "POST", "/api/signup", None, Some(&body))?;
    if answer.status != 201 {
        bail!("cannot sign up {email}: {} {}", answer.status, answer.body);
    }
    let tokens = answer.json();
    Ok(Person {
        port,
        token: tokens["access_token"].as_str().context("no access token")?.to_owned(),
        id: tokens["user"]["id"].as_i64().context("no user id")?,
    })
}

fn capitalise(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
        .unwrap_or_default()
}

/// Who can sign in to the demo.
pub fn logins() -> String {
    PEOPLE
        .iter()
        .map(|(name, email)| format!("  {email} ({name})"))
        .collect::<Vec<_>>()
        .join("\n")
}
