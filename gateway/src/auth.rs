//! Whether a request may pass for whom it says it is.

use std::sync::Arc;

use fechatter_core::problem::Code;
use fechatter_core::token::{Claims, TokenFault, Verifier};
use http::header::AUTHORIZATION;
use pingora::http::RequestHeader;
use service_runtime::jwks::Refresher;
use time::OffsetDateTime;

use crate::answer::Refusal;
use crate::metrics::{Metrics, REMEMBERED};
use crate::revocation::Revoked;
use crate::routes::Access;

/// Verifies bearer tokens and asks whether their session has ended.
#[derive(Clone)]
pub struct Authenticator {
    pub verifier: Arc<Verifier>,
    pub refresher: Refresher,
    pub revoked: Arc<Revoked>,
}

impl Authenticator {
    /// The caller of a request; none on public routes and where a ticket stands for one.
    pub async fn authenticate(
        &self,
        access: Access,
        request: &RequestHeader,
        metrics: &Metrics,
    ) -> Result<Option<Arc<Claims>>, Refusal> {
        if access == Access::Public {
            return Ok(None);
        }
        let token = match bearer(request) {
            Ok(Some(token)) => token,
            Ok(None) if access == Access::Ticket && has_ticket(request) => {
                metrics.token("ticket");
                return Ok(None);
            }
            Ok(None) => {
                metrics.token("absent");
                return Err(Refusal::unauthorized(
                    Code::Unauthenticated,
                    "token_absent",
                    "This route needs a bearer token.",
                ));
            }
            Err(NotABearer) => {
                metrics.token("malformed");
                return Err(refused(TokenFault::Malformed));
            }
        };
        let mut verdict = self.verifier.verify(token, OffsetDateTime::now_utc());
        if matches!(verdict, Err(TokenFault::UnknownKey)) {
            // Fetched for this request or, a moment ago, for another one.
            self.refresher.unknown_key().await;
            verdict = self.verifier.verify(token, OffsetDateTime::now_utc());
        }
        match verdict {
            Ok(verified) if self.revoked.contains(verified.claims.sid) => {
                metrics.token("revoked");
                Err(Refusal::unauthorized(
                    Code::InvalidToken,
                    "token_revoked",
                    "The session of this token has ended; sign in again.",
                ))
            }
            Ok(verified) => {
                metrics.token(if verified.from_cache { REMEMBERED } else { "verified" });
                Ok(Some(verified.claims))
            }
            Err(_) if !self.verifier.is_ready() => {
                metrics.token("no_keys");
                Err(Refusal::new(
                    Code::Unavailable,
                    "no_signing_keys",
                    "Tokens cannot be checked yet; try again.",
                )
                .retry_after(1))
            }
            Err(fault) => {
                metrics.token(fault.as_str());
                Err(refused(fault))
            }
        }
    }
}

/// Clients learn expired from invalid and no more.
fn refused(fault: TokenFault) -> Refusal {
    match fault {
        TokenFault::Expired => Refusal::unauthorized(
            Code::InvalidToken,
            "token_expired",
            "The token has expired; refresh it.",
        ),
        _ => Refusal::unauthorized(Code::InvalidToken, "token_invalid", "The token is not valid."),
    }
}

struct NotABearer;

/// The bearer token of a request; several `Authorization` fields or another scheme are refused.
fn bearer(request: &RequestHeader) -> Result<Option<&str>, NotABearer> {
    let mut values = request.headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(NotABearer);
    }
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or(NotABearer)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(NotABearer);
    }
    Ok(Some(token.trim_start_matches(' ')))
}

fn has_ticket(request: &RequestHeader) -> bool {
    request.uri.query().is_some_and(|query| {
        query
            .split('&')
            .any(|pair| pair.strip_prefix("ticket=").is_some_and(|value| !value.is_empty()))
    })
}
