//! The chart and the containers: `helm/tests`.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic wherever it is")]

use std::path::Path;

use dev::{chart, nats};

/// Runs one file of `helm/tests`; its output is shown when it fails.
fn run(file: &str) {
    // `cargo test` without the launcher finds them missing.
    chart::install(&|line| println!("{line}")).unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_dev")).parent().unwrap();
    let output = chart::program(file, binaries).unwrap().output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    println!("{out}{err}");
    assert!(output.status.success(), "{file} failed");
    // unittest succeeds without a test, too.
    let ran = err
        .lines()
        .find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok());
    assert!(ran.is_some_and(|count: u32| count > 0), "{file} ran no test");
}

#[test]
fn values_are_accepted_or_refused_with_what_to_set() {
    run("test_values.py");
}

#[test]
fn objects_are_valid_restricted_and_connected_as_drawn() {
    run("test_objects.py");
}

#[test]
fn the_rendered_release_runs() {
    run("test_running.py");
}

#[test]
fn the_collectors_configuration_is_whole() {
    run("test_collector.py");
}

#[test]
fn the_containers_are_what_they_should_be() {
    run("test_containers.py");
}

/// Each user's subjects, in order: of what may be published and of what may be subscribed.
fn rights(configuration: &str) -> Vec<(String, Vec<String>)> {
    let subjects = |text: &str, list: &str| -> Vec<String> {
        let inside = text.split_once(list).unwrap().1.split_once(']').unwrap().0;
        inside
            .split(',')
            .map(|subject| format!("{list}{}", subject.trim().trim_matches('"')))
            .collect()
    };
    let users = configuration.split("user: ").skip(1);
    let mut found: Vec<(String, Vec<String>)> = users
        .map(|text| {
            let mut all = subjects(text, "publish: [");
            all.extend(subjects(text, "subscribe: ["));
            all.sort();
            (text.split(',').next().unwrap().to_owned(), all)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn nats_users_have_the_same_rights_everywhere() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/fechatter/files/nats.conf");
    let ours = nats::configuration(&nats::Options {
        data: "/data".into(),
        port: 4222,
        log: "/log".into(),
        users: nats::USERS
            .iter()
            .map(|user| ((*user).to_owned(), "x".to_owned()))
            .collect(),
        sync_always: false,
    });
    let charts = rights(&std::fs::read_to_string(file).unwrap());
    assert_eq!(charts.len(), 4);
    assert_eq!(charts, rights(&ours));
}
