//! `POST /api/signup|signin|refresh|logout` and `PUT /api/me/password`.

use std::net::IpAddr;

use axum::extract::State;
use fechatter_core::problem::Code;
use fechatter_core::schema;
use fechatter_core::wire::UserView;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use service_runtime::auth::Caller;
use service_runtime::extract::Json;
use service_runtime::{ApiError, ApiResult};
use utoipa::ToSchema;

use crate::services::auth::{AuthService, Origin, SignUp, Tokens};

/// Name of the cookie that holds a browser's refresh token.
const COOKIE: &str = "fechatter_refresh";

/// A new account.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignUpRequest {
    #[schema(schema_with = schema::fullname)]
    fullname: String,
    #[schema(schema_with = schema::email)]
    email: String,
    #[schema(schema_with = schema::new_password)]
    password: SecretString,
    /// A new name makes a workspace with you as its owner; an existing one needs an invitation.
    #[schema(schema_with = schema::workspace_name)]
    workspace: String,
    /// Token of an invitation.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    invitation: Option<SecretString>,
    /// Browsers: put the refresh token into an `HttpOnly` cookie instead of the answer.
    #[serde(default)]
    refresh_cookie: bool,
}

/// Email and password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignInRequest {
    #[schema(example = "ada@example.org")]
    email: String,
    #[schema(value_type = String, format = Password, example = "correct horse battery")]
    password: SecretString,
    /// Browsers: put the refresh token into an `HttpOnly` cookie instead of the answer.
    #[serde(default)]
    refresh_cookie: bool,
}

/// The refresh token, unless it comes in the cookie.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshRequest {
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    refresh_token: Option<SecretString>,
}

/// The password of old and the new one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePasswordRequest {
    #[schema(value_type = String, format = Password, example = "correct horse battery")]
    current_password: SecretString,
    #[schema(schema_with = schema::new_password)]
    new_password: SecretString,
}

/// A pair of tokens.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tokens)]
pub struct TokensView {
    access_token: String,
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// Seconds until the access token expires.
    #[schema(example = 900)]
    expires_in: i64,
    /// Absent when it went into the cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    user: UserView,
}

/// Makes an account, and a workspace or a membership of one.
#[utoipa::path(post, path = "/api/signup", tag = "auth", operation_id = "sign_up", extensions(("x-problem-codes" = json!(["forbidden", "conflict"]))), request_body = SignUpRequest,
    responses((status = 201, description = "Signed up and signed in", body = TokensView)))]
pub async fn sign_up(
    State(auth): State<AuthService>,
    headers: HeaderMap,
    Json(request): Json<SignUpRequest>,
) -> ApiResult<(StatusCode, HeaderMap, Json<TokensView>)> {
    let sign_up = SignUp {
        fullname: request.fullname,
        email: request.email,
        password: request.password.expose_secret().to_owned(),
        workspace: request.workspace,
        invitation: request.invitation.map(|token| token.expose_secret().to_owned()),
    };
    let tokens = auth.sign_up(sign_up, &origin(&headers)).await?;
    answer(StatusCode::CREATED, tokens, request.refresh_cookie)
}

/// Opens a session.
#[utoipa::path(post, path = "/api/signin", tag = "auth", operation_id = "sign_in", extensions(("x-problem-codes" = json!(["invalid_credentials"]))), request_body = SignInRequest,
    responses((status = 200, description = "Signed in", body = TokensView)))]
pub async fn sign_in(
    State(auth): State<AuthService>,
    headers: HeaderMap,
    Json(request): Json<SignInRequest>,
) -> ApiResult<(StatusCode, HeaderMap, Json<TokensView>)> {
    let password = request.password.expose_secret().to_owned();
    let tokens = auth.sign_in(&request.email, password, &origin(&headers)).await?;
    answer(StatusCode::OK, tokens, request.refresh_cookie)
}

/// Trades a refresh token for new tokens; each refresh token works once.
#[utoipa::path(post, path = "/api/refresh", tag = "auth", operation_id = "refresh", extensions(("x-problem-codes" = json!(["unauthenticated", "invalid_token"]))), request_body = RefreshRequest,
    responses((status = 200, description = "New tokens", body = TokensView)))]
pub async fn refresh(
    State(auth): State<AuthService>,
    headers: HeaderMap,
    Json(request): Json<RefreshRequest>,
) -> ApiResult<(StatusCode, HeaderMap, Json<TokensView>)> {
    let from_cookie = request.refresh_token.is_none();
    let token = match &request.refresh_token {
        Some(token) => token.expose_secret(),
        None => cookie(&headers).ok_or_else(|| {
            ApiError::new(
                Code::Unauthenticated,
                "Send the refresh token as `refresh_token` or in the cookie set at sign-in.",
            )
        })?,
    };
    let tokens = auth.refresh(token).await?;
    answer(StatusCode::OK, tokens, from_cookie)
}

/// Ends the session of this access token; it stops working at the edge within a second.
#[utoipa::path(post, path = "/api/logout", tag = "auth", operation_id = "log_out", security(("bearer" = [])),
    responses((status = 204, description = "The session has ended")))]
pub async fn log_out(State(auth): State<AuthService>, caller: Caller) -> ApiResult<(StatusCode, HeaderMap)> {
    auth.log_out((&caller).into()).await?;
    let mut headers = HeaderMap::new();
    headers.insert(header::SET_COOKIE, set_cookie("", 0)?);
    Ok((StatusCode::NO_CONTENT, headers))
}

/// Changes the caller's password and ends all their other sessions.
#[utoipa::path(put, path = "/api/me/password", tag = "auth", operation_id = "change_password", extensions(("x-problem-codes" = json!(["forbidden", "conflict"]))), request_body = ChangePasswordRequest,
    security(("bearer" = [])), responses((status = 204, description = "The new password counts")))]
pub async fn change_password(
    State(auth): State<AuthService>,
    caller: Caller,
    headers: HeaderMap,
    Json(request): Json<ChangePasswordRequest>,
) -> ApiResult<StatusCode> {
    let present = request.current_password.expose_secret().to_owned();
    let new = request.new_password.expose_secret().to_owned();
    auth.change_password((&caller).into(), present, new, &origin(&headers))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn answer(status: StatusCode, tokens: Tokens, in_cookie: bool) -> ApiResult<(StatusCode, HeaderMap, Json<TokensView>)> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mut view = TokensView {
        access_token: tokens.access_token,
        token_type: "Bearer",
        expires_in: tokens.expires_in,
        refresh_token: Some(tokens.refresh_token),
        user: tokens.user,
    };
    if in_cookie {
        let token = view.refresh_token.take().unwrap_or_default();
        headers.insert(header::SET_COOKIE, set_cookie(&token, tokens.refresh_expires_in)?);
    }
    Ok((status, headers, Json(view)))
}

fn set_cookie(token: &str, seconds: i64) -> ApiResult<HeaderValue> {
    format!("{COOKIE}={token}; Path=/api; Max-Age={seconds}; HttpOnly; Secure; SameSite=Strict")
        .parse()
        .map_err(|error: http::header::InvalidHeaderValue| ApiError::internal(&error))
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
        .filter(|token| !token.is_empty())
}

/// The client as the gateway saw it; the gateway removes what clients send in these headers.
fn origin(headers: &HeaderMap) -> Origin {
    let text = |name: &str, most: usize| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(|value| value.chars().take(most).collect::<String>())
    };
    Origin {
        address: text("x-forwarded-for", 256)
            .and_then(|list| list.split(',').next()?.trim().parse::<IpAddr>().ok())
            .map(|address| address.to_canonical().to_string()),
        user_agent: text("user-agent", 256),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::COOKIE,
            HeaderValue::from_static("a=b; fechatter_refresh=abc; c=d"),
        );
        assert_eq!(cookie(&headers), Some("abc"));
        headers.insert(
            header::COOKIE,
            HeaderValue::from_static("fechatter_refresh=; fechatter_refreshx=1"),
        );
        assert_eq!(cookie(&headers), None);
    }

    #[test]
    fn an_address_that_is_none_is_dropped() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.7, 10.0.0.1"));
        assert_eq!(origin(&headers).address.as_deref(), Some("203.0.113.7"));
        headers.insert("x-forwarded-for", HeaderValue::from_static("::ffff:203.0.113.7"));
        assert_eq!(origin(&headers).address.as_deref(), Some("203.0.113.7"));
        headers.insert("x-forwarded-for", HeaderValue::from_static("localhost"));
        assert_eq!(origin(&headers).address, None);
    }
}
