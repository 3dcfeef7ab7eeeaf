//! What a person needs besides data: every panel explains itself, and leads on to the traces and the runbooks behind it.

#![expect(clippy::unwrap_used, reason = "in a test, what is not there is a failure")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dev::prometheus;
use serde_json::Value;

/// The variables of every dashboard, in the order in which one chooses.
const VARIABLES: [&str; 6] = ["datasource", "traces", "namespace", "job", "instance", "runbooks"];
/// Times that belong to no trace: of connections, of streams, of the process.
const WITHOUT_TRACES: [&str; 6] = [
    "TLS handshakes",
    "Lifetime",
    "Certificate expires in",
    "Age of the oldest",
    "Last success",
    "CPU",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The dashboards, by the names of their files.
pub fn all() -> Vec<(String, Value)> {
    let folder = repository().join("observability/grafana/dashboards");
    let files = std::fs::read_dir(folder).unwrap().flatten();
    files
        .map(|file| {
            let text = std::fs::read_to_string(file.path()).unwrap();
            let name = file.file_name().to_string_lossy().into_owned();
            (name, serde_json::from_str(&text).unwrap())
        })
        .collect()
}

fn list<'a>(of: &'a Value, key: &str) -> Vec<&'a Value> {
    of[key].as_array().into_iter().flatten().collect()
}

/// Panels that are no headings, each with a name for messages.
fn panels(dashboards: &[(String, Value)]) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (file, dashboard) in dashboards {
        for panel in list(dashboard, "panels") {
            if panel["type"] != "row" {
                found.push((format!("{file}, {}", panel["title"]), panel));
            }
        }
    }
    assert!(found.len() > 70, "only {} panels found", found.len());
    found
}

#[test]
fn dashboards_are_provisioned_linked_and_can_be_narrowed_down() {
    let dashboards = all();
    assert!(dashboards.len() >= 6);
    for (file, dashboard) in &dashboards {
        assert!(dashboard["id"].is_null(), "{file}: an id is the database's, not ours");
        assert_eq!(dashboard["editable"], false, "{file}: a change would be lost");
        let uid = dashboard["uid"].as_str().unwrap();
        assert_eq!(format!("{}.json", uid.strip_prefix("fechatter-").unwrap()), *file);
        let names: Vec<&str> = list(&dashboard["templating"], "list")
            .into_iter()
            .map(|variable| variable["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, VARIABLES, "{file}");
        let leads_to_the_others = list(dashboard, "links")
            .into_iter()
            .any(|link| link["type"] == "dashboards" && link["includeVars"] == true && link["keepTime"] == true);
        assert!(leads_to_the_others, "{file}");
        let ids: BTreeSet<i64> = list(dashboard, "panels")
            .iter()
            .map(|panel| panel["id"].as_i64().unwrap())
            .collect();
        assert_eq!(
            ids.len(),
            list(dashboard, "panels").len(),
            "{file}: two panels of one id"
        );
    }
}

#[test]
fn every_panel_says_what_it_shows_in_which_unit_and_of_what() {
    for (name, panel) in panels(&all()) {
        assert!(
            panel["description"].as_str().is_some_and(|text| text.len() > 5),
            "{name}: no description"
        );
        let targets = list(panel, "targets");
        if targets.is_empty() {
            assert_eq!(panel["type"], "alertlist", "{name}: asks nothing");
            continue;
        }
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name}: no unit");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}");
            let expression = target["expr"].as_str().unwrap();
            let selectors = expression.matches('{').count();
            let narrowed = expression.matches("namespace=~\"$namespace\"").count();
            // Routes have braces of their own.
            let routes = expression.matches("{id}").count();
            assert!(selectors > 0 && narrowed == selectors - routes, "{name}: {expression}");
        }
    }
}

#[test]
fn every_latency_leads_to_its_traces() {
    let mut leading = 0;
    for (name, panel) in panels(&all()) {
        let defaults = &panel["fieldConfig"]["defaults"];
        let is_of_requests = defaults["unit"] == "s" && !WITHOUT_TRACES.contains(&panel["title"].as_str().unwrap());
        let links = list(defaults, "links");
        assert_eq!(is_of_requests, !links.is_empty(), "{name}");
        for link in links {
            let url = format!("http://grafana{}", link["url"].as_str().unwrap());
            let url = reqwest::Url::parse(&url).unwrap();
            assert_eq!(url.path(), "/explore");
            let panes = url
                .query_pairs()
                .find(|(key, _)| key == "panes")
                .unwrap()
                .1
                .into_owned();
            let panes: Value = serde_json::from_str(&panes).unwrap_or_else(|error| panic!("{name}: {error}: {panes}"));
            assert_eq!(panes["a"]["datasource"], "${traces}", "{name}");
            let query = &panes["a"]["queries"][0];
            assert_eq!(query["queryType"], "traceql", "{name}");
            let text = query["query"].as_str().unwrap();
            assert!(text.starts_with('{') && text.contains("uration>"), "{name}: {text}");
            leading += 1;
        }
    }
    assert!(leading >= 15, "only {leading}");
}

#[test]
fn alerts_panels_and_runbooks_lead_to_each_other() {
    let dashboards = all();
    let folder = prometheus::rules().join("../runbooks");
    let mut linked = BTreeSet::new();
    for (name, panel) in panels(&dashboards) {
        for link in list(panel, "links") {
            let url = link["url"].as_str().unwrap();
            let file = url
                .strip_prefix("${runbooks}/")
                .unwrap_or_else(|| panic!("{name}: {url}"));
            assert!(folder.join(file).is_file(), "{name}: there is no runbook {file}");
            linked.insert(file.trim_end_matches(".md").to_owned());
        }
    }
    let rules = std::fs::read_to_string(prometheus::rules().join("alert_rules.yaml")).unwrap();
    let after = |key: &str| -> BTreeSet<String> {
        let values = rules.lines().filter_map(|line| line.trim().strip_prefix(key));
        values.map(str::to_owned).collect()
    };
    assert_eq!(
        after("- alert: "),
        linked,
        "each alert is explained where it is seen, and nothing else"
    );
    let uids: BTreeSet<String> = dashboards
        .iter()
        .map(|(_, dashboard)| dashboard["uid"].as_str().unwrap().to_owned())
        .collect();
    let named = after("dashboard_uid: ");
    assert!(named.is_subset(&uids), "{named:?}");
    let books: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|file| file.file_name().to_string_lossy().trim_end_matches(".md").to_owned())
        .collect();
    assert_eq!(books, linked, "a runbook of no alert");
}
