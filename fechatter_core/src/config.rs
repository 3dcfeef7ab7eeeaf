//! Configuration: one typed struct per process, read from an optional TOML file and overlaid by environment variables,
//! validated before any socket opens.
//!
//! A variable is the process's prefix and the key's path joined by `__`: `FECHATTER_CHAT__DATABASE__URL` sets
//! `database.url` of chat_service. Every fault names its line or variable, the key and, for a value out of range, the range.

use std::path::Path;

use figment::error::Kind;
use serde::de::DeserializeOwned;

use self::source::Source;

mod source;

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
pub struct Faults(Vec<(String, String)>);

impl Faults {
    /// Records that `key` is wrong and what would be right.
    pub fn add(&mut self, key: &str, problem: impl std::fmt::Display) {
        self.0.push((key.to_owned(), problem.to_string()));
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
            .into_iter()
            .map(|(key, problem)| format!("{key}: {problem}"))
            .collect()
    }
}

/// Reads, overlays and validates; `env_prefix` ends in `__`. The error holds every fault, each with the line of the file or the
/// variable that it is about.
pub fn load<T: DeserializeOwned + Validate>(env_prefix: &str, file: Option<&Path>) -> Result<T, ConfigFaults> {
    let mut source = Source::read(env_prefix, file).map_err(|fault| ConfigFaults(vec![fault]))?;
    let (config, wrong) = extract::<T>(&mut source);
    let mut lines: Vec<String> = wrong
        .iter()
        .map(|fault| source.line(&fault.key, &fault.problem))
        .collect();
    if let Some(config) = &config {
        let mut faults = Faults::default();
        config.validate(&mut faults);
        // What cannot be read was left out, so that no rule about it has a meaning.
        let is_about_wrong = |key: &str| wrong.iter().any(|fault| is_within(key, &fault.key));
        let broken = faults.0.iter().filter(|(key, _)| !is_about_wrong(key));
        lines.extend(broken.map(|(key, problem)| source.line(key, problem)));
    }
    match config {
        Some(config) if lines.is_empty() => Ok(config),
        _ => Err(ConfigFaults(lines)),
    }
}

/// A setting that cannot be read.
struct Unreadable {
    key: String,
    problem: String,
}

/// Reads the values as `T`. Whatever cannot be read is left out and noted, so that one reading finds every fault; no `T` when that is
/// not possible.
fn extract<T: DeserializeOwned>(source: &mut Source) -> (Option<T>, Vec<Unreadable>) {
    let mut wrong = Vec::new();
    loop {
        let error = match source.extract::<T>() {
            Ok(config) => return (Some(config), wrong),
            Err(error) => error,
        };
        let around = error.path.join(".");
        let key = match &error.kind {
            Kind::UnknownField(name, _) if error.path.last() != Some(name) => joined(&around, name),
            Kind::MissingField(name) => joined(&around, name),
            _ => around.clone(),
        };
        // A password of digits only is text all the same.
        let wants_text = matches!(&error.kind, Kind::InvalidType(_, expected) if expected.contains("string"));
        if wants_text && source.as_text(&key) {
            continue;
        }
        let is_missing = matches!(error.kind, Kind::MissingField(_));
        let left_out = source.remove(if is_missing { &around } else { &key });
        // A table left out for a missing part of it is missing itself now.
        if !is_missing || !wrong.iter().any(|known: &Unreadable| is_within(&known.key, &key)) {
            wrong.push(Unreadable {
                problem: problem(&key, &error.kind),
                key,
            });
        }
        if !left_out {
            return (None, wrong);
        }
    }
}

fn joined(around: &str, name: &str) -> String {
    if around.is_empty() {
        name.to_owned()
    } else {
        format!("{around}.{name}")
    }
}

/// What is wrong, without the value where that is a secret.
fn problem(key: &str, kind: &Kind) -> String {
    const SECRETS: [&str; 4] = ["password", "secret", "key", "url"];
    match kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected)
            if SECRETS.iter().any(|secret| key.ends_with(secret)) =>
        {
            format!("expected {expected}")
        }
        Kind::MissingField(_) => "must be set".to_owned(),
        kind => kind.to_string(),
    }
}

/// Whether `key` is `outer` or a part of it.
fn is_within(key: &str, outer: &str) -> bool {
    key.strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ' ']))
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
        limit: u32,
        name: String,
        password: String,
    }

    impl Default for Pool {
        fn default() -> Self {
            Self {
                size: 8,
                limit: 8,
                name: String::new(),
                password: String::new(),
            }
        }
    }

    impl Validate for Sample {
        fn validate(&self, faults: &mut Faults) {
            faults.range("pool.size", self.pool.size, 1, 100);
            faults.range("pool.limit", self.pool.limit, 1, 100);
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
        std::fs::remove_file(&path).unwrap();
        let place = format!("{}:", path.display());
        result.map_err(|faults| ConfigFaults(faults.0.iter().map(|line| line.replace(&place, "line ")).collect()))
    }

    #[test]
    fn defaults_and_file() {
        assert_eq!(load_text("").unwrap().pool.size, 8);
        assert_eq!(load_text("[pool]\nsize = 9").unwrap().pool.size, 9);
    }

    #[test]
    fn faults_name_the_line_the_key_and_the_range() {
        let range = load_text("\n[pool]\n\nsize = 0").unwrap_err().to_string();
        assert_eq!(range, "line 4: pool.size: 0 is out of range, 1 to 100 is accepted");
        let kind = load_text("[pool]\nsize = \"many\"").unwrap_err().to_string();
        assert!(kind.starts_with("line 2: pool.size: invalid type"), "{kind}");
        let unknown = load_text("[pool]\nsise = 3").unwrap_err().to_string();
        assert!(unknown.starts_with("line 2: pool.sise: "), "{unknown}");
        let syntax = load_text("[pool]\nsize = 1\nsize = ").unwrap_err().to_string();
        assert!(syntax.starts_with("line 3: "), "{syntax}");
    }

    #[test]
    fn one_reading_finds_every_fault() {
        let faults = load_text("pool = { sise = 3, size = true, name = 1, limit = 500 }\npole = 1")
            .unwrap_err()
            .0;
        let keys: Vec<&str> = faults.iter().filter_map(|line| line.split(": ").nth(1)).collect();
        for key in ["pool.sise", "pool.size", "pool.name", "pool.limit", "pole"] {
            assert_eq!(
                keys.iter().filter(|known| **known == key).count(),
                1,
                "{key}: {faults:#?}"
            );
        }
        assert_eq!(faults.len(), 5, "{faults:#?}");
    }

    #[test]
    fn what_must_be_set_is_said_once_and_with_the_rest() {
        #[derive(Debug, serde::Deserialize)]
        struct Needy {
            _table: Table,
            _port: u16,
        }
        #[derive(Debug, serde::Deserialize)]
        struct Table {
            _needed: u32,
        }
        impl Validate for Needy {
            fn validate(&self, _: &mut Faults) {}
        }
        let mut source = Source::of_text("_table = { _other = 1 }\n_port = true");
        let (config, wrong) = extract::<Needy>(&mut source);
        assert!(config.is_none());
        let keys: Vec<&str> = wrong.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["_port", "_table._needed"]);
        assert_eq!(
            source.line(&wrong[1].key, &wrong[1].problem),
            "text:1: _table._needed: must be set"
        );
    }

    #[test]
    fn a_secret_is_not_repeated() {
        let fault = load_text("[pool]\npassword = 12345").unwrap_err().to_string();
        assert_eq!(fault, "line 2: pool.password: expected a string");
    }

    #[test]
    fn a_missing_file_is_said_plainly() {
        let error = load::<Sample>("X__", Some(Path::new("/nonexistent/x.toml"))).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/x.toml: no such configuration file");
    }
}
