//! `cargo dev up` itself: the conversation it prints, restarts, and what it leaves behind, which is nothing.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic wherever it is")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dev::child::{Signal, process_id};
use dev::platform::Ports;
use dev::wait;
use nix::sys::signal::kill;

const PATIENCE: Duration = Duration::from_mins(2);
const PARTS: [&str; 6] = [
    "postgres",
    "nats-server",
    "chat_service",
    "notify_service",
    "indexer",
    "gateway",
];

/// A launcher on free ports, and what it printed.
struct Launcher {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

fn command(data: &Path, ports: &Ports) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dev"));
    command.args(["up", "--no-build", "--data"]).arg(data);
    for (port, option) in ports.named() {
        command.args([option, &port.to_string()]);
    }
    command
}

impl Launcher {
    fn start(data: &Path, ports: &Ports, more: &[&str]) -> Self {
        let mut child = command(data, ports).args(more).stdout(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (output, sink) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        Self { child, lines }
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    fn until_says(&mut self, what: &str) {
        let said = wait::until(PATIENCE, what, || {
            let ended = self.child.try_wait().unwrap().is_some();
            (ended || self.text().contains(what)).then_some(())
        });
        assert!(
            said.is_ok() && self.text().contains(what),
            "the launcher never said {what:?}:\n{}",
            self.text()
        );
    }

    fn end(&mut self, signal: Signal) -> Option<i32> {
        kill(process_id(self.child.id()), signal).unwrap();
        wait::until(PATIENCE, "the launcher to end", || self.child.try_wait().unwrap())
            .unwrap()
            .code()
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pids of the processes that work in the folder or name it in their command line, except the launcher's.
fn processes_of(data: &Path, except: u32) -> Vec<(u32, String)> {
    let folder = data.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let has = |file: &str| {
            std::fs::read(entry.path().join(file)).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&folder))
        };
        let works_there = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data);
        if pid != except && pid != std::process::id() && (works_there || has("cmdline")) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}

fn assert_nothing_left(data: &Path) {
    let none = wait::until(Duration::from_secs(10), "every process to end", || {
        processes_of(data, 0).is_empty().then_some(())
    });
    assert!(none.is_ok(), "left behind: {:?}", processes_of(data, 0));
}

fn refused(data: &Path, ports: &Ports, more: &[&str]) -> String {
    let Output { status, stderr, .. } = command(data, ports).args(more).output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!(status.code(), Some(1), "{text}");
    assert_eq!(text.trim().lines().count(), 1, "one clear line: {text}");
    text
}

/// What the greeting offers to paste.
fn conversation(text: &str) -> String {
    let (_, after) = text.split_once("paste it into another terminal:").unwrap();
    let lines = after.lines().skip_while(|line| line.is_empty());
    lines
        .take_while(|line| line.starts_with("  "))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn it_prints_a_conversation_that_works_restarts_what_crashes_and_leaves_nothing_behind() {
    let folder = dev::scratch::folder().unwrap();
    dev::postgres::open_for_all(folder.path()).unwrap();
    let data = folder.path().join("a folder");
    let ports = Ports::free().unwrap();
    let mut launcher = Launcher::start(&data, &ports, &["--seed"]);
    launcher.until_says("Ctrl-C stops all of it");
    launcher.until_says("ada@demo.example");

    let said = Command::new("bash")
        .args(["-c", &conversation(&launcher.text())])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("event:") && said.contains("message.created"), "{said}");
    let hit = said
        .lines()
        .find(|line| line.starts_with("{\"hits\":[{"))
        .unwrap_or_default();
    assert!(hit.contains("Shall we eat at"), "{said}");

    for part in PARTS {
        let processes = processes_of(&data, launcher.child.id());
        // The postmaster is the one of its processes that names the folder in its command line.
        let (pid, _) = processes
            .iter()
            .find(|(_, name)| part.starts_with(name.as_str()))
            .unwrap();
        kill(process_id(*pid), Signal::SIGKILL).unwrap();
        launcher.until_says(&format!("{part} ended unexpectedly (signal: 9 (SIGKILL))"));
        launcher.until_says(&format!("{part} was started again"));
    }

    let mut other = Ports::free().unwrap();
    let text = refused(&data, &other, &[]);
    assert!(
        text.contains(&format!("in use by process {}", launcher.child.id())),
        "{text}"
    );
    other.nats = ports.nats;
    let elsewhere = folder.path().join("other");
    let text = refused(&elsewhere, &other, &[]);
    assert!(
        text.contains("taken by nats-server (pid ") && text.contains("--nats-port"),
        "{text}"
    );
    other.nats = other.gateway;
    let text = refused(&elsewhere, &other, &[]);
    assert!(text.contains("--gateway-port and --nats-port are both"), "{text}");

    // A launcher that is killed leaves nothing either, and the next one goes on with the data.
    assert_eq!(launcher.end(Signal::SIGKILL), None);
    assert_nothing_left(&data);
    let mut launcher = Launcher::start(&data, &ports, &["--seed"]);
    launcher.until_says("the demo workspace is there already");
    launcher.until_says("Ctrl-C stops all of it");
    assert_eq!(launcher.end(Signal::SIGTERM), Some(0));
    assert!(
        launcher.text().contains("stopped; the data is kept"),
        "{}",
        launcher.text()
    );
    assert_nothing_left(&data);
}

#[test]
fn with_observability_it_is_watched_and_says_where_to_look() {
    let folder = dev::scratch::folder().unwrap();
    dev::postgres::open_for_all(folder.path()).unwrap();
    let data = folder.path().join("data");
    let [prometheus, otlp, probe] = [(); 3].map(|()| dev::ports::free().unwrap());
    let text = [prometheus, otlp, probe].map(|port| port.to_string());
    let more = [
        "--observability",
        "--prometheus-port",
        &text[0],
        "--otlp-port",
        &text[1],
        "--probe-port",
        &text[2],
    ];
    let mut launcher = Launcher::start(&data, &Ports::free().unwrap(), &more);
    launcher.until_says(&format!("Prometheus:  http://127.0.0.1:{prometheus}/targets"));
    launcher.until_says(&format!("http://127.0.0.1:{probe}/metrics"));
    launcher.until_says("Dashboards:");
    // All are scraped, and the probe gets through.
    let up = "/api/v1/query?query=sum(up%7Bjob!%3D%22collector%22%7D)%20%2B%20sum(probe_rounds_total%7Boutcome%3D%22passed%22%7D)";
    let watched = wait::until(
        PATIENCE,
        "Prometheus to see five processes and a round of the probe",
        || {
            let answer = dev::http::request(prometheus, "GET", up, None, None).ok()?.json();
            let value: f64 = answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()?;
            (value >= 6.0).then_some(())
        },
    );
    assert!(watched.is_ok(), "{}", launcher.text());
    assert_eq!(launcher.end(Signal::SIGINT), Some(0));
    assert_nothing_left(&data);
}

#[test]
fn interrupted_while_it_starts_it_leaves_nothing_behind() {
    let folder = dev::scratch::folder().unwrap();
    dev::postgres::open_for_all(folder.path()).unwrap();
    let data = folder.path().join("data");
    let mut launcher = Launcher::start(&data, &Ports::free().unwrap(), &[]);
    launcher.until_says("starting NATS");
    assert_eq!(launcher.end(Signal::SIGINT), Some(0));
    assert!(!launcher.text().contains("Fechatter is up"), "{}", launcher.text());
    assert_nothing_left(&data);
}

#[test]
fn servers_of_ones_own_that_are_away_are_said_in_one_line() {
    let folder = dev::scratch::folder().unwrap();
    dev::postgres::open_for_all(folder.path()).unwrap();
    let (data, ports) = (folder.path().join("data"), Ports::free().unwrap());
    let nobody = dev::ports::free().unwrap();
    let url = format!("postgres://ada:hunter2@127.0.0.1:{nobody}/chat");
    let text = refused(&data, &ports, &["--postgres-url", &url]);
    assert!(text.contains("--postgres-url") && !text.contains("hunter2"), "{text}");
    let text = refused(&data, &ports, &["--nats-url", &format!("nats://127.0.0.1:{nobody}")]);
    assert!(text.contains("nothing answers at --nats-url"), "{text}");
}
