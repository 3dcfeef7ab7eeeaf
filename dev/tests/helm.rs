//! The chart: `helm/tests`, in Python because the Helm engine is there.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic wherever it is")]

use std::path::{Path, PathBuf};
use std::process::Command;

use dev::{install, tools};

/// Runs one file of `helm/tests`; its output is shown when it fails.
fn run(file: &str) {
    // `cargo test` without the launcher finds them missing.
    install::chart_modules(&|line| println!("{line}")).unwrap();
    let binaries: PathBuf = Path::new(env!("CARGO_BIN_EXE_dev")).parent().unwrap().to_owned();
    let output = Command::new("python3")
        .arg("-B")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/tests").join(file))
        .env("PYTHONPATH", tools::chart_modules_folder())
        .env("FECHATTER_BINARIES", binaries)
        .env("FECHATTER_NATS_SERVER", on_path(&tools::nats_server().unwrap()))
        .env("FECHATTER_POSTGRES_BIN", tools::postgres_bin().unwrap())
        .output()
        .unwrap();
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

/// A program by its full path.
fn on_path(program: &Path) -> PathBuf {
    if program.is_absolute() {
        return program.to_owned();
    }
    let path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    path.into_iter()
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap()
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
