//! The API document is complete, and the page that shows it loads nothing from elsewhere.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value;

use crate::support::App;

#[tokio::test]
async fn every_operation_is_documented_with_its_problems_and_examples() {
    let app = App::start().await;
    let (status, document) = app.anonymous(Method::GET, "/openapi.json", None).await;
    assert_eq!(status.as_u16(), 200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let what = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(operation["summary"].is_string(), "{what} says what it does");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{what}");
            let bodies = responses
                .iter()
                .map(|(status, response)| (status.as_str(), &response["content"]));
            for (place, content) in bodies.chain([("the request", &operation["requestBody"]["content"])]) {
                for (media, content) in content.as_object().into_iter().flatten() {
                    let has_example = content["example"] != Value::Null || content["examples"] != Value::Null;
                    assert!(
                        has_example || !media.ends_with("json"),
                        "{what}: {place} has no example of {media}"
                    );
                }
            }
            for status in ["400", "429", "500", "503"] {
                let problem = &responses[status]["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(problem, "#/components/schemas/Problem", "{what}: {status}");
            }
            if operation["security"].is_array() {
                assert!(responses.contains_key("401"), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn the_page_is_whole_and_asks_nobody_else() {
    let app = App::start().await;
    let page = app.http.get(format!("{}/docs", app.url)).send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    let page = page.text().await.unwrap();
    assert!(!page.contains("://"), "{page}");
    let files: Vec<&str> = page.split('"').filter(|part| part.starts_with("/docs/")).collect();
    assert_eq!(files.len(), 3, "{page}");
    for file in files {
        let answer = app.http.get(format!("{}{file}", app.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{file}");
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(
            kind.starts_with(if file.ends_with("css") {
                "text/css"
            } else {
                "text/javascript"
            }),
            "{file}: {kind}"
        );
        assert!(!answer.bytes().await.unwrap().is_empty());
    }
    let (status, problem) = app.anonymous(Method::GET, "/docs/secrets.txt", None).await;
    assert_eq!((status.as_u16(), problem["code"].as_str()), (404, Some("not_found")));
}
