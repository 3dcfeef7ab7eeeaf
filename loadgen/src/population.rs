//! People and chats to work with, made in bulk in the database of a platform that we started ourselves.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use dev::platform::Platform;
use dev::psql::Target;
use serde_json::json;

use crate::tokens::Signer;

/// Everybody's password.
pub const PASSWORD: &str = "correct horse battery";

/// Somebody who can act.
#[derive(Debug, Clone)]
pub struct Person {
    pub id: i64,
    pub email: String,
    pub token: String,
}

/// One workspace and who is in it.
pub struct Population {
    pub workspace: i64,
    pub people: Vec<Person>,
    owner_database: Target,
    signer: Signer,
}

impl Population {
    /// Signs one person up through the API and copies her in the database: the same password, without hashing it again.
    pub fn settle(platform: &Platform, data: &Path, count: usize) -> anyhow::Result<Self> {
        let body = json!({
            "fullname": "Load Zero", "email": "load0@load.example", "password": PASSWORD, "workspace": "Load",
        });
        let answer = dev::http::request(platform.ports().chat, "POST", "/api/signup", None, Some(&body))?;
        if answer.status != 201 && answer.status != 200 {
            bail!("sign-up answered {} {}", answer.status, answer.body);
        }
        let target = Target::parse(&platform.database_url("owner"));
        target.run(&format!(
            "INSERT INTO users (workspace_id, fullname, email, password_hash)
             SELECT workspace_id, 'Load ' || n, 'load' || n || '@load.example', password_hash
             FROM users, generate_series(1, {}) AS n WHERE email = 'load0@load.example';
             ANALYZE users;",
            count.saturating_sub(1)
        ))?;
        let rows = target
            .run("SELECT workspace_id, id, email FROM users WHERE email LIKE 'load%@load.example' ORDER BY id")?;
        let signer = Signer::of_platform(&data.join("keys"))?;
        let mut people = Vec::with_capacity(count);
        let mut workspace = 0;
        for row in rows.lines() {
            let mut fields = row.split('|');
            let mut next = || fields.next().context("a short row of users");
            workspace = next()?.parse()?;
            let id = next()?.parse()?;
            people.push(Person {
                id,
                email: next()?.to_owned(),
                token: signer.sign(id, workspace)?,
            });
        }
        Ok(Self {
            workspace,
            people,
            owner_database: target,
            signer,
        })
    }

    /// Makes a chat of each group of people, given by their places in `people`; the first owns it. Returns the chats' ids.
    pub fn chats(&self, groups: &[Vec<usize>]) -> anyhow::Result<Vec<i64>> {
        use std::fmt::Write as _;
        let mut sql = "BEGIN;
            CREATE TEMPORARY TABLE wanted (number bigint, place bigint, user_id bigint) ON COMMIT DROP;
            COPY wanted FROM STDIN;\n"
            .to_owned();
        for (number, group) in groups.iter().enumerate() {
            for (place, person) in group.iter().enumerate() {
                let id = self.people.get(*person).context("no such person")?.id;
                let _ = writeln!(sql, "{number}\t{place}\t{id}");
            }
        }
        let workspace = self.workspace;
        let _ = write!(
            sql,
            "\\.
            CREATE TEMPORARY TABLE made ON COMMIT DROP AS
                SELECT number, nextval(pg_get_serial_sequence('chats', 'id')) AS id, count(*) AS members
                FROM wanted GROUP BY number ORDER BY number;
            INSERT INTO chats (id, workspace_id, kind, name, owner_id, member_count, membership_version)
                OVERRIDING SYSTEM VALUE
                SELECT made.id, {workspace}, 'private_channel', 'load ' || made.id, wanted.user_id, made.members, 1
                FROM made JOIN wanted USING (number) WHERE wanted.place = 0;
            INSERT INTO chat_members (chat_id, user_id, workspace_id)
                SELECT made.id, wanted.user_id, {workspace} FROM made JOIN wanted USING (number);
            SELECT id FROM made ORDER BY number;
            COMMIT;
            ANALYZE chats; ANALYZE chat_members;"
        );
        let printed = self.owner_database.run(&sql)?;
        let chats: Vec<i64> = printed.lines().filter_map(|line| line.trim().parse().ok()).collect();
        if chats.len() != groups.len() {
            bail!("{} chats were made where {} were wanted", chats.len(), groups.len());
        }
        Ok(chats)
    }

    /// Another token of a person, for what takes longer than one lives.
    pub fn token(&self, place: usize) -> anyhow::Result<Arc<str>> {
        let person = self.people.get(place).context("no such person")?;
        Ok(self.signer.sign(person.id, self.workspace)?.into())
    }

    /// The database as its owner.
    pub fn database(&self) -> &Target {
        &self.owner_database
    }
}
