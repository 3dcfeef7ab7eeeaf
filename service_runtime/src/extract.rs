//! Extractors whose rejections are problems with the field that is wrong.

use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::{BytesRejection, FailedToBufferBody, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request};
use axum::response::{IntoResponse, Response};
use fechatter_core::problem::{Code, Problem};
use http::request::Parts;
use http::{HeaderMap, header};
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::ApiError;

/// A JSON body: 415 for another media type, 413 when too large, 400 when malformed, 422 when the values do not fit.
/// Also a JSON answer.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                Code::UnsupportedMediaType,
                "The body must be JSON; set `Content-Type: application/json`.",
            ));
        }
        if is_encoded(request.headers()) {
            return Err(ApiError::new(
                Code::UnsupportedMediaType,
                "The body must be sent as it is, without `Content-Encoding`.",
            ));
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| match rejection {
                BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                    ApiError::new(Code::PayloadTooLarge, "The body is larger than this route accepts.")
                }
                _ => ApiError::new(Code::BadRequest, "The body could not be read to its end."),
            })?;
        parse_json(&bytes).map(Self).map_err(ApiError::from)
    }
}

/// A body that may be absent: `None` when it is empty.
impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, ApiError> {
        if request.body().is_end_stream() {
            return Ok(None);
        }
        <Self as FromRequest<S>>::from_request(request, state).await.map(Some)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    encodings
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Parses a JSON object and says where it does not fit.
///
/// An array is none, although serde would take its items for the members of a struct. `3.0` is an integer, as JSON Schema has it.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| malformed(&error))?;
        return Err(Problem::field("body", "invalid", "a JSON object"));
    }
    match parse_members(bytes) {
        Err(problem)
            if problem
                .errors
                .iter()
                .any(|error| error.detail.contains("floating point")) =>
        {
            let lenient = serde_json::from_slice::<Lenient>(bytes).ok();
            lenient
                .and_then(|Lenient(value)| serde_json::from_value(value).ok())
                .ok_or(problem)
        }
        result => result,
    }
}

/// Any JSON in which whole numbers are integers, however they are written, as far as they are exact. A member that comes
/// twice is refused, as everywhere.
struct Lenient(Value);

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LenientVisitor).map(Self)
    }
}

struct LenientVisitor;

impl<'de> Visitor<'de> for LenientVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    #[expect(clippy::cast_possible_truncation, reason = "whole, and small enough to be exact")]
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        let is_whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
        Ok(if is_whole { (value as i64).into() } else { value.into() })
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Lenient(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = serde_json::Map::new();
        while let Some((name, Lenient(member))) = access.next_entry::<String, Lenient>()? {
            if members.insert(name, member).is_some() {
                return Err(serde::de::Error::custom("a member that comes twice"));
            }
        }
        Ok(members.into())
    }
}

fn parse_members<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.classify() == serde_json::error::Category::Data {
            let text = inner.to_string();
            // The position adds nothing once the field is named.
            let detail = for_people(text.split(" at line ").next().unwrap_or_default());
            Problem::field(
                if path == "." { "body".to_owned() } else { path },
                data_code(&detail),
                detail,
            )
        } else {
            malformed(&inner)
        }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

/// What a parser says of a value, without the names of our types.
fn for_people(detail: &str) -> String {
    match detail {
        "invalid digit found in string" | "cannot parse integer from empty string" => "expected an integer".to_owned(),
        "number too large to fit in target type" | "number too small to fit in target type" => {
            "the integer is out of range".to_owned()
        }
        detail => {
            let expected = [
                ("i64", "an integer"),
                ("i32", "an integer"),
                ("u64", "an integer from 0 up"),
            ];
            let named = expected.iter().find_map(|(of_ours, name)| {
                let told = detail.strip_suffix(of_ours)?.strip_suffix("expected ")?;
                Some(format!("{told}expected {name}"))
            });
            named.unwrap_or_else(|| detail.to_owned())
        }
    }
}

fn data_code(detail: &str) -> &'static str {
    if detail.starts_with("unknown field") {
        "unknown_field"
    } else if detail.starts_with("missing field") {
        "required"
    } else {
        "invalid"
    }
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::new(
        Code::MalformedJson,
        format!(
            "The body is not valid JSON: line {}, column {}.",
            error.line(),
            error.column()
        ),
    )
}

/// A query string: 422 with the parameter that does not fit.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                let text = error.body_text();
                let text = text
                    .strip_prefix("Failed to deserialize query string: ")
                    .unwrap_or(&text);
                let (field, detail) = match text.split_once(": ") {
                    Some((field, detail)) if !field.contains(' ') => (field, detail),
                    _ => ("query", text),
                };
                Err(Problem::field(field, data_code(detail), for_people(detail)).into())
            }
            Err(_) => Err(ApiError::new(Code::BadRequest, "The query string could not be read.")),
        }
    }
}

/// Path parameters: an id that is not one names nothing, so 404.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|_| {
                ApiError::new(
                    Code::NotFound,
                    "There is nothing with such an id; ids are positive integers.",
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        ids: Vec<i64>,
    }

    #[test]
    fn whole_numbers_are_integers_however_they_are_written() {
        assert_eq!(
            parse_json::<Body>(br#"{"ids":[1.0,2e3,3]}"#).unwrap().ids,
            [1, 2_000, 3]
        );
        for bad in [
            &br#"{"ids":[1.5]}"#[..],
            br#"{"ids":[1e300]}"#,
            br#"{"ids":[1.0],"x":1}"#,
            br#"{"ids":[1.0],"ids":"x","ids":[3]}"#,
        ] {
            assert_eq!(parse_json::<Body>(bad).unwrap_err().code, Code::ValidationFailed);
        }
    }

    #[test]
    fn malformed_json_is_400_and_wrong_values_are_422_with_the_path() {
        for bad in [&b"{"[..], b"", b"{\"ids\":[1]}x", b"{\"ids\":[1,\xff]}", b"nul"] {
            assert_eq!(
                parse_json::<Body>(bad).unwrap_err().code,
                Code::MalformedJson,
                "{bad:?}"
            );
        }
        let wrong = parse_json::<Body>(br#"{"ids":[1,"x"]}"#).unwrap_err();
        assert_eq!(
            (wrong.code, wrong.errors[0].field.as_str()),
            (Code::ValidationFailed, "ids[1]")
        );
        let unknown = parse_json::<Body>(br#"{"ids":[],"admin":true}"#).unwrap_err();
        assert_eq!(unknown.errors[0].code, "unknown_field");
        let missing = parse_json::<Body>(b"{}").unwrap_err();
        assert_eq!(missing.errors[0].code, "required");
        let overflow = parse_json::<Body>(br#"{"ids":[99999999999999999999]}"#).unwrap_err();
        assert_eq!(overflow.errors[0].field, "ids[0]");
        for not_an_object in [&b"[[1]]"[..], b"null", b"1", b" \"ids\""] {
            let problem = parse_json::<Body>(not_an_object).unwrap_err();
            assert_eq!(
                (problem.code, problem.errors[0].field.as_str()),
                (Code::ValidationFailed, "body")
            );
        }
    }
}
