//! `cargo dev openapi`: writes `docs/openapi.json` from the parts that the processes describe, or proves it current.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use dev::install;
use serde_json::{Value, json};

use crate::cargo::{self, Build, Stop, repository};
use crate::lines::say;

/// Options of `cargo dev openapi`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compare instead of writing.
    #[arg(long)]
    check: bool,
}

/// Where the document is; chat_service serves it.
const FILE: &str = "docs/openapi.json";

/// The processes that describe a part.
const PROCESSES: [&str; 4] = ["chat_service", "notify_service", "indexer", "gateway"];

/// The groups of the page, in its order.
const TAGS: [(&str, &str); 8] = [
    ("auth", "Accounts, sessions and tokens."),
    ("users", "People of the workspace."),
    ("workspace", "The workspace and who is let in."),
    ("chats", "Single chats, groups and channels."),
    ("members", "Who is in a chat, and who owns it."),
    ("messages", "What is said, and how far it was read."),
    ("events", "What happens, live."),
    ("search", "Messages, found."),
];

const DESCRIPTION: &str = "Chats, messages, search and live events.\n\n\
    Sign up or sign in, then send `Authorization: Bearer ACCESS_TOKEN`. Ids are integers below 2^53, times RFC 3339 in UTC. \
    Unknown members of a body are refused, and unknown parameters of operations that take some, so that a typo is not taken for an \
    absent value.\n\n\
    Errors are RFC 9457 problems (`application/problem+json`) with a stable `code`; the `request_id` of a problem, also in the \
    header `x-request-id` of every answer, finds the request in logs and traces. What one may not know of answers 404, what one may \
    know of but not do 403. 429 and 503 say in `Retry-After` when to come back.\n\n\
    Lists are pages: pass `next` as `cursor` for the following one; `null` ends the list.";

/// JSON in which characters beyond the basic plane are escapes: of some that patterns name, nothing would be seen.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.len_utf16() == 1 {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    let binaries = cargo::build(if args.check { Build::Tests } else { Build::Debug }, &stop)?;
    let document = whole(&binaries)?;
    let file = repository().join(FILE);
    let present = std::fs::read_to_string(&file).unwrap_or_default();
    let operations = document["paths"]
        .as_object()
        .into_iter()
        .flat_map(|paths| paths.values())
        .filter_map(Value::as_object)
        .map(serde_json::Map::len)
        .sum::<usize>();
    if serde_json::from_str::<Value>(&present).is_ok_and(|present| present == document) {
        say(&format!("{FILE} is current: {operations} operations"));
        return Ok(());
    }
    if args.check {
        bail!("{FILE} does not say what the code does; run: cargo dev openapi");
    }
    std::fs::write(&file, escaped(&format!("{document:#}\n"))).with_context(|| file.display().to_string())?;
    say(&format!("{FILE} renewed: {operations} operations"));
    Ok(())
}

/// The parts of all processes, put together.
fn whole(binaries: &Path) -> anyhow::Result<Value> {
    let mut whole = json!({"servers": [{"url": "/"}]});
    for process in PROCESSES {
        let output = Command::new(binaries.join(process))
            .arg("openapi")
            .output()
            .with_context(|| format!("cannot run {process}"))?;
        if !output.status.success() {
            bail!("{process} openapi: {}", String::from_utf8_lossy(&output.stderr));
        }
        let part = serde_json::from_slice(&output.stdout).with_context(|| format!("{process} openapi"))?;
        join(&mut whole, part, process)?;
    }
    whole["info"]["description"] = json!(DESCRIPTION);
    add_links(&mut whole);
    let mut tags: Vec<Value> = TAGS
        .iter()
        .map(|(name, description)| json!({"name": name, "description": description}))
        .collect();
    tags.push(json!({"name": "operation", "description": "Health, and this document."}));
    whole["tags"] = json!(tags);
    check_references(&whole, &whole)?;
    Ok(whole)
}

/// What is referred to must be there.
fn check_references(value: &Value, document: &Value) -> anyhow::Result<()> {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str)
                && reference
                    .strip_prefix('#')
                    .is_none_or(|pointer| document.pointer(pointer).is_none())
            {
                bail!("{reference} is referred to and not described");
            }
            members.values().try_for_each(|value| check_references(value, document))
        }
        Value::Array(items) => items.iter().try_for_each(|value| check_references(value, document)),
        _ => Ok(()),
    }
}

/// Where the ids of a path come from.
struct Link {
    /// The operation that answers with one, and its status.
    source: &'static str,
    status: &'static str,
    /// The paths that begin with this take the ids.
    folder: &'static str,
    /// Each parameter and where it is.
    parameters: &'static [(&'static str, &'static str)],
}

const LINKS: [Link; 5] = [
    Link {
        source: "create_chat",
        status: "201",
        folder: "/api/chat/{id}",
        parameters: &[("id", "$response.body#/id")],
    },
    Link {
        source: "send_message",
        status: "201",
        folder: "/api/chat/{id}/messages/{message_id}",
        parameters: &[("id", "$request.path.id"), ("message_id", "$response.body#/id")],
    },
    Link {
        source: "list_users",
        status: "200",
        folder: "/api/users/{id}",
        parameters: &[("id", "$response.body#/items/0/id")],
    },
    Link {
        source: "create_invitation",
        status: "201",
        folder: "/api/workspace/invitations/{id}",
        parameters: &[("id", "$response.body#/id")],
    },
    Link {
        source: "list_sessions",
        status: "200",
        folder: "/api/sessions/{id}",
        parameters: &[("id", "$response.body#/items/0/id")],
    },
];

/// Says which answers hold the ids that other operations take.
fn add_links(document: &mut Value) {
    let operations: Vec<(String, String)> = document["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(path, item)| {
            let ids = item.as_object().into_iter().flatten();
            ids.filter_map(move |(_, operation)| Some((path.clone(), operation["operationId"].as_str()?.to_owned())))
        })
        .collect();
    for Link {
        source,
        status,
        folder,
        parameters,
    } in LINKS
    {
        let links: serde_json::Map<String, Value> = operations
            .iter()
            .filter(|(path, _)| path.starts_with(folder) && path.matches('{').count() == parameters.len())
            .map(|(_, id)| {
                let parameters: serde_json::Map<String, Value> = parameters
                    .iter()
                    .map(|(name, expression)| ((*name).to_owned(), json!(expression)))
                    .collect();
                (id.clone(), json!({"operationId": id, "parameters": parameters}))
            })
            .collect();
        for operation in document["paths"]
            .as_object_mut()
            .into_iter()
            .flat_map(|paths| paths.values_mut())
            .filter_map(Value::as_object_mut)
            .flat_map(|item| item.values_mut())
            .filter(|operation| operation["operationId"] == source)
        {
            operation["responses"][status]["links"] = Value::Object(links.clone());
        }
    }
}

/// Adds a part. Two parts may say the same, never different things of one name.
fn join(whole: &mut Value, part: Value, place: &str) -> anyhow::Result<()> {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, value) in part {
                match whole.get_mut(&name) {
                    Some(present) => join(present, value, &format!("{place}: {name}"))?,
                    None => {
                        whole.insert(name, value);
                    }
                }
            }
        }
        (whole, part) if *whole != part => bail!("{place}: described as {part}, and elsewhere as {whole}"),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_and_contradictions_are_refused() {
        let mut whole = json!({"schemas": {"A": {"type": "string"}}});
        join(
            &mut whole,
            json!({"schemas": {"A": {"type": "string"}, "B": {}}}),
            "one",
        )
        .unwrap();
        assert_eq!(whole, json!({"schemas": {"A": {"type": "string"}, "B": {}}}));
        let error = join(&mut whole, json!({"schemas": {"A": {"type": "integer"}}}), "two").unwrap_err();
        assert!(error.to_string().starts_with("two: schemas: A: type"), "{error}");
    }

    #[test]
    fn what_is_referred_to_is_described() {
        let mut document = json!({"a": [{"$ref": "#/components/schemas/B"}], "components": {"schemas": {"B": {}}}});
        check_references(&document, &document).unwrap();
        document["components"] = json!({});
        assert!(check_references(&document, &document).is_err());
    }
}
