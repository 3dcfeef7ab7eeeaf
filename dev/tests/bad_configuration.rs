//! A bad configuration is said by key and range, before any socket opens, with the exit code for it.

use std::path::PathBuf;
use std::process::{Command, Output};

/// EX_CONFIG of sysexits.h.
const EXIT_CONFIG: i32 = 78;

fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the running test");
    let path = test
        .parent()
        .and_then(|folder| folder.parent())
        .expect("the folder of the build")
        .join(name);
    assert!(
        path.is_file(),
        "{} is not built; run: cargo build --workspace",
        path.display()
    );
    path
}

fn run(name: &str, env: &[(&str, &str)]) -> Output {
    Command::new(binary(name))
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .expect("the binary runs")
}

fn assert_refused(name: &str, env: &[(&str, &str)], said: &[&str]) {
    let output = run(name, env);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(EXIT_CONFIG), "{name} {env:?}: {text}");
    for part in said {
        assert!(text.contains(part), "{name} {env:?} does not say {part:?}: {text}");
    }
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
}

#[test]
fn values_out_of_range_name_key_and_range() {
    assert_refused(
        "chat_service",
        &[
            ("FECHATTER_CHAT__DATABASE__URL", "postgres://u:hunter2@127.0.0.1/x"),
            ("FECHATTER_CHAT__AUTH__KEYS_DIR", "/nonexistent"),
            ("FECHATTER_CHAT__AUTH__ACCESS_SECONDS", "5"),
            ("FECHATTER_CHAT__DATABASE__MAX_CONNECTIONS", "0"),
        ],
        &[
            "auth.access_seconds",
            "60 to 3600",
            "database.max_connections",
            "1 to 500",
        ],
    );
}

#[test]
fn wrong_types_unknown_keys_and_missing_ones_are_named() {
    assert_refused("chat_service", &[], &["database"]);
    for (name, prefix) in [
        ("chat_service", "CHAT"),
        ("notify_service", "NOTIFY"),
        ("indexer", "INDEXER"),
        ("gateway", "GATEWAY"),
    ] {
        let listen = format!("FECHATTER_{prefix}__LISTEN");
        let unknown = format!("FECHATTER_{prefix}__LISTENN");
        let database = format!("FECHATTER_{prefix}__DATABASE__URL");
        let mut env = vec![(listen.as_str(), "not an address")];
        if name != "gateway" {
            env.push((database.as_str(), "postgres://u:hunter2@127.0.0.1/x"));
        }
        assert_refused(name, &env, &["listen"]);
        env[0] = (unknown.as_str(), "x");
        assert_refused(name, &env, &["listenn"]);
    }
}

#[test]
fn a_secret_in_the_configuration_is_never_repeated() {
    let output = run(
        "chat_service",
        &[
            ("FECHATTER_CHAT__DATABASE__URL", "postgres://u:hunter2@127.0.0.1:1/x"),
            ("FECHATTER_CHAT__AUTH__KEYS_DIR", "/nonexistent"),
        ],
    );
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!output.status.success());
    assert!(text.contains("auth.keys_dir") && !text.contains("hunter2"), "{text}");
}
