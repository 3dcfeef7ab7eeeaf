//! What a configuration is read from, and where in it a setting stands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use serde::de::DeserializeOwned;
use toml_edit::{ImDocument, Item};

/// A file and the variables that go over it.
pub(super) struct Source {
    values: Dict,
    file: Option<File>,
    env_prefix: String,
    /// The variables as they are, by key.
    variables: BTreeMap<String, String>,
}

struct File {
    path: PathBuf,
    text: String,
    document: ImDocument<String>,
}

impl Source {
    /// Reads both; the error is a fault of the file as a whole, with its line.
    pub(super) fn read(env_prefix: &str, file: Option<&Path>) -> Result<Self, String> {
        Self::of(env_prefix, file.map(File::read).transpose()?)
    }

    #[cfg(test)]
    pub(super) fn of_text(text: &str) -> Self {
        Self::of("NO_VARIABLE__", File::parse(Path::new("text"), text.to_owned()).ok()).unwrap()
    }

    fn of(env_prefix: &str, file: Option<File>) -> Result<Self, String> {
        let environment = Env::prefixed(env_prefix).split("__");
        let variables = environment
            .iter()
            .map(|(key, value)| (key.as_str().to_ascii_lowercase(), value))
            .collect();
        let mut figment = Figment::new();
        if let Some(file) = &file {
            figment = figment.merge(Toml::string(&file.text));
        }
        let values = figment
            .merge(environment)
            .extract()
            .map_err(|error| error.kind.to_string())?;
        Ok(Self {
            values,
            file,
            env_prefix: env_prefix.to_owned(),
            variables,
        })
    }

    /// Reads the values as `T`.
    pub(super) fn extract<T: DeserializeOwned>(&self) -> Result<T, Box<figment::Error>> {
        Figment::from(Serialized::defaults(&self.values))
            .extract()
            .map_err(Box::new)
    }

    /// Takes a variable that looked like something else for the text it is; returns whether that changed anything.
    pub(super) fn as_text(&mut self, key: &str) -> bool {
        let Some(text) = self.variables.get(key).cloned() else {
            return false;
        };
        let segments: Vec<&str> = key.split('.').collect();
        match find_mut(&mut self.values, &segments) {
            Some((dict, last)) if dict.get(last).is_some_and(|value| value.as_str().is_none()) => {
                dict.insert(last.to_owned(), Value::from(text));
                true
            }
            _ => false,
        }
    }

    /// Leaves a setting out, or the nearest one around it that can be; returns whether there was any.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let segments: Vec<&str> = key.split('.').collect();
        (1..=segments.len()).rev().any(|length| {
            let place = find_mut(&mut self.values, &segments[..length]);
            place.is_some_and(|(dict, last)| dict.remove(last).is_some())
        })
    }

    /// A fault with its place: `FILE:LINE: key: problem` or `VARIABLE: key: problem`; the key alone when it is set nowhere.
    pub(super) fn line(&self, key: &str, problem: &str) -> String {
        let key_alone = key.split(' ').next().unwrap_or_default();
        let variable = || {
            format!(
                "{}{}",
                self.env_prefix,
                key_alone.to_ascii_uppercase().replace('.', "__")
            )
        };
        let fault = if key.is_empty() {
            problem.to_owned()
        } else {
            format!("{key}: {problem}")
        };
        // A variable goes over the file.
        if self.variables.contains_key(key_alone) {
            return format!("{}: {fault}", variable());
        }
        if let Some(file) = &self.file
            && let Some(line) = file.line_of(key_alone)
        {
            return format!("{}:{line}: {fault}", file.path.display());
        }
        if key.is_empty() {
            fault
        } else {
            format!("{fault} (environment: {})", variable())
        }
    }
}

/// The table that holds the last segment, and that segment.
fn find_mut<'a, 'k>(values: &'a mut Dict, segments: &[&'k str]) -> Option<(&'a mut Dict, &'k str)> {
    let (last, outer) = segments.split_last()?;
    let mut dict = values;
    for segment in outer {
        let Value::Dict(_, inner) = dict.get_mut(*segment)? else {
            return None;
        };
        dict = inner;
    }
    Some((dict, last))
}

impl File {
    fn read(path: &Path) -> Result<Self, String> {
        if !path.is_file() {
            return Err(format!("{}: no such configuration file", path.display()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: String) -> Result<Self, String> {
        let document = ImDocument::parse(text.clone()).map_err(|error| {
            let line = line_at(&text, error.span().map_or(0, |span| span.start));
            format!("{}:{line}: {}", path.display(), error.message())
        })?;
        Ok(Self {
            path: path.to_owned(),
            text,
            document,
        })
    }

    /// The line of a setting, or of the nearest one around it; none when nothing of it is here.
    fn line_of(&self, key: &str) -> Option<usize> {
        let mut item: &Item = self.document.as_item();
        let mut place = None;
        for segment in key.split('.') {
            let next = match item.as_table_like() {
                Some(table) => table
                    .get_key_value(segment)
                    .map(|(name, item)| (name.span().or_else(|| item.span()), item)),
                None => segment
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| item.get(index))
                    .map(|item| (item.span(), item)),
            };
            let Some((span, inner)) = next else { break };
            place = span.map(|span| span.start).or(place);
            item = inner;
        }
        place.map(|at| line_at(&self.text, at))
    }
}

/// The line of a byte, from 1.
fn line_at(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}
