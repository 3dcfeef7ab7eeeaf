//! `cargo dev edge`: the gateway of a whole platform, examined by tools of others: slowhttptest, sslyze and h2spec.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dev::platform::Platform;
use dev::{install, tools};
use serde_json::Value;

use crate::cargo::{self, Build, Stop};
use crate::lines::{say, show};

/// Options of `cargo dev edge`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these; all by default, h2spec where Go is installed.
    #[arg(value_enum)]
    checks: Vec<Check>,
    /// Connections that slowhttptest holds at once.
    #[arg(long, default_value_t = 500)]
    connections: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    /// Protocols, ciphers and known weaknesses of TLS.
    Tls,
    /// Slow heads, bodies and readers, and what others feel of them.
    Slow,
    /// Conformance of HTTP/2.
    Http2,
}

/// Deadlines short enough for attacks that take seconds.
const DEADLINES: [(&str, &str); 3] = [
    ("FECHATTER_GATEWAY__LIMITS__HEADER_TIMEOUT_MS", "3000"),
    ("FECHATTER_GATEWAY__LIMITS__BODY_TIMEOUT_MS", "3000"),
    ("FECHATTER_GATEWAY__LIMITS__WRITE_SECONDS", "3"),
];
/// How long each slow attack lasts, in seconds.
const ATTACK_SECONDS: u64 = 15;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    let wanted = |check| args.checks.is_empty() || args.checks.contains(&check);
    say("building");
    let binaries = cargo::build(Build::Tests, &stop)?;
    say("starting the platform");
    let mut env: Vec<(String, String)> = DEADLINES
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let unlimited = "{requests=1000000,window_seconds=1}".to_owned();
    for class in ["AUTH", "READ", "REFUSED"] {
        env.push((format!("FECHATTER_GATEWAY__RATE_LIMITS__{class}"), unlimited.clone()));
    }
    let platform = Platform::temporary_from(&binaries, &[], &env)?;
    let mut failed = Vec::new();
    if wanted(Check::Tls) {
        failed.extend(tls(&platform)?);
    }
    if wanted(Check::Slow) {
        failed.extend(slow(&platform, args.connections)?);
    }
    if wanted(Check::Http2) {
        match tools::go() {
            Some(go) => failed.extend(http2(&platform, &go)?),
            None if args.checks.contains(&Check::Http2) => {
                bail!("h2spec is built with Go, and there is no go on the PATH")
            }
            None => say("left out: h2spec (it is built with Go, and there is no go on the PATH)"),
        }
    }
    if !failed.is_empty() {
        bail!("the edge failed:\n  {}", failed.join("\n  "));
    }
    say("the edge is good");
    Ok(())
}

/// Scans with sslyze; returns what is weak.
fn tls(platform: &Platform) -> anyhow::Result<Vec<String>> {
    let program = tools::python_program("sslyze", tools::SSLYZE, &say)?;
    say("sslyze: protocols, ciphers, known weaknesses");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("sslyze.json");
    let output = program
        .command()
        .args(["--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3"])
        .args([
            "--heartbleed",
            "--openssl_ccs",
            "--compression",
            "--reneg",
            "--robot",
            "--early_data",
            "--ems",
            "--elliptic_curves",
            "--resum",
            "--http_headers",
        ])
        .arg("--json_out")
        .arg(&file)
        .arg(format!("localhost:{}", platform.ports().gateway))
        .stdin(Stdio::null())
        .output()
        .context("cannot run sslyze")?;
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("sslyze wrote no result: {}", String::from_utf8_lossy(&output.stderr)))?;
    let report: Value = serde_json::from_str(&text)?;
    let scan = &report["server_scan_results"][0]["scan_result"];
    if !scan.is_object() {
        bail!("sslyze could not scan: {}", report["server_scan_results"][0]);
    }
    Ok(weaknesses(scan))
}

/// What a scan found that should not be there, or did not find out.
fn weaknesses(scan: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let accepted = |protocol: &str| -> Vec<String> {
        let suites = scan[protocol]["result"]["accepted_cipher_suites"].as_array();
        let name = |suite: &Value| suite["cipher_suite"]["name"].as_str().unwrap_or("?").to_owned();
        suites
            .map(|suites| suites.iter().map(name).collect())
            .unwrap_or_default()
    };
    for (protocol, wanted) in [
        ("ssl_2_0_cipher_suites", false),
        ("ssl_3_0_cipher_suites", false),
        ("tls_1_0_cipher_suites", false),
        ("tls_1_1_cipher_suites", false),
        ("tls_1_2_cipher_suites", true),
        ("tls_1_3_cipher_suites", true),
    ] {
        if scan[protocol]["status"] != "COMPLETED" {
            found.push(format!("{protocol}: {}", scan[protocol]["status"]));
        }
        let suites = accepted(protocol);
        show(&format!(
            "  {protocol}: {}",
            if suites.is_empty() {
                "none".to_owned()
            } else {
                suites.join(", ")
            }
        ));
        if suites.is_empty() == wanted {
            found.push(format!("{protocol}: {suites:?}"));
        }
        let is_modern = |suite: &String| {
            (suite.contains("_GCM_") || suite.contains("CHACHA20"))
                && (suite.contains("_ECDHE_") || !suite.contains("_WITH_"))
        };
        found.extend(
            suites
                .iter()
                .filter(|suite| !is_modern(suite))
                .map(|suite| format!("old cipher suite {suite}")),
        );
    }
    for (command, field, good) in [
        ("heartbleed", "is_vulnerable_to_heartbleed", false),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection", false),
        ("tls_compression", "supports_compression", false),
        (
            "session_renegotiation",
            "is_vulnerable_to_client_renegotiation_dos",
            false,
        ),
        ("tls_1_3_early_data", "supports_early_data", false),
    ] {
        let value = &scan[command]["result"][field];
        show(&format!("  {command}: {field} {value}"));
        if value.as_bool() != Some(good) {
            found.push(format!("{command}: {field} is {value}"));
        }
    }
    found.extend(missing(scan));
    let robot = scan["robot"]["result"]["robot_result"].as_str().unwrap_or("unknown");
    show(&format!("  robot: {robot}"));
    if !robot.starts_with("NOT_VULNERABLE") {
        found.push(format!("robot: {robot}"));
    }
    found
}

/// What a scan should have found and did not.
fn missing(scan: &Value) -> Vec<String> {
    // RFC 8422 and RFC 8446 leave these; the others are too short or nobody's.
    // By both of P-256's names: OpenSSL's and that of SEC 2.
    const SOUND: [&str; 6] = ["X25519", "X448", "prime256v1", "secp256r1", "secp384r1", "secp521r1"];
    let mut found = Vec::new();
    let curves = scan["elliptic_curves"]["result"]["supported_curves"].as_array();
    let curves: Vec<&str> = curves
        .into_iter()
        .flatten()
        .filter_map(|curve| curve["name"].as_str())
        .collect();
    show(&format!("  elliptic_curves: {}", curves.join(", ")));
    if curves.is_empty() || curves.iter().any(|curve| !SOUND.contains(curve)) {
        found.push(format!("elliptic_curves: {curves:?}"));
    }
    let secret = &scan["tls_extended_master_secret"]["result"]["supports_ems_extension"];
    let transport = &scan["http_headers"]["result"]["strict_transport_security_header"]["max_age"];
    let tickets = &scan["session_resumption"]["result"]["tls_ticket_resumption_result"];
    show(&format!(
        "  extended master secret: {secret}; HSTS: {transport} s; resumption by tickets: {tickets}"
    ));
    if secret != true {
        found.push(format!("extended master secret: {secret}"));
    }
    if transport.as_u64().is_none_or(|seconds| seconds < 15_768_000) {
        found.push(format!("HSTS for half a year at least: {transport}"));
    }
    // Shown, not judged: it is of TLS 1.2 by an old client, and no weakness where it is missing.
    found
}

/// Attacks with slowhttptest while somebody else asks; returns what went wrong.
fn slow(platform: &Platform, connections: u32) -> anyhow::Result<Vec<String>> {
    install::package("slowhttptest", "slowhttptest", "it attacks slowly", &say)?;
    let calm = p99(platform, Duration::from_secs(5))?;
    show(&format!("  p99 of others without an attack: {} ms", calm.as_millis()));
    let mut failed = Vec::new();
    for (name, options) in [
        ("slow heads (slowloris)", &["-H", "-i", "2"][..]),
        ("slow bodies", &["-B", "-i", "2", "-s", "8192", "-t", "POST"]),
        ("slow readers", &["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32"]),
    ] {
        say(&format!("slowhttptest: {name}, {connections} connections"));
        let path = if options[0] == "-B" {
            "/api/signin"
        } else {
            "/openapi.json"
        };
        let mut attack = Command::new("slowhttptest")
            .args(options)
            .args([
                "-c",
                &connections.to_string(),
                "-r",
                "200",
                "-l",
                &ATTACK_SECONDS.to_string(),
                "-p",
                "5",
            ])
            .args(["-u", &format!("{}{path}", platform.url())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run slowhttptest")?;
        let measured = p99(platform, Duration::from_secs(ATTACK_SECONDS));
        let waited = Instant::now();
        while attack.try_wait()?.is_none() {
            if waited.elapsed() > Duration::from_mins(1) {
                attack.kill()?;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let p99 = measured?;
        show(&format!("  p99 of others meanwhile: {} ms", p99.as_millis()));
        // One machine attacks, serves and asks: what it does itself costs too, so the bound is wide.
        if p99 > (calm * 5).max(Duration::from_millis(250)) {
            failed.push(format!("{name}: p99 of others {p99:?}, without attack {calm:?}"));
        }
    }
    Ok(failed)
}

/// Asks for `duration`, each time by a new connection, and returns the 99th percentile of the times. A request that fails is
/// an error.
fn p99(platform: &Platform, duration: Duration) -> anyhow::Result<Duration> {
    let requests = duration.as_secs() * 20;
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--http1.1",
            "--max-time",
            "10",
            "--rate",
            "20/s",
        ])
        .args(["--header", "Connection: close", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code} %{time_total}\\n", "--cacert"])
        .arg(platform.ca())
        .arg(format!("{}/openapi.json?[1-{requests}]", platform.url()))
        .output()
        .context("cannot run curl")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut times = Vec::new();
    for line in text.lines() {
        let (status, seconds) = line.split_once(' ').context("curl says nothing of a request")?;
        if status != "200" {
            bail!(
                "a request of others failed: {line} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        times.push(Duration::from_secs_f64(seconds.parse()?));
    }
    times.sort_unstable();
    let index = times.len().saturating_sub(1) * 99 / 100;
    times.get(index).copied().context("no request was made")
}

/// Runs h2spec; returns which of its cases fail.
fn http2(platform: &Platform, go: &Path) -> anyhow::Result<Vec<String>> {
    let folder = tools::folder().join(format!("h2spec-{H2SPEC}"));
    let program = folder.join("h2spec");
    if !program.is_file() {
        say(&format!(
            "missing: h2spec {H2SPEC}: building it with Go into {}",
            folder.display()
        ));
        let status = Command::new(go)
            .args([
                "install",
                &format!("github.com/summerwind/h2spec/cmd/h2spec@v{H2SPEC}+incompatible"),
            ])
            .env("GOBIN", &folder)
            .status()?;
        if !status.success() {
            bail!("h2spec cannot be built; Go's messages are above");
        }
    }
    say("h2spec: conformance with RFC 9113 and HPACK");
    let output = Command::new(program)
        .args([
            "-t",
            "-k",
            "-h",
            "localhost",
            "-p",
            &platform.ports().gateway.to_string(),
        ])
        .args(["-P", "/openapi.json", "-o", "5"])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let summary = text
        .lines()
        .rev()
        .find(|line| line.contains(" passed, "))
        .unwrap_or("no summary");
    show(&format!("  {summary}"));
    if output.status.success() && summary.contains(" 0 failed") {
        return Ok(Vec::new());
    }
    let failures = text.split("Failures:").nth(1).unwrap_or(&text);
    Ok(vec![format!("h2spec: {summary}\n{failures}")])
}

/// Version of h2spec.
const H2SPEC: &str = "2.2.1";
