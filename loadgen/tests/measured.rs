//! The load generator against a real platform: that it counts right and says what is wrong. Nothing here looks at a clock.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dev::platform::Platform;
use serde_json::{Value, json};

const PASSWORD: &str = "correct horse battery";

/// The binaries of the build that this test belongs to.
fn binaries() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().to_owned()
}

fn loadgen(args: &[&str], out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(args)
        .args(["--seconds", "2", "--warmup", "1", "--connections", "4", "--out"])
        .arg(out)
        .arg("--binaries")
        .arg(binaries())
        .env("FECHATTER_PASSWORD", PASSWORD)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a mode, which must measure all that it was asked for, and returns its result.
fn result(mode: &str, args: &[&str]) -> Value {
    let out = tempfile::tempdir().unwrap();
    let args: Vec<&str> = std::iter::once(mode).chain(args.iter().copied()).collect();
    let output = loadgen(&args, out.path());
    assert!(output.status.success(), "{mode}: {}", text(&output));
    let json = std::fs::read(out.path().join(format!("{mode}.json"))).unwrap();
    let result: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(result["partial"], Value::Null);
    result
}

/// A figure that a goal was set for.
fn measured(result: &Value, what: &str) -> f64 {
    let goals = result["goals"].as_array().unwrap();
    let goal = goals.iter().find(|goal| goal["what"] == what);
    goal.unwrap_or_else(|| panic!("no {what} in {result}"))["measured"]
        .as_f64()
        .unwrap()
}

#[track_caller]
fn is_zero(result: &Value, what: &str) {
    let figure = measured(result, what);
    assert!(figure.abs() < f64::EPSILON, "{what}: {figure} in {result}");
}

#[test]
fn messages_reach_other_screens_once_and_who_worked_is_known() {
    let result = result("deliver", &["--rate", "50", "--chats", "10"]);
    is_zero(&result, "lost at 50/s");
    is_zero(&result, "doubled at 50/s");
    let series = &result["series"][0];
    // Poisson arrivals of 2 s: five deviations around the mean.
    assert!((50..=150).contains(&series["done"].as_u64().unwrap()), "{series}");
    assert!(series["p50_ms"].as_f64() <= series["p99_ms"].as_f64());
    let processes = series["cpu"]["processes"].as_array().unwrap();
    let names: Vec<&str> = processes
        .iter()
        .map(|process| process["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "chat_service",
            "notify_service",
            "indexer",
            "gateway",
            "postgres",
            "nats-server"
        ]
    );
    let worked = |name| {
        processes
            .iter()
            .any(|process| process["name"] == name && process["cpu_seconds"].as_f64().unwrap() > 0.0)
    };
    assert!(worked("chat_service") && worked("postgres"), "{series}");
    let durability = result["durability"].to_string();
    assert!(durability.contains("postgresql.fsync=on"), "{durability}");
}

#[test]
fn one_message_reaches_every_member() {
    let args = [
        "--members",
        "30",
        "--messages",
        "3",
        "--burst",
        "10",
        "--via",
        "gateway",
    ];
    let result = result("fanout", &args);
    is_zero(&result, "lost");
    is_zero(&result, "doubled");
    assert_eq!(result["series"][0]["done"], 90);
    assert_eq!(result["series"][2]["done"], 300);
}

#[test]
fn who_vanishes_and_returns_misses_nothing() {
    let args = ["--clients", "30", "--members", "5", "--rate", "20", "--away", "1"];
    let result = result("storm", &args);
    for what in ["lost", "doubled", "told to reload"] {
        is_zero(&result, what);
    }
}

#[test]
fn a_platform_elsewhere_is_used_and_what_is_wrong_with_it_is_said() {
    let platform = Platform::temporary(&[]).unwrap();
    let body = json!({
        "fullname": "Ada", "email": "ada@load.example", "password": PASSWORD, "workspace": "Elsewhere",
    });
    let answer = dev::http::request(platform.ports().chat, "POST", "/api/signup", None, Some(&body)).unwrap();
    assert_eq!(answer.status / 100, 2, "{}", answer.body);
    let (url, ca) = (platform.url(), platform.ca().display().to_string());
    let to = |url, email| ["--url", url, "--ca", &ca, "--email", email].map(str::to_owned);
    let send = |at: [String; 6]| {
        let out = tempfile::tempdir().unwrap();
        let mut args = vec!["send", "--rate", "5", "--chats", "2"];
        args.extend(at.iter().map(String::as_str));
        loadgen(&args, out.path())
    };

    let good = send(to(&url, "ada@load.example"));
    assert!(good.status.success(), "{}", text(&good));
    assert!(text(&good).contains("send 5/s"), "{}", text(&good));

    let wrong = send(to(&url, "nobody@load.example"));
    assert!(
        !wrong.status.success() && text(&wrong).contains("the credentials are wrong"),
        "{}",
        text(&wrong)
    );

    let closed = format!("https://127.0.0.1:{}", dev::ports::free().unwrap());
    let away = send(to(&closed, "ada@load.example"));
    assert!(
        !away.status.success() && text(&away).contains("cannot reach 127.0.0.1:"),
        "{}",
        text(&away)
    );
}
