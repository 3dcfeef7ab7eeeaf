//! What the parts of the API document share: each process describes its routes, [`part`] completes them, and
//! `cargo dev openapi` puts the parts together.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use fechatter_core::problem::{Code, FieldError, PROBLEM_JSON, Problem};
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;
use utoipa::{PartialSchema, ToSchema};

use crate::VERSION;
use crate::layers::{REQUEST_ID, TRACE_RESPONSE};

mod example;

pub use example::example;

/// The member of an operation in which a handler names the codes of problems that follow from its rules. Those that follow
/// from the shape of its request are added by [`part`], which takes the member away.
pub const PROBLEM_CODES: &str = "x-problem-codes";

/// The methods of a path item.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// What any request can be told by the gateway.
const EDGE_CODES: [Code; 10] = [
    Code::BadRequest,
    Code::RequestTimeout,
    Code::UriTooLong,
    Code::MisdirectedRequest,
    Code::HeadersTooLarge,
    Code::RateLimited,
    Code::Internal,
    Code::BadGateway,
    Code::Unavailable,
    Code::GatewayTimeout,
];

/// A process's part of the API document: its routes, with every problem they can answer and examples of all bodies.
///
/// Fails only if the document cannot be written as JSON, or a handler names a code that does not exist.
pub fn part(document: &OpenApi) -> anyhow::Result<Value> {
    let mut part = serde_json::to_value(document)?;
    part["info"] = json!({
        "title": "Fechatter",
        "version": VERSION,
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    });
    add_components(&mut part)?;
    let components = part["components"].clone();
    for operation in operations(&mut part) {
        let codes = problem_codes(operation)?;
        add_problems(operation, &codes);
        add_headers(operation);
        add_examples(operation, &components);
    }
    Ok(part)
}

/// What the `openapi` command of a process does: prints its part.
#[expect(clippy::print_stdout, reason = "what the command is for")]
pub fn print(document: &OpenApi) -> ExitCode {
    match part(document) {
        Ok(part) => {
            println!("{part:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            crate::process::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The operations of a document.
fn operations(document: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    document["paths"]
        .as_object_mut()
        .into_iter()
        .flat_map(|paths| paths.values_mut())
        .filter_map(Value::as_object_mut)
        .flatten()
        .filter(|(method, _)| METHODS.contains(&method.as_str()))
        .filter_map(|(_, operation)| operation.as_object_mut())
}

fn add_components(part: &mut Value) -> serde_json::Result<()> {
    let mut schemas = Vec::new();
    Problem::schemas(&mut schemas);
    schemas.push((Problem::name().into_owned(), Problem::schema()));
    for (name, schema) in schemas {
        part["components"]["schemas"][name] = serde_json::to_value(schema)?;
    }
    part["components"]["securitySchemes"]["bearer"] = json!({
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The `access_token` of sign-up, sign-in or refresh.",
    });
    for code in Code::ALL {
        let value = serde_json::to_value(example_problem(*code))?;
        part["components"]["examples"][code.as_str()] = json!({"summary": code.title(), "value": value});
    }
    part["components"]["headers"] = json!({
        "request_id": {
            "description": "Names the request in problems, logs and traces.",
            "required": true,
            "schema": {"type": "string", "minLength": 8, "maxLength": 128},
        },
        "trace_response": {
            "description": "The trace the request is in (W3C Trace Context, level 2).",
            "schema": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"},
        },
        "retry_after": {
            "description": "Seconds after which a retry makes sense.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "www_authenticate": {
            "description": "`Bearer`, or `Bearer error=\"invalid_token\"`.",
            "schema": {"type": "string"},
        },
    });
    Ok(())
}

/// What a problem of this kind looks like.
fn example_problem(code: Code) -> Problem {
    let mut problem = match code {
        Code::ValidationFailed => Problem::fields(vec![FieldError {
            field: "content".to_owned(),
            code: "invalid".to_owned(),
            detail: "1 to 10000 characters and at most 65536 bytes".to_owned(),
        }]),
        code => Problem::new(code, "What happened, and the way out, in words for a person."),
    };
    problem.request_id = Some("0190a7c04f6e7b1e9d525b1f0c6e2d11".to_owned());
    if matches!(code, Code::RateLimited | Code::Unavailable) {
        problem.retry_after = Some(2);
    }
    problem
}

/// The codes a handler names, and those that follow from what it takes.
fn problem_codes(operation: &mut Map<String, Value>) -> anyhow::Result<BTreeSet<&'static str>> {
    let mut codes: BTreeSet<&'static str> = EDGE_CODES.iter().map(|code| code.as_str()).collect();
    let named = operation.remove(PROBLEM_CODES).unwrap_or_default();
    for name in named.as_array().into_iter().flatten().filter_map(Value::as_str) {
        codes.insert(code_named(name)?.as_str());
    }
    let mut add = |more: &[Code]| codes.extend(more.iter().map(|code| code.as_str()));
    if operation.contains_key("security") {
        add(&[Code::Unauthenticated, Code::InvalidToken]);
    }
    let parameters = operation.get("parameters").and_then(Value::as_array);
    for parameter in parameters.into_iter().flatten() {
        add(match parameter["in"].as_str() {
            Some("path") => &[Code::NotFound],
            _ => &[Code::ValidationFailed],
        });
    }
    if operation.contains_key("requestBody") {
        add(&[
            Code::MalformedJson,
            Code::PayloadTooLarge,
            Code::UnsupportedMediaType,
            Code::ValidationFailed,
        ]);
    } else {
        // A body where none belongs.
        add(&[Code::PayloadTooLarge]);
    }
    Ok(codes)
}

fn code_named(name: &str) -> anyhow::Result<Code> {
    Code::ALL
        .iter()
        .copied()
        .find(|code| code.as_str() == name)
        .ok_or_else(|| anyhow::anyhow!("there is no problem code {name}"))
}

/// One response per status, with an example for each code it can mean.
fn add_problems(operation: &mut Map<String, Value>, codes: &BTreeSet<&'static str>) {
    let mut statuses: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in Code::ALL.iter().filter(|code| codes.contains(code.as_str())) {
        statuses.entry(code.status()).or_default().push(*code);
    }
    for (status, codes) in statuses {
        let titles: Vec<&str> = codes.iter().map(|code| code.title()).collect();
        let examples: Map<String, Value> = codes
            .iter()
            .map(|code| {
                let name = code.as_str();
                (
                    name.to_owned(),
                    json!({"$ref": format!("#/components/examples/{name}")}),
                )
            })
            .collect();
        let response = &mut operation["responses"][status.to_string()];
        if response["description"].is_null() {
            response["description"] = json!(titles.join(", or: "));
        }
        response["content"][PROBLEM_JSON] =
            json!({"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples});
        match status {
            401 => response["headers"]["WWW-Authenticate"] = json!({"$ref": "#/components/headers/www_authenticate"}),
            429 | 503 => response["headers"]["Retry-After"] = json!({"$ref": "#/components/headers/retry_after"}),
            _ => {}
        }
    }
}

fn responses(operation: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    operation
        .get_mut("responses")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(|responses| responses.values_mut())
}

fn add_headers(operation: &mut Map<String, Value>) {
    for response in responses(operation) {
        response["headers"][REQUEST_ID.as_str()] = json!({"$ref": "#/components/headers/request_id"});
        response["headers"][TRACE_RESPONSE.as_str()] = json!({"$ref": "#/components/headers/trace_response"});
    }
}

/// Gives each JSON body an example, made of the examples of its schema.
fn add_examples(operation: &mut Map<String, Value>, components: &Value) {
    if let Some(body) = operation.get_mut("requestBody") {
        add_example(&mut body["content"], components);
    }
    for response in responses(operation) {
        if let Some(content) = response.get_mut("content") {
            add_example(content, components);
        }
    }
}

fn add_example(content: &mut Value, components: &Value) {
    let Some(media) = content.get_mut("application/json").and_then(Value::as_object_mut) else {
        return;
    };
    if media.contains_key("example") || media.contains_key("examples") {
        return;
    }
    if let Some(schema) = media.get("schema") {
        let value = example(schema, components);
        media.insert("example".to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use utoipa::openapi::OpenApiBuilder;

    fn document(operation: &Value) -> OpenApi {
        let whole = json!({
            "openapi": "3.1.0",
            "info": {"title": "", "version": ""},
            "paths": {"/things/{id}": {"post": operation}},
        });
        serde_json::from_value(whole).unwrap_or_else(|_| OpenApiBuilder::new().build())
    }

    #[test]
    fn problems_follow_from_the_shape_and_from_what_the_handler_names() {
        let document = document(&json!({
            "security": [{"bearer": []}],
            "parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "integer"}}],
            "responses": {"204": {"description": "Done"}, "403": {"description": "Not yours"}},
            PROBLEM_CODES: ["forbidden", "conflict"],
        }));
        let part = part(&document).unwrap();
        let operation = &part["paths"]["/things/{id}"]["post"];
        assert_eq!(operation[PROBLEM_CODES], Value::Null);
        let responses = operation["responses"].as_object().unwrap();
        for status in ["204", "400", "401", "403", "404", "409", "413", "429", "500", "503"] {
            assert!(responses.contains_key(status), "{status}");
            assert!(
                responses[status]["headers"][REQUEST_ID.as_str()].is_object(),
                "{status}"
            );
        }
        assert!(!responses.contains_key("415") && !responses.contains_key("422"));
        assert_eq!(responses["403"]["description"], "Not yours");
        let unauthenticated = &responses["401"]["content"][PROBLEM_JSON]["examples"];
        assert_eq!(
            unauthenticated.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["invalid_token", "unauthenticated"]
        );
        assert_eq!(part["components"]["examples"]["conflict"]["value"]["status"], 409);
    }

    #[test]
    fn a_code_that_does_not_exist_is_refused() {
        let document = document(&json!({"responses": {}, PROBLEM_CODES: ["nonsense"]}));
        assert!(part(&document).unwrap_err().to_string().contains("nonsense"));
    }
}
