//! Passwords made at the first start and kept in the data folder, readable by its owner alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

/// Secrets by name.
#[derive(Debug, Clone)]
pub struct Secrets(BTreeMap<String, String>);

/// What needs a password.
const NAMES: [&str; 11] = [
    // Not a secret: tells this data folder from an earlier one of the same path.
    "instance",
    "postgres",
    "postgres_owner",
    "postgres_chat",
    "postgres_notify",
    "postgres_indexer",
    "nats_chat",
    "nats_notify",
    "nats_indexer",
    "nats_gateway",
    "probe",
];

impl Secrets {
    /// Reads the secrets of a data folder, making those that are not there.
    pub fn open(data: &Path) -> anyhow::Result<Self> {
        let path = data.join("secrets.json");
        let mut secrets: BTreeMap<String, String> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?,
            Err(_) => BTreeMap::new(),
        };
        if NAMES.iter().any(|name| !secrets.contains_key(*name)) {
            for name in NAMES {
                secrets.entry(name.to_owned()).or_insert(random()?);
            }
            let new = path.with_extension("new");
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)
                .with_context(|| format!("cannot write {}", new.display()))?;
            file.write_all(&serde_json::to_vec_pretty(&secrets)?)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
        }
        Ok(Self(secrets))
    }

    /// A secret of [`NAMES`].
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

/// 192 random bits in hexadecimal: safe in URLs and configuration files.
fn random() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 24];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("no randomness")?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_made_once_and_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = Secrets::open(folder.path()).unwrap();
        assert_eq!(first.get("postgres").len(), 48);
        assert_ne!(first.get("postgres"), first.get("nats_chat"));
        let again = Secrets::open(folder.path()).unwrap();
        assert_eq!(first.get("postgres"), again.get("postgres"));
        let mode = std::fs::metadata(folder.path().join("secrets.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
