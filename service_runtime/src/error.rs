//! The one error type of handlers: a [`Problem`] that becomes `application/problem+json`.

use axum::response::{IntoResponse, Response};
use fechatter_core::problem::{Code, PROBLEM_JSON, Problem};
use http::{HeaderValue, StatusCode, header};

/// What a handler answers when it cannot do what was asked.
#[derive(Debug, Clone)]
pub struct ApiError(pub Box<Problem>);

/// Result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error of this kind with a detail for people; nothing internal may be in it.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    /// Logs what happened and answers 500 without a word of it.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %Chain(error), "request failed");
        Self::new(
            Code::Internal,
            "Something went wrong on our side. The request id finds it in our logs.",
        )
    }

    /// A dependency is away: 503, to be tried again after `seconds`.
    pub fn unavailable(detail: impl Into<String>, seconds: u64) -> Self {
        Problem::new(Code::Unavailable, detail).retry_after(seconds).into()
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

/// An error and its sources, outermost first, on one line.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = render(&self.0);
        // The request layer writes the body again once it knows the request id.
        response.extensions_mut().insert(self);
        response
    }
}

/// The answer for a problem, with the headers that go with its status.
pub fn render(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = problem.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    match problem.code {
        Code::Unauthenticated => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Code::InvalidToken => {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer error=\"invalid_token\""),
            );
        }
        _ => {}
    }
    response
}
