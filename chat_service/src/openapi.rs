//! The OpenAPI document: generated from the handlers, completed with what every route shares.

use fechatter_core::problem::Problem;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, HttpMethod, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};

/// Adds the bearer scheme and to each operation the problems it can answer.
pub fn complete(mut document: OpenApi) -> OpenApi {
    "Fechatter".clone_into(&mut document.info.title);
    service_runtime::VERSION.clone_into(&mut document.info.version);
    document.info.description =
        Some("Chats, messages, search and live events. Errors are RFC 9457 problems with a stable `code`.".to_owned());
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let mut schemas = Vec::new();
    Problem::schemas(&mut schemas);
    schemas.push((Problem::name().into_owned(), Problem::schema()));
    components.schemas.extend(schemas);
    for path in document.paths.paths.values_mut() {
        for (method, operation) in [
            (HttpMethod::Get, &mut path.get),
            (HttpMethod::Post, &mut path.post),
            (HttpMethod::Put, &mut path.put),
            (HttpMethod::Patch, &mut path.patch),
            (HttpMethod::Delete, &mut path.delete),
        ] {
            if let Some(operation) = operation {
                add_problems(&method, operation);
            }
        }
    }
    document
}

fn add_problems(method: &HttpMethod, operation: &mut Operation) {
    let mut statuses = vec![
        ("429", "Too many requests"),
        ("500", "Internal error"),
        ("503", "A dependency is away"),
    ];
    if operation.security.is_some() {
        statuses.extend([("401", "No valid access token"), ("403", "Not allowed")]);
    } else if *method != HttpMethod::Get {
        statuses.extend([
            ("401", "Wrong credentials"),
            ("403", "Not allowed"),
            ("409", "Contradicts the present state"),
        ]);
    }
    if operation
        .parameters
        .as_ref()
        .is_some_and(|parameters| !parameters.is_empty())
    {
        statuses.extend([
            ("404", "No such thing, or not yours to see"),
            ("422", "Values break a rule"),
        ]);
    }
    if operation.request_body.is_some() {
        statuses.extend([
            ("400", "Malformed JSON"),
            ("413", "Body too large"),
            ("415", "Not JSON"),
            ("422", "Values break a rule"),
        ]);
    }
    if *method != HttpMethod::Get {
        statuses.push(("409", "Contradicts the present state"));
    }
    for (status, description) in statuses {
        let response = ResponseBuilder::new()
            .description(description)
            .content(
                fechatter_core::problem::PROBLEM_JSON,
                ContentBuilder::new()
                    .schema(Some(Ref::from_schema_name("Problem")))
                    .build(),
            )
            .build();
        operation
            .responses
            .responses
            .entry(status.to_owned())
            .or_insert(RefOr::T(response));
    }
}
