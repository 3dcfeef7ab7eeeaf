//! `cargo dev sqlx`: renews `.sqlx`, or proves it current.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use dev::{install, postgres, tools};

use crate::cargo::{self, Build, Stop, repository};
use crate::lines::say;

/// Options of `cargo dev sqlx`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compare instead of renewing.
    #[arg(long)]
    check: bool,
}

/// The crates with checked queries.
const CRATES: [&str; 4] = ["dead_letters", "chat_service", "notify_service", "indexer"];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    let root = repository();
    // The macros run again only for crates that changed. Changed before the build, these stay built for what comes after.
    for name in CRATES {
        let lib = root.join(name).join("src/lib.rs");
        let file = std::fs::File::options()
            .append(true)
            .open(&lib)
            .with_context(|| lib.display().to_string())?;
        file.set_modified(std::time::SystemTime::now())?;
    }
    let binaries = if args.check {
        cargo::build(Build::Tests, &stop).context("if queries lack their data in .sqlx, run: cargo dev sqlx")?
    } else {
        cargo::build(Build::Migrations, &stop)?
    };
    let server = postgres::Server::temporary()?;
    server.psql("postgres", "CREATE DATABASE queries")?;
    let url = server.url("queries");
    tools::run(Command::new(binaries.join("migrations")).env("DATABASE_URL", &url))?;

    let fresh = tempfile::tempdir()?;
    let offline = fresh.path().display().to_string();
    let env = [
        ("DATABASE_URL", url.as_str()),
        ("SQLX_OFFLINE", "false"),
        ("SQLX_OFFLINE_DIR", offline.as_str()),
    ];
    let check = ["check", "--workspace", "--all-targets"];
    cargo::require("checking the queries", &check, &env, &stop)?;

    let (new, old) = (read(fresh.path())?, read(&root.join(".sqlx"))?);
    if new == old {
        say(&format!(".sqlx is current: {} queries", new.len()));
        return Ok(());
    }
    if args.check {
        bail!(".sqlx does not match the queries and the schema; run: cargo dev sqlx");
    }
    let folder = root.join(".sqlx");
    std::fs::create_dir_all(&folder)?;
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        std::fs::remove_file(folder.join(name))?;
    }
    for (name, content) in &new {
        std::fs::write(folder.join(name), content)?;
    }
    say(&format!(".sqlx renewed: {} queries", new.len()));
    Ok(())
}

fn read(folder: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("query-") {
            files.insert(name, std::fs::read(entry.path())?);
        }
    }
    Ok(files)
}
