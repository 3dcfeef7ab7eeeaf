//! The synthetic probe: its rounds pass, leave nothing readable, tell of an outage and survive it.

#![expect(clippy::unwrap_used, reason = "in a test, what is not there is a failure")]

use std::process::Command;
use std::time::Duration;

use dev::child::{Process, Signal, process_id};
use dev::platform::probe::Options;
use dev::platform::{Part, Platform, Service};
use dev::{http, ports, wait};
use nix::sys::signal::kill;

use crate::collector::Collector;

/// Several rounds, of which each may wait for a step that is not done.
const PATIENCE: Duration = Duration::from_mins(1);
const STEPS: [&str; 7] = ["sign_in", "chat", "stream", "send", "receive", "find", "clean"];

/// A platform with a probe.
struct Probed {
    // Before the platform, so that it ends before it.
    probe: Process,
    platform: Platform,
    options: Options,
}

impl Probed {
    fn start(more: &[(&str, &str)]) -> Self {
        let mut env = vec![("FECHATTER_PROBE__TIMEOUT_SECONDS", "3")];
        env.extend(more);
        let platform = Platform::temporary_with(&[], &env).unwrap();
        let options = Options {
            admin: ports::free().unwrap(),
            interval_seconds: 5,
        };
        let probe = platform.start_probe(options).unwrap();
        Self {
            probe,
            platform,
            options,
        }
    }

    /// Value of a series, which is written as on the page but for the labels of the scope.
    fn value(&self, name: &str, label: &str) -> Option<f64> {
        let page = http::request(self.options.admin, "GET", "/metrics", None, None)
            .ok()?
            .body;
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until a counter is beyond what it is now.
    fn until_more(&self, name: &str, label: &str) {
        let before = self.value(name, label).unwrap_or_default();
        let rises = || self.value(name, label).filter(|now| *now > before);
        wait::until(PATIENCE, &format!("{name}{{{label}}} to rise"), rises)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.probe.log_tail()));
    }

    fn sql(&mut self, statement: &str) -> String {
        let server = self.platform.postgres().unwrap();
        server.psql("fechatter", statement).unwrap().trim().to_owned()
    }

    /// Waits until the database answers so.
    fn until_sql(&mut self, statement: &str, wanted: &str) {
        let mut last = String::new();
        let reached = wait::until(PATIENCE, statement, || {
            last = self.sql(statement);
            (last == wanted).then_some(())
        });
        assert!(
            reached.is_ok(),
            "{statement}: {last}, not {wanted}\n{}",
            self.probe.log_tail()
        );
    }
}

#[test]
fn its_rounds_pass_and_leave_nothing_readable() {
    let collector = Collector::start().unwrap();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_BLRP_SCHEDULE_DELAY", "200"),
    ];
    let mut probed = Probed::start(&env);
    for _ in 0..3 {
        probed.until_more("probe_rounds_total", "outcome=\"passed\"");
    }
    assert_eq!(probed.value("probe_rounds_total", "outcome=\"failed\""), Some(0.0));
    for step in STEPS {
        let label = format!("step=\"{step}\"");
        assert!(
            probed.value("probe_step_duration_seconds_count", &label).unwrap() >= 2.0,
            "{step}"
        );
        assert_eq!(probed.value("probe_failures_total", &label), Some(0.0), "{step}");
    }
    assert!(probed.value("probe_last_success_seconds", "").unwrap() > 1_700_000_000.0);

    // One account, one chat, tombstones, and between rounds no session.
    assert_eq!(probed.sql("SELECT count(*) FROM users"), "1");
    assert_eq!(probed.sql("SELECT count(*) || name FROM chats GROUP BY name"), "1Probe");
    probed.until_sql(
        "SELECT (SELECT count(*) FROM messages) >= 3 AND NOT EXISTS (SELECT FROM messages WHERE deleted_at IS NULL)
         AND NOT EXISTS (SELECT FROM sessions WHERE revoked_at IS NULL)",
        "t",
    );
    wait::until(PATIENCE, "a log record of the probe's", || {
        collector.logs().iter().any(|log| log.service == "probe").then_some(())
    })
    .unwrap();
    let log = std::fs::read_to_string(probed.platform.probe_log()).unwrap();
    for (name, value) in probed.platform.probe_environment(probed.options) {
        let is_secret = name.ends_with("__PASSWORD");
        assert!(
            !is_secret || !log.contains(value.trim_matches('"')),
            "the password is in the log"
        );
    }
}

#[test]
fn an_outage_is_told_by_its_step_and_survived() {
    let mut probed = Probed::start(&[]);
    probed.until_more("probe_rounds_total", "outcome=\"passed\"");
    let succeeded_at = probed.value("probe_last_success_seconds", "").unwrap();
    for (service, step) in [(Service::Notify, "stream"), (Service::Chat, "sign_in")] {
        probed.platform.kill(service);
        probed.until_more("probe_failures_total", &format!("step=\"{step}\""));
        probed.platform.start_service(service).unwrap();
        probed.platform.wait_until_ready(service).unwrap();
        probed.until_more("probe_rounds_total", "outcome=\"passed\"");
    }
    // The edge itself away: nothing answers, and what does is another connection.
    probed.platform.kill(Service::Gateway);
    probed.until_more("probe_failures_total", "step=\"sign_in\"");
    probed.platform.start_service(Service::Gateway).unwrap();
    probed.platform.wait_until_ready(Service::Gateway).unwrap();
    probed.until_more("probe_rounds_total", "outcome=\"passed\"");
    assert!(probed.value("probe_last_success_seconds", "").unwrap() > succeeded_at);
    let log = std::fs::read_to_string(probed.platform.probe_log()).unwrap();
    let failed: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("a round of the probe failed"))
        .collect();
    let answered = failed.iter().find(|line| line.contains("step=stream")).unwrap();
    assert!(
        answered.contains("request_id=") && answered.contains("trace_id_of_request=") && answered.contains("503"),
        "{answered}"
    );
    assert!(failed.iter().any(|line| line.contains("cannot connect")), "{failed:#?}");
    assert!(log.contains("the probe's rounds pass again"), "{log}");
}

#[test]
fn what_an_interrupted_round_leaves_the_next_one_deletes() {
    // Long enough to be cut off in the middle.
    let mut probed = Probed::start(&[("FECHATTER_PROBE__TIMEOUT_SECONDS", "10")]);
    probed.until_more("probe_rounds_total", "outcome=\"passed\"");
    let indexer = process_id(probed.platform.process_id(Part::Service(Service::Indexer)).unwrap());
    kill(indexer, Signal::SIGSTOP).unwrap();
    // Silence is a failure of the step, too, and in its time.
    probed.until_more("probe_failures_total", "step=\"find\"");
    let readable = "SELECT count(*) FROM messages WHERE deleted_at IS NULL";
    probed.until_sql(readable, "0");
    probed.until_sql(readable, "1");
    probed.probe.kill();
    kill(indexer, Signal::SIGCONT).unwrap();
    assert_eq!(probed.sql(readable), "1", "it was cut off in the middle");
    probed.probe = probed.platform.start_probe(probed.options).unwrap();
    probed.until_sql(readable, "0");
    probed.until_more("probe_rounds_total", "outcome=\"passed\"");
    // It goes when it is asked to, in the middle of whatever it does.
    probed.probe.stop(Signal::SIGTERM, Duration::from_secs(10));
    assert!(probed.probe.ended().unwrap().success(), "{}", probed.probe.log_tail());
}

#[test]
fn once_it_says_how_it_went_by_its_exit_code() {
    let platform = Platform::temporary(&[]).unwrap();
    let options = Options {
        admin: ports::free().unwrap(),
        interval_seconds: 60,
    };
    let once = |more: &[(&str, &str)]| {
        let mut command = Command::new(platform.binary("probe").unwrap());
        command.arg("once").envs(platform.probe_environment(options));
        let output = command.envs(more.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(once(&[]), (Some(0), String::new()));
    let (code, says) = once(&[("FECHATTER_PROBE__PASSWORD", "not the password")]);
    assert_eq!(code, Some(2));
    assert!(
        says.starts_with("sign_in: 401") && says.contains("cannot be made"),
        "{says}"
    );
    // Without the authority nothing is believed.
    let (code, says) = once(&[("FECHATTER_PROBE__CA", "/nowhere")]);
    assert_eq!(code, Some(2));
    assert!(says.contains("ertificate"), "{says}");
    // By another name for the same place, which the certificate knows.
    let url = platform.url().replace("127.0.0.1", "localhost");
    let by_name = [
        ("FECHATTER_PROBE__URL", url.as_str()),
        ("FECHATTER_PROBE__CONNECT_HOST", "127.0.0.1"),
    ];
    assert_eq!(once(&by_name), (Some(0), String::new()));
    let (code, says) = once(&[("FECHATTER_PROBE__URL", "http://127.0.0.1")]);
    assert_eq!(code, Some(78), "{says}");
    assert!(says.contains("url: not an HTTPS URL"), "{says}");
}
