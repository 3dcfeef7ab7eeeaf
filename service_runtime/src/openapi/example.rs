//! Examples made of schemas.

use serde_json::{Map, Value, json};

/// Deep enough for every shape of ours; a schema that contains itself ends here.
const DEPTH: usize = 12;

/// A value that fits `schema`: its own example, else one of its members' examples. `components` resolves references.
pub fn example(schema: &Value, components: &Value) -> Value {
    build(schema, components, DEPTH)
}

fn build(schema: &Value, components: &Value, depth: usize) -> Value {
    if depth == 0 {
        return Value::Null;
    }
    if let Some(value) = own(schema) {
        return value;
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return build(&components["schemas"][name], components, depth - 1);
    }
    if let Some(parts) = schema["allOf"].as_array() {
        let mut whole = Map::new();
        for part in parts {
            if let Value::Object(members) = build(part, components, depth - 1) {
                whole.extend(members);
            }
        }
        return Value::Object(whole);
    }
    for key in ["oneOf", "anyOf"] {
        let choices = schema[key].as_array().into_iter().flatten();
        if let Some(choice) = choices.into_iter().find(|choice| choice["type"] != "null") {
            return build(choice, components, depth - 1);
        }
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        _ => Vec::new(),
    };
    // Nothing to show of a value that may be absent and has no example.
    if types.contains(&"null") {
        return Value::Null;
    }
    match types.first().copied() {
        Some("object") => object(schema, components, depth),
        Some("array") => json!([build(&schema["items"], components, depth - 1)]),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or_else(|| json!(1)),
        Some("boolean") => json!(false),
        Some("string") => json!(text(schema)),
        _ => Value::Null,
    }
}

/// What the schema says itself.
fn own(schema: &Value) -> Option<Value> {
    let first = |key: &str| schema[key].as_array().and_then(|values| values.first()).cloned();
    schema
        .get("example")
        .or_else(|| schema.get("default"))
        .or_else(|| schema.get("const"))
        .cloned()
        .or_else(|| first("examples"))
        .or_else(|| first("enum"))
}

fn object(schema: &Value, components: &Value, depth: usize) -> Value {
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut members = Map::new();
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let value = build(member, components, depth - 1);
        if required.contains(&name.as_str()) || !value.is_null() {
            members.insert(name.clone(), value);
        }
    }
    Value::Object(members)
}

fn text(schema: &Value) -> &'static str {
    match schema["format"].as_str() {
        Some("date-time") => "2026-11-23T10:00:00Z",
        Some("uuid") => "0190a7c0-4f6e-7b1e-9d52-5b1f0c6e2d11",
        _ => "text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_come_from_the_schema_and_what_it_refers_to() {
        let components = json!({"schemas": {
            "Id": {"type": "integer", "example": 42},
            "Base": {"type": "object", "required": ["id", "gone"], "properties": {
                "id": {"$ref": "#/components/schemas/Id"},
                "gone": {"type": ["string", "null"]},
                "note": {"type": ["string", "null"]},
            }},
        }});
        let schema = json!({"allOf": [
            {"$ref": "#/components/schemas/Base"},
            {"type": "object", "required": ["at"], "properties": {"at": {"type": "string", "format": "date-time"}}},
        ]});
        assert_eq!(
            example(&schema, &components),
            json!({"id": 42, "gone": null, "at": "2026-11-23T10:00:00Z"})
        );
    }

    #[test]
    fn a_schema_that_contains_itself_ends() {
        let components =
            json!({"schemas": {"Loop": {"type": "array", "items": {"$ref": "#/components/schemas/Loop"}}}});
        assert!(example(&json!({"$ref": "#/components/schemas/Loop"}), &components).is_array());
    }
}
