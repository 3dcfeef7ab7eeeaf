//! The rules, checked and tested by promtool; each alert has its tests and its runbook.

#![expect(clippy::unwrap_used, reason = "in a test, what is not there is a failure")]

use std::collections::BTreeSet;
use std::process::Command;

use dev::{prometheus, tools};

fn promtool(args: &[&str]) {
    let mut command = Command::new("promtool");
    tools::run(command.args(args).current_dir(prometheus::rules())).unwrap();
}

fn text(file: &str) -> String {
    std::fs::read_to_string(prometheus::rules().join(file)).unwrap()
}

#[test]
fn rules_and_configuration_are_clean() {
    promtool(&["check", "config", "prometheus.yaml"]);
    promtool(&[
        "check",
        "rules",
        "--lint=all",
        "--lint-fatal",
        "recording_rules.yaml",
        "alert_rules.yaml",
    ]);
}

#[test]
fn each_alert_fires_in_its_scenario_and_is_silent_beside_it() {
    promtool(&["test", "rules", "rules_test.yaml"]);
    let tests = text("rules_test.yaml");
    let checks: Vec<&str> = tests.split("- expr: ").skip(1).collect();
    for alert in alerts() {
        let of_alert = || checks.iter().filter(|check| check.contains(&format!("\"{alert}\"")));
        assert!(
            of_alert().any(|check| check.contains("value:")),
            "{alert} is never seen to fire"
        );
        assert!(
            of_alert().any(|check| check.contains("exp_samples: []")),
            "{alert} is never seen to be silent"
        );
    }
}

#[test]
fn each_alert_has_a_runbook() {
    for alert in alerts() {
        let path = prometheus::rules().join(format!("../runbooks/{alert}.md"));
        let runbook = std::fs::read_to_string(&path).unwrap_or_default();
        for part in ["## What it means", "## How to look", "## What to do"] {
            assert!(runbook.contains(part), "{} lacks “{part}”", path.display());
        }
    }
}

fn alerts() -> BTreeSet<String> {
    let rules = text("alert_rules.yaml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let names: BTreeSet<String> = names.map(str::to_owned).collect();
    assert!(names.len() > 10, "only {names:?} found");
    names
}
