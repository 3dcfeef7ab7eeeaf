//! The platform's database: where its cluster is, its roles and its schema.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::Platform;
use crate::psql::Target;
use crate::{postgres, tools};

/// Where clusters go that cannot be in their data folder.
const ELSEWHERE: &str = "/var/lib/fechatter";
/// In a folder of [`ELSEWHERE`]: the data folder it belongs to.
const OWNER: &str = "data-folder";

impl Platform {
    pub(super) fn start_postgres(&mut self, say: &dyn Fn(&str)) -> anyhow::Result<()> {
        if let Some(url) = &self.options.postgres_url {
            say("checking the external PostgreSQL");
            return check_external(url);
        }
        let data = cluster_folder(&self.options.data, self.secrets.get("instance"), say)?;
        say("starting PostgreSQL");
        self.postgres = Some(postgres::Server::start(postgres::Options {
            data,
            port: self.options.ports.postgres,
            log: self.options.data.join("logs/postgres.log"),
            password: Some(self.secrets.get("postgres").to_owned()),
            fsync: self.options.fsync,
        })?);
        Ok(())
    }

    /// Makes the database and its roles, and applies the migrations.
    pub(super) fn migrate(&mut self, say: &dyn Fn(&str)) -> anyhow::Result<()> {
        say("migrating the database");
        if let Some(server) = &self.postgres {
            let owner = self.secrets.get("postgres_owner");
            server.psql(
                "postgres",
                &format!(
                    "DO $$ BEGIN CREATE ROLE fechatter_owner LOGIN CREATEROLE PASSWORD '{owner}';
                     EXCEPTION WHEN duplicate_object THEN NULL; END $$"
                ),
            )?;
            let exists = server.psql("postgres", "SELECT 1 FROM pg_database WHERE datname = 'fechatter'")?;
            if exists.trim() != "1" {
                server.psql("postgres", "CREATE DATABASE fechatter OWNER fechatter_owner")?;
            }
        }
        let url = self.database_url("owner");
        tools::run(Command::new(self.binary("migrations")?).env("DATABASE_URL", &url))?;
        let mut sql = String::new();
        for (role, group) in postgres::ROLES {
            let password = self.secrets.get(&format!("postgres_{role}"));
            let _ = write!(
                sql,
                "DO $$ BEGIN CREATE ROLE {group}_login LOGIN IN ROLE {group};
                 EXCEPTION WHEN duplicate_object THEN NULL; END $$;
                 ALTER ROLE {group}_login PASSWORD '{password}';"
            );
        }
        Target::parse(&url)
            .run(&sql)
            .context("cannot make the services' roles")
            .map(|_| ())
    }

    /// URL of the database for `owner` or a service's login role.
    pub fn database_url(&self, role: &str) -> String {
        let (user, password) = match role {
            "owner" => ("fechatter_owner".to_owned(), self.secrets.get("postgres_owner")),
            role => (
                format!("fechatter_{role}_login"),
                self.secrets.get(&format!("postgres_{role}")),
            ),
        };
        match &self.options.postgres_url {
            Some(url) if role == "owner" => url.clone(),
            Some(url) => {
                let address = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
                let address = address.rsplit_once('@').map_or(address, |(_, address)| address);
                format!("postgres://{user}:{password}@{address}")
            }
            None => format!(
                "postgres://{user}:{password}@127.0.0.1:{}/fechatter",
                self.options.ports.postgres
            ),
        }
    }
}

fn check_external(url: &str) -> anyhow::Result<()> {
    let version = Target::parse(url)
        .run("SHOW server_version_num")
        .context("cannot use the PostgreSQL of --postgres-url")?;
    let major = version.trim().parse::<u32>().unwrap_or_default() / 10_000;
    if major < tools::POSTGRES_MIN {
        bail!(
            "the PostgreSQL of --postgres-url is version {major}; {} or newer is needed",
            tools::POSTGRES_MIN
        );
    }
    Ok(())
}

/// Where PostgreSQL's data goes: beside the rest, unless its user may not go there.
fn cluster_folder(data: &Path, instance: &str, say: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    if tools::postgres_may_enter(data)? {
        return Ok(data.join("postgres"));
    }
    let owner = data.display().to_string();
    // Named after the instance, so that a data folder that is deleted and made again begins anew here, too.
    let folder = Path::new(ELSEWHERE).join(instance);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(folder.join(OWNER), &owner).with_context(|| format!("cannot write in {}", folder.display()))?;
    say(&format!(
        "PostgreSQL's user may not enter {owner}; its data is in {}",
        folder.display()
    ));
    for other in std::fs::read_dir(ELSEWHERE).into_iter().flatten().flatten() {
        let is_left = std::fs::read_to_string(other.path().join(OWNER)).is_ok_and(|of| of == owner);
        if is_left && other.path() != folder {
            say(&format!(
                "{} is left of an earlier {owner}; remove it when nobody needs it",
                other.path().display()
            ));
        }
    }
    Ok(folder.join("postgres"))
}
