//! The authorisation matrix of `docs/authorisation.md`, for the tests that prove it.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

/// Kinds of callers, in the order of the columns.
pub const CALLERS: [&str; 8] = [
    "no token",
    "expired",
    "forged",
    "other workspace",
    "not a member",
    "member",
    "owner",
    "admin",
];

/// The status that each caller gets; 2 stands for success.
pub type Row = [u16; 8];

/// Each route, as `METHOD /path/{id}`, with its row.
pub fn matrix() -> anyhow::Result<BTreeMap<String, Row>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/authorisation.md");
    let text = std::fs::read_to_string(file).context(file)?;
    let mut matrix = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let statuses: Result<Vec<u16>, _> = cells[1..].iter().map(|cell| cell.parse()).collect();
        let row: Row = statuses
            .ok()
            .and_then(|statuses| statuses.try_into().ok())
            .with_context(|| format!("{file}: a row has a route and {} statuses: {line}", CALLERS.len()))?;
        if matrix.insert(cells[0].trim_matches('`').to_owned(), row).is_some() {
            bail!("{file}: {} twice", cells[0]);
        }
    }
    Ok(matrix)
}

/// The routes of an OpenAPI document, as `METHOD /path/{id}`.
pub fn routes(document: &serde_json::Value) -> Vec<String> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().into_iter().flat_map(|methods| methods.keys());
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect()
}
