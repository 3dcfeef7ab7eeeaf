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

/// Runs a mode, which must measure all that it was asked for, and returns its result by the name it is saved under.
fn result(name: &str, args: &[&str]) -> Value {
    let out = tempfile::tempdir().unwrap();
    let output = loadgen(args, out.path());
    assert!(output.status.success(), "{name}: {}", text(&output));
    let json = std::fs::read(out.path().join(format!("{name}.json"))).unwrap();
    let result: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(result["partial"], Value::Null);
    result
}

/// The series of a name.
fn series<'a>(result: &'a Value, name: &str) -> &'a Value {
    let all = result["series"].as_array().unwrap();
    let found = all.iter().find(|series| series["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {result}"))
}

/// Ours and theirs of a comparison.
fn compared(result: &Value, what: &str) -> (f64, f64) {
    let all = result["comparisons"].as_array().unwrap();
    let found = all.iter().find(|comparison| comparison["what"] == what);
    let found = found.unwrap_or_else(|| panic!("no {what} in {result}"));
    (found["ours"].as_f64().unwrap(), found["theirs"].as_f64().unwrap())
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
    let result = result("deliver", &["deliver", "--rate", "50", "--chats", "10"]);
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
    let result = result("fanout-gateway", &[&["fanout"], &args[..]].concat());
    is_zero(&result, "lost");
    is_zero(&result, "doubled");
    assert_eq!(result["series"][0]["done"], 90);
    assert_eq!(result["series"][2]["done"], 300);
}

#[test]
fn telemetry_is_compared_and_what_a_dead_collector_costs_is_known() {
    let args = [
        "telemetry",
        "--rate",
        "40",
        "--rounds",
        "1",
        "--kills",
        "1",
        "--chats",
        "5",
    ];
    let result = result("telemetry", &args);
    for what in [
        "errors of reads",
        "errors of sends",
        "lost while the collector was there",
        "errors while it was killed",
    ] {
        is_zero(&result, what);
    }
    assert!(measured(&result, "throughput, killed ÷ with a collector") > 0.0);
    for process in ["gateway", "chat_service"] {
        let cost = result["figures"][format!("{process}_cpu_micros_per_reads_on")].as_f64();
        assert!(cost.is_some_and(|cost| cost > 0.0), "{result}");
    }
    let names: Vec<&str> = result["series"]
        .as_array()
        .unwrap()
        .iter()
        .map(|series| series["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "reads off",
            "reads on",
            "sends off",
            "sends on",
            "with a collector",
            "collector killed"
        ]
    );
}

#[test]
fn who_vanishes_and_returns_misses_nothing() {
    let args = [
        "storm",
        "--clients",
        "30",
        "--members",
        "5",
        "--rate",
        "20",
        "--away",
        "1",
    ];
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

#[test]
fn a_matrix_server_delivers_the_same_messages_beside_us() {
    let args = [
        "--peers",
        "--peer-rate",
        "5",
        "--peer-chats",
        "2",
        "--rate",
        "10",
        "--chats",
        "4",
    ];
    let result = result("deliver", &[&["deliver"], &args[..]].concat());
    for (name, rate) in [
        ("deliver 5/s", 5),
        ("synapse deliver 5/s", 5),
        ("synapse deliver 10/s", 10),
    ] {
        let series = series(&result, name);
        assert_eq!(series["offered_per_second"], f64::from(rate), "{series}");
        assert!(series["done"].as_u64().unwrap() > 0, "{series}");
    }
    assert_eq!(result["figures"]["synapse_not_delivered_at_5"], 0.0, "{result}");
    let (ours, theirs) = compared(&result, "5/s: cpu µs each, all servers");
    assert!(ours > 0.0 && theirs > 0.0, "{result}");
    let durability = result["durability"].to_string();
    assert!(durability.contains("synapse.postgresql.fsync=on"), "{durability}");
}

#[test]
fn nchan_fans_out_the_same_messages_beside_us() {
    for (via, name) in [("service", "fanout"), ("gateway", "fanout-gateway")] {
        let args = [
            "fanout",
            "--peers",
            "--members",
            "20",
            "--messages",
            "2",
            "--burst",
            "5",
            "--via",
            via,
        ];
        let result = result(name, &args);
        assert_eq!(series(&result, "nchan each delivery")["done"], 40);
        assert_eq!(series(&result, "nchan burst, each delivery")["done"], 100);
        assert_eq!(result["figures"]["nchan_lost"], 0.0, "{result}");
        assert_eq!(result["figures"]["nchan_doubled"], 0.0, "{result}");
        assert!(
            result["settings"]["bytes_of_an_event"]
                .as_str()
                .unwrap()
                .parse::<u32>()
                .unwrap()
                > 100
        );
    }
}

#[test]
fn who_asks_for_more_than_the_target_can_do_is_told() {
    // One connection, and a rate that no server answers one after the other.
    let out = tempfile::tempdir().unwrap();
    let output = loadgen(&["send", "--rate", "100000", "--chats", "2"], out.path());
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Unsent") && text.contains("lower --rate"), "{text}");
}

#[test]
fn what_takes_more_descriptors_than_there_are_says_how_many_would_do() {
    let out = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 1000 && exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_loadgen"),
        ])
        .args(["fanout", "--members", "900", "--via", "gateway", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("use at most --members 732, or raise the hard limit"),
        "{text}"
    );
}
