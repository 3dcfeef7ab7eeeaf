//! Configuration: one typed struct per process, read from an optional TOML file and overlaid by environment variables,
//! validated before any socket opens.
//!
//! A variable is the process's prefix and the key's path joined by `__`: `FECHATTER_CHAT__DATABASE__URL` sets
//! `database.url` of chat_service. Every fault names the key and, for a value out of range, the range.

use std::path::Path;

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::de::DeserializeOwned;

/// Exit code for a bad configuration (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigFaults(pub Vec<String>);

/// A configuration that knows its own rules.
pub trait Validate {
    /// Adds every broken rule to `faults`.
    fn validate(&self, faults: &mut Faults);
}

/// Collects broken rules by key.
#[derive(Debug, Default)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Records that `key` is wrong and what would be right.
    pub fn add(&mut self, key: &str, problem: impl std::fmt::Display) {
        self.0.push(format!("{key}: {problem}"));
    }

    /// Records a fault unless `low <= value <= high`.
    pub fn range<T: PartialOrd + Copy + std::fmt::Display>(&mut self, key: &str, value: T, low: T, high: T) {
        if value < low || value > high {
            self.add(
                key,
                format_args!("{value} is out of range, {low} to {high} is accepted"),
            );
        }
    }

    /// Records a fault when `text` is empty.
    pub fn required(&mut self, key: &str, text: &str) {
        if text.is_empty() {
            self.add(key, "must be set");
        }
    }

    /// The faults found, in order.
    pub fn into_lines(self) -> Vec<String> {
        self.0
    }
}

/// Reads, overlays and validates; `env_prefix` ends in `__`.
pub fn load<T: DeserializeOwned + Validate>(env_prefix: &str, file: Option<&Path>) -> Result<T, ConfigFaults> {
    let mut figment = Figment::new();
    if let Some(path) = file {
        if !path.is_file() {
            return Err(ConfigFaults(vec![format!(
                "{}: no such configuration file",
                path.display()
            )]));
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    figment = figment.merge(Env::prefixed(env_prefix).split("__"));
    let config: T = figment.extract().map_err(|errors| {
        ConfigFaults(
            errors
                .into_iter()
                .map(|error| {
                    let key = error.path.join(".");
                    let source = error
                        .metadata
                        .as_ref()
                        .map(|m| format!(" (from {})", m.name))
                        .unwrap_or_default();
                    if key.is_empty() {
                        format!("{}{source}", error.kind)
                    } else {
                        format!("{key}: {}{source}", error.kind)
                    }
                })
                .collect(),
        )
    })?;
    let mut faults = Faults::default();
    config.validate(&mut faults);
    if faults.0.is_empty() {
        Ok(config)
    } else {
        Err(ConfigFaults(faults.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        pool: Pool,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Pool {
        size: u32,
    }

    impl Default for Pool {
        fn default() -> Self {
            Self { size: 8 }
        }
    }

    impl Validate for Sample {
        fn validate(&self, faults: &mut Faults) {
            faults.range("pool.size", self.pool.size, 1, 100);
        }
    }

    fn load_text(text: &str) -> Result<Sample, ConfigFaults> {
        let mut path = std::env::temp_dir();
        path.push(format!("fechatter-config-{}.toml", uuid::Uuid::now_v7()));
        std::fs::File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let result = load("FECHATTER_SAMPLE_TEST__", Some(&path));
        std::fs::remove_file(path).unwrap();
        result
    }

    #[test]
    fn defaults_and_file() {
        assert_eq!(load_text("").unwrap().pool.size, 8);
        assert_eq!(load_text("[pool]\nsize = 9").unwrap().pool.size, 9);
    }

    #[test]
    fn faults_name_the_key_and_the_range() {
        let range = load_text("[pool]\nsize = 0").unwrap_err().to_string();
        assert_eq!(range, "pool.size: 0 is out of range, 1 to 100 is accepted");
        let kind = load_text("[pool]\nsize = \"many\"").unwrap_err().to_string();
        assert!(kind.starts_with("pool.size: invalid type"), "{kind}");
        let unknown = load_text("[pool]\nsise = 3").unwrap_err().to_string();
        assert!(unknown.contains("sise"), "{unknown}");
    }

    #[test]
    fn a_missing_file_is_said_plainly() {
        let error = load::<Sample>("X__", Some(Path::new("/nonexistent/x.toml"))).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/x.toml: no such configuration file");
    }
}
