//! SQL through psql, without a password or a statement in the process list.

use std::io::{Seek, SeekFrom, Write};
use std::process::{Command, Stdio};

use crate::tools;

/// A database to run SQL in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The URL without its password.
    url: String,
    password: Option<String>,
}

impl Target {
    /// Takes the password out of a URL.
    pub fn parse(url: &str) -> Self {
        let whole = || Self {
            url: url.to_owned(),
            password: None,
        };
        let Some((scheme, rest)) = url.split_once("://") else {
            return whole();
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let Some((login, _)) = authority.rsplit_once('@') else {
            return whole();
        };
        let Some((user, password)) = login.split_once(':') else {
            return whole();
        };
        Self {
            url: format!("{scheme}://{user}{}", &rest[login.len()..]),
            password: Some(percent_decode(password)),
        }
    }

    /// Runs statements and returns what psql prints, unaligned and without headings.
    pub fn run(&self, sql: &str) -> anyhow::Result<String> {
        let mut script = tempfile::tempfile()?;
        script.write_all(sql.as_bytes())?;
        script.seek(SeekFrom::Start(0))?;
        let mut command = Command::new(tools::postgres_bin()?.join("psql"));
        command
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-w",
                "-f",
                "-",
                "-d",
                &self.url,
            ])
            .env("PGCONNECT_TIMEOUT", "5")
            .stdin(Stdio::from(script));
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password);
        }
        tools::run(&mut command)
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| std::str::from_utf8(after.get(..2)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_leaves_the_url() {
        let target = Target::parse("postgres://ada:p%40ss%3A1%@db.example:5432/chat?sslmode=require");
        assert_eq!(target.url, "postgres://ada@db.example:5432/chat?sslmode=require");
        assert_eq!(target.password.as_deref(), Some("p@ss:1%"));
        for url in ["postgres://ada@db.example/chat", "postgres:///chat", "dbname=chat"] {
            assert_eq!(Target::parse(url).url, url);
            assert_eq!(Target::parse(url).password, None);
        }
    }
}
