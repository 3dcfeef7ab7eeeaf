//! A demo workspace with people, channels and a few hundred messages, made through the public API.

use std::path::Path;

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
    fn from_tokens(port: u16, tokens: &Value) -> anyhow::Result<Self> {
        Ok(Self {
            port,
            token: tokens["access_token"].as_str().context("no access token")?.to_owned(),
            id: tokens["user"]["id"].as_i64().context("no user id")?,
        })
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = (!body.is_null()).then_some(body);
        let answer = http::request(self.port, method, path, Some(&self.token), body)?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {} {}", answer.status, answer.body);
        }
        Ok(answer.json())
    }
}

/// Makes the demo workspace unless it is there; returns whether it was made. `port` is chat_service's own, `marker` a
/// file that says that it was finished. One that was interrupted is completed: each step finds what is there.
pub fn run(port: u16, messages: usize, marker: &Path, say: &dyn Fn(&str)) -> anyhow::Result<bool> {
    if marker.exists() && sign_in(port, PEOPLE[0])?.is_some() {
        return Ok(false);
    }
    let owner = enter(port, PEOPLE[0], None)?;
    let invitation = owner.call("POST", "/api/workspace/invitations", &json!({"max_uses": PEOPLE.len()}))?;
    let mut people = vec![owner];
    for person in &PEOPLE[1..] {
        people.push(enter(port, *person, invitation["token"].as_str())?);
    }
    let others: Vec<i64> = people[1..].iter().map(|person| person.id).collect();
    let chats = make_chats(&people[0], &others)?;
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
    std::fs::write(marker, WORKSPACE).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(true)
}

/// Makes the chats that are not there and returns the ids of the public channels.
fn make_chats(owner: &Person, others: &[i64]) -> anyhow::Result<Vec<i64>> {
    let existing = owner.call("GET", "/api/chat?limit=100", &Value::Null)?;
    let ensure = |body: Value| -> anyhow::Result<i64> {
        let items = existing["items"].as_array();
        let found = items
            .into_iter()
            .flatten()
            .find(|chat| chat["name"] == body["name"] && chat["kind"] == body["kind"]);
        let chat = match found {
            Some(chat) => chat.clone(),
            None => owner.call("POST", "/api/chat", &body)?,
        };
        chat["id"].as_i64().context("a chat without an id")
    };
    let mut channels = Vec::new();
    for (name, description) in CHANNELS {
        channels.push(ensure(
            json!({"kind": "public_channel", "name": name, "description": description, "member_ids": others}),
        )?);
    }
    ensure(json!({"kind": "group", "name": "Lunch", "member_ids": others[..3]}))?;
    ensure(json!({"kind": "private_channel", "name": "founders", "member_ids": others[..1]}))?;
    ensure(json!({"kind": "single", "member_ids": others[..1]}))?;
    Ok(channels)
}

/// Signs somebody in, or up when there is no such person yet.
fn enter(port: u16, person: (&str, &str), invitation: Option<&str>) -> anyhow::Result<Person> {
    match sign_in(port, person)? {
        Some(person) => Ok(person),
        None => sign_up(port, person, invitation),
    }
}

fn sign_in(port: u16, (_, email): (&str, &str)) -> anyhow::Result<Option<Person>> {
    let body = json!({"email": email, "password": PASSWORD});
    let answer = http::request(port, "POST", "/api/signin", None, Some(&body))?;
    match answer.status {
        200 => Person::from_tokens(port, &answer.json()).map(Some),
        401 => Ok(None),
        status => bail!("cannot sign in {email}: {status} {}", answer.body),
    }
}

fn sign_up(port: u16, (fullname, email): (&str, &str), invitation: Option<&str>) -> anyhow::Result<Person> {
    let body = json!({
        "fullname": fullname, "email": email, "password": PASSWORD, "workspace": WORKSPACE, "invitation": invitation,
    });
    let answer = http::request(port, "POST", "/api/signup", None, Some(&body))?;
    if answer.status != 201 {
        bail!("cannot sign up {email}: {} {}", answer.status, answer.body);
    }
    Person::from_tokens(port, &answer.json())
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
