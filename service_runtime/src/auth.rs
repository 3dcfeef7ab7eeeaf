//! Bearer authentication of every service: the gateway is the front door, not the only lock.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use fechatter_core::problem::Code;
use fechatter_core::token::{Claims, TokenFault, Verifier};
use fechatter_core::{UserId, WorkspaceId};
use http::request::Parts;
use http::{HeaderMap, header};
use time::OffsetDateTime;

use crate::ApiError;
use crate::jwks::Refresher;

/// Verifies bearer tokens; part of a service's state.
#[derive(Debug, Clone)]
pub struct Authenticator {
    pub verifier: Arc<Verifier>,
    /// Asked once when a token names an unknown key; absent where the keys are our own.
    pub refresher: Option<Refresher>,
}

impl Authenticator {
    /// Verifies a token; one signed by a key not seen yet makes the key set be fetched, at a limited rate.
    pub async fn verify(&self, token: &str) -> Result<Arc<Claims>, ApiError> {
        let mut verdict = self.verifier.verify(token, OffsetDateTime::now_utc());
        if let (Err(TokenFault::UnknownKey), Some(refresher)) = (&verdict, &self.refresher) {
            // Fetched for this request or, a moment ago, for another one.
            refresher.unknown_key().await;
            verdict = self.verifier.verify(token, OffsetDateTime::now_utc());
        }
        match verdict {
            Ok(verified) => Ok(verified.claims),
            Err(TokenFault::Expired) => Err(ApiError::new(
                Code::InvalidToken,
                "The access token has expired; get a new one by POST /api/refresh.",
            )),
            Err(fault) => {
                tracing::debug!(fault = fault.as_str(), "token refused");
                Err(ApiError::new(
                    Code::InvalidToken,
                    "The access token is not valid; sign in again.",
                ))
            }
        }
    }

    /// Authenticates by the `Authorization` header.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let token = bearer(headers)?;
        Ok(Caller {
            claims: self.verify(token).await?,
        })
    }
}

/// The token of an `Authorization: Bearer` header.
pub fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let missing = || ApiError::new(Code::Unauthenticated, "Send `Authorization: Bearer <access token>`.");
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        return Err(ApiError::new(
            Code::InvalidToken,
            "More than one Authorization header was sent.",
        ));
    }
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or_else(missing)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(token.trim())
    } else {
        Err(missing())
    }
}

/// The authenticated user behind a request.
#[derive(Debug, Clone)]
pub struct Caller {
    pub claims: Arc<Claims>,
}

impl Caller {
    pub fn user_id(&self) -> UserId {
        self.claims.user_id()
    }

    pub fn workspace_id(&self) -> WorkspaceId {
        self.claims.ws
    }

    pub fn session_id(&self) -> uuid::Uuid {
        self.claims.sid
    }
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Authenticator: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Authenticator::from_ref(state).authenticate(&parts.headers).await
    }
}
