//! `cargo dev schemathesis`: the API, tested from its own description by requests that nobody thought of.

use std::process::Stdio;

use anyhow::{Context, bail};
use dev::platform::Platform;
use dev::{http, install, tools};
use serde_json::{Value, json};

use crate::cargo::{self, Build, Stop, repository};
use crate::lines::say;

/// Options of `cargo dev schemathesis`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Requests made up for each operation, at most.
    #[arg(long, default_value_t = 30)]
    examples: u32,
    /// Makes the same requests again.
    #[arg(long)]
    seed: Option<u64>,
    /// Passed on to Schemathesis.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// A password for people who exist for a few minutes.
const PASSWORD: &str = "as long as it lasts";
/// Limits have tests of their own; here they would hide what is behind them.
const UNLIMITED: &str = "{requests=1000000,window_seconds=1}";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    let program = tools::python_program("schemathesis", tools::SCHEMATHESIS, &say)?;
    say("building");
    let binaries = cargo::build(Build::Tests, &stop)?;
    say("starting the platform");
    let mut env: Vec<(String, String)> = ["AUTH", "SEND", "READ", "SEARCH", "STREAM", "WORKSPACE", "REFUSED"]
        .iter()
        .map(|class| (format!("FECHATTER_GATEWAY__RATE_LIMITS__{class}"), UNLIMITED.to_owned()))
        .collect();
    // Streams that end within seconds, so that one can be read to its end.
    env.push(("FECHATTER_NOTIFY__STREAM__ROTATE_SECONDS".to_owned(), "5".to_owned()));
    for name in ["MIN", "MAX"] {
        env.push((
            format!("FECHATTER_NOTIFY__STREAM__HEARTBEAT_{name}_SECONDS"),
            "1".to_owned(),
        ));
    }
    let platform = Platform::temporary_from(&binaries, &[], &env)?;

    let chat = platform.ports().chat;
    let main = sign_up(chat, "main", None)?.token;
    let peer = sign_up(chat, "peer", None)?.token;
    sign_up(chat, "spare", None)?;
    let things = furnish(chat, &main)?;
    let folder = tempfile::tempdir()?;
    let users = folder.path().join("users.json");
    std::fs::write(
        &users,
        json!({"auth": [header("main", &main), header("peer", &peer)]}).to_string(),
    )?;

    say("schemathesis: all checks, through the gateway");
    let ca = platform.ca();
    let mut command = program.command();
    command
        .arg("--config-file")
        .arg(repository().join("dev/schemathesis/schemathesis.toml"))
        .arg("run")
        .arg(format!("{}/openapi.json", platform.url()))
        .arg("--tls-verify")
        .arg(&ca)
        .args(["--auth-wfc-user", "main", "--auth-wfc"])
        .arg(&users)
        .args(["--max-examples", &args.examples.to_string()]);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    let status = command
        .args(&args.rest)
        .env("SCHEMATHESIS_HOOKS", repository().join("dev/schemathesis/hooks.py"))
        .env("MAIN_TOKEN", &main)
        .env("THINGS", things.to_string())
        .env("SIGN_IN_URL", format!("http://127.0.0.1:{chat}/api/signin"))
        .env(
            "SPARE_CREDENTIALS",
            json!({"email": "spare@example.org", "password": PASSWORD}).to_string(),
        )
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .status()
        .context("cannot run schemathesis")?;
    if !status.success() {
        bail!("schemathesis found failures; they are above, each with a curl command");
    }
    Ok(())
}

/// Somebody who signed up.
struct Person {
    id: i64,
    token: String,
}

/// The owner of a new workspace, or by invitation a member of the main one.
fn sign_up(port: u16, name: &str, invitation: Option<&str>) -> anyhow::Result<Person> {
    let workspace = if invitation.is_some() { "main" } else { name };
    let body = json!({
        "fullname": name,
        "email": format!("{name}@example.org"),
        "password": PASSWORD,
        "workspace": format!("Workspace of {workspace}"),
        "invitation": invitation,
    });
    let tokens = call(port, None, "/api/signup", &body)?;
    Ok(Person {
        id: tokens["user"]["id"].as_i64().context("no user id")?,
        token: tokens["access_token"].as_str().context("no token")?.to_owned(),
    })
}

fn call(port: u16, token: Option<&str>, path: &str, body: &Value) -> anyhow::Result<Value> {
    let answer = http::request(port, "POST", path, token, Some(body))?;
    if !(200..300).contains(&answer.status) {
        bail!("POST {path}: {} {}", answer.status, answer.body);
    }
    Ok(answer.json())
}

/// People, chats of every kind and messages, so that requests meet something; and some that may be taken away.
fn furnish(port: u16, token: &str) -> anyhow::Result<Value> {
    let call = |path: &str, body: Value| call(port, Some(token), path, &body);
    let invitation = call("/api/workspace/invitations", json!({"max_uses": 8}))?;
    let mut people = Vec::new();
    for number in 0..8 {
        let name = format!("member{number}");
        people.push(sign_up(port, &name, invitation["token"].as_str())?.id);
    }
    let doomed_people = people.split_off(4);
    let mut chats = Vec::new();
    let mut messages = serde_json::Map::new();
    for body in [
        json!({"kind": "group", "member_ids": &people}),
        json!({"kind": "single", "member_ids": &people[..1]}),
        json!({"kind": "private_channel", "name": "private", "member_ids": &people}),
        json!({"kind": "public_channel", "name": "public", "member_ids": &people}),
    ] {
        let chat = call("/api/chat", body)?["id"].clone();
        let mut sent = Vec::new();
        for number in 1..=3 {
            let message = json!({"content": format!("message {number}")});
            sent.push(call(&format!("/api/chat/{chat}/messages"), message)?["id"].clone());
        }
        messages.insert(chat.to_string(), json!(sent));
        chats.push(chat);
    }
    let mut doomed_chats = Vec::new();
    for number in 0..200 {
        let chat = json!({"kind": "public_channel", "name": format!("doomed {number}")});
        doomed_chats.push(call("/api/chat", chat)?["id"].clone());
    }
    Ok(json!({
        "chats": chats,
        "doomed_chats": doomed_chats,
        "messages": messages,
        "users": people,
        "doomed_users": doomed_people,
    }))
}

/// A user as the Web Fuzzing Commons format has it.
fn header(name: &str, token: &str) -> Value {
    json!({"name": name, "fixedHeaders": [{"name": "Authorization", "value": format!("Bearer {token}")}]})
}
