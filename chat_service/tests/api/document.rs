//! The OpenAPI document is generated from the code, complete, and read by clients as it was reviewed.

use std::collections::BTreeSet;

use reqwest::Method;

use crate::support::App;

#[tokio::test]
async fn every_operation_is_documented_with_its_problems() {
    let app = App::start().await;
    let (status, document) = app.anonymous(Method::GET, "/openapi.json", None).await;
    assert_eq!(status.as_u16(), 200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(operation["summary"].is_string(), "{method} {path} says what it does");
            let responses = operation["responses"].as_object().unwrap();
            assert!(
                responses.keys().any(|status| status.starts_with('2')),
                "{method} {path}"
            );
            assert!(responses.contains_key("503"), "{method} {path}");
        }
    }
    let operations: Vec<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods
                .as_object()
                .unwrap()
                .keys()
                .map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    insta::assert_snapshot!("operations", operations.join("\n"));
}
