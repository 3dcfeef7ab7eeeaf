//! `gateway --check`: every fault with its place, and nothing opened.

use std::process::{Command, Output};

fn check(folder: &std::path::Path, file: &str, variables: &[(&str, &str)]) -> Output {
    let path = folder.join("gateway.toml");
    std::fs::write(&path, file).unwrap();
    let variables = variables
        .iter()
        .map(|(name, value)| (format!("FECHATTER_GATEWAY__{name}"), value));
    Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["--check", "--config", "gateway.toml"])
        .current_dir(folder)
        .env_clear()
        .envs(variables)
        .output()
        .unwrap()
}

fn faults(output: &Output) -> Vec<String> {
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines()
        .map(|line| line.strip_prefix("configuration: ").unwrap_or(line).to_owned())
        .collect()
}

#[test]
fn each_fault_is_a_line_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    gateway::tls::install_provider();
    gateway::dev_certificate::ensure(folder.path()).unwrap();
    let good = "[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n";
    let output = check(folder.path(), good, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "configuration is good\n");

    let bad = format!(
        "admin_listen = \"127.0.0.1:8443\"\n{good}reload_seconds = 0\n\n[limits]\nuri_bytes = 1\nheader_fields = \"many\"\n\n[upstreams]\nchat = [\"nonsense\"]\n\n[[elsewhere]]\nx = 1\n"
    );
    let found = faults(&check(
        folder.path(),
        &bad,
        &[
            ("LIMITS__IDLE_SECONDS", "0"),
            ("NATS__USER", "gateway"),
            ("NATS__PASSWORD", "[1]"),
        ],
    ));
    for expected in [
        "gateway.toml:1: admin_listen: 127.0.0.1:8443 is taken by another listener",
        "gateway.toml:5: tls.reload_seconds: 0 is out of range, 1 to 3600 is accepted",
        "gateway.toml:8: limits.uri_bytes: 1 is out of range, 256 to 65536 is accepted",
        "gateway.toml:9: limits.header_fields: invalid type: found string \"many\", expected usize",
        "gateway.toml:12: upstreams.chat: \"nonsense\" is not host:port",
        "FECHATTER_GATEWAY__LIMITS__IDLE_SECONDS: limits.idle_seconds: 0 is out of range, 1 to 3600 is accepted",
    ] {
        assert!(
            found.iter().any(|line| line == expected),
            "{expected} not in {found:#?}"
        );
    }
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("gateway.toml:14: elsewhere: unknown field")),
        "{found:#?}"
    );
    assert_eq!(found.len(), 7, "{found:#?}");
}

#[test]
fn what_is_set_nowhere_and_what_cannot_be_read_say_where_to_look() {
    let folder = tempfile::tempdir().unwrap();
    let found = faults(&check(folder.path(), "", &[]));
    assert!(found[0].starts_with("tls.certificate: must be set"), "{found:#?}");
    assert!(
        found[0].ends_with("(environment: FECHATTER_GATEWAY__TLS__CERTIFICATE)"),
        "{found:#?}"
    );
    let found = faults(&check(
        folder.path(),
        "[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n",
        &[],
    ));
    assert!(
        found[0].starts_with("gateway.toml:2: tls.certificate: cert.pem: "),
        "{found:#?}"
    );
    let found = faults(&check(
        folder.path(),
        "[tls]\ncertificate = \"a\ncertificate = 1\n",
        &[],
    ));
    assert!(
        found.len() == 1 && found[0].starts_with("gateway.toml:2: "),
        "{found:#?}"
    );
}
