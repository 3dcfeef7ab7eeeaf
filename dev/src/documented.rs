//! Holds what a service answers against `docs/openapi.json`, for every test that sends a request.

use std::sync::OnceLock;

use serde_json::Value;

/// Asserts that the document lists this answer.
///
/// `path` may carry a query. The body of a problem must have a code that the document gives for its status; routes and methods
/// that the document does not know are not judged, because tests send those on purpose.
///
/// # Panics
///
/// When the document knows the route but not the status, or not the problem's code.
#[track_caller]
pub fn assert_documented(method: &str, path: &str, status: u16, body: &Value) {
    if let Err(fault) = judge(document(), method, path, status, body) {
        panic!("{fault}; list it at the route (`x-problem-codes`, `responses`) and run `cargo dev openapi`: {body}");
    }
}

fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
    })
}

fn judge(document: &Value, method: &str, path: &str, status: u16, body: &Value) -> Result<(), String> {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let Some((template, operations)) = find(document, path) else {
        return Ok(());
    };
    let method = method.to_lowercase();
    let Some(operation) = operations.get(&method) else {
        return Ok(());
    };
    let route = format!("{} {template}", method.to_uppercase());
    let Some(response) = operation["responses"].get(status.to_string()) else {
        return Err(format!("docs/openapi.json lists no {status} for {route}"));
    };
    if status < 400 {
        return Ok(());
    }
    let code = body["code"].as_str().unwrap_or_default();
    let content = &response["content"];
    // `/health` says what is down in a body of its own.
    let not_a_problem = code.is_empty() && content.get("application/json").is_some();
    if not_a_problem || content["application/problem+json"]["examples"].get(code).is_some() {
        Ok(())
    } else {
        Err(format!("docs/openapi.json lists no {status} `{code}` for {route}"))
    }
}

/// The template of a path, literal segments before parameters, with its operations.
fn find<'document>(document: &'document Value, path: &str) -> Option<(&'document str, &'document Value)> {
    let parameters = |template: &str| template.matches('{').count();
    let fits = |template: &str| {
        let mut parts = path.split('/');
        let same = template.split('/').all(|wanted| {
            let part = parts.next();
            part == Some(wanted) || (wanted.starts_with('{') && part.is_some_and(|part| !part.is_empty()))
        });
        same && parts.next().is_none()
    };
    let paths = document["paths"].as_object()?;
    paths
        .iter()
        .map(|(template, operations)| (template.as_str(), operations))
        .filter(|(template, _)| fits(template))
        .min_by_key(|(template, _)| parameters(template))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_judged_by_its_route_status_and_code() {
        let forbidden = json!({"content": {"application/problem+json": {"examples": {"forbidden": {}}}}});
        let document = json!({"paths": {
            "/api/chat/{id}": {"get": {"responses": {"200": {}, "403": forbidden}}},
            "/api/chat/mine": {"get": {"responses": {"204": {}}}},
            "/health": {"get": {"responses": {"503": {"content": {"application/json": {}}}}}},
        }});
        let judge = |method, path, status, code| judge(&document, method, path, status, &json!({"code": code}));
        assert_eq!(judge("GET", "/api/chat/7?x=/", 200, ""), Ok(()));
        assert_eq!(judge("GET", "/api/chat/7", 403, "forbidden"), Ok(()));
        assert!(judge("GET", "/api/chat/7", 403, "not_found").is_err());
        assert!(judge("GET", "/api/chat/7", 403, "").is_err(), "a problem has a code");
        assert_eq!(judge("GET", "/health", 503, ""), Ok(()));
        assert!(judge("GET", "/api/chat/7", 404, "not_found").is_err());
        assert!(
            judge("GET", "/api/chat/mine", 200, "").is_err(),
            "the literal path counts"
        );
        // Not in the document: a method, a longer and a shorter path.
        for (method, path) in [("PUT", "/api/chat/7"), ("GET", "/api/chat/7/x"), ("GET", "/api/chat/")] {
            assert_eq!(judge(method, path, 418, ""), Ok(()));
        }
    }
}
