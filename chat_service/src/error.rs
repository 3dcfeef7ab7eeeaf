//! What can go wrong in a use case, and the one place that turns it into an answer.

use fechatter_core::chat::MembershipRule;
use fechatter_core::problem::{Code, FieldError, Problem};
use service_runtime::ApiError;
use service_runtime::error::Chain;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// Why a use case did not happen. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none, or the caller may not know of it.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The caller may know of it but not do this; the text is shown.
    #[error("{0}")]
    Forbidden(&'static str),
    /// It contradicts the present state; the text is shown.
    #[error("{0}")]
    Conflict(&'static str),
    /// Values break rules.
    #[error("{} invalid fields", .0.len())]
    Invalid(Vec<FieldError>),
    #[error("idempotency key reused with another body")]
    IdempotencyMismatch,
    #[error("email or password is wrong")]
    InvalidCredentials,
    #[error("refresh token is not valid")]
    InvalidRefreshToken,
    /// Too many failures; try again after so many seconds.
    #[error("slowed down for {0} s")]
    SlowedDown(u64),
    /// A bounded queue is full.
    #[error("overloaded")]
    Overloaded,
    #[error("database")]
    Database(#[from] sqlx::Error),
    /// The statement of several requests failed, and nobody knows whether before or after its commit.
    #[error("statement of a batch")]
    Batch(#[source] std::sync::Arc<Self>),
    #[error("password hashing")]
    Hashing(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("token signing")]
    Signing(#[from] jsonwebtoken::errors::Error),
    /// What the database holds contradicts the code.
    #[error("inconsistent data: {0}")]
    Inconsistent(String),
}

impl Error {
    /// A failure inside the hashing machinery.
    pub fn hashing(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Hashing(error.into())
    }

    /// One invalid field.
    pub fn field(field: &str, code: &str, detail: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError {
            field: field.to_owned(),
            code: code.to_owned(),
            detail: detail.into(),
        }])
    }

    /// Whether the server refused a statement and undid it. Not so when it ended the session, or the connection broke: then the
    /// commit may have come before.
    pub fn is_undone(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(error))
            if error.try_downcast_ref::<PgDatabaseError>().is_some_and(|error| error.severity() == PgSeverity::Error))
    }

    /// Whether this is the violation of a named constraint or unique index.
    pub fn violates(&self, constraint: &str) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(error)) if error.constraint() == Some(constraint))
    }
}

impl From<MembershipRule> for Error {
    fn from(rule: MembershipRule) -> Self {
        Self::field("member_ids", "membership_rule", rule.to_string())
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(what) => Self::new(
                Code::NotFound,
                format!("There is no such {what}, or you may not see it."),
            ),
            Error::Forbidden(why) => Self::new(Code::Forbidden, why),
            Error::Conflict(why) => Self::new(Code::Conflict, why),
            Error::Invalid(errors) => Problem::fields(errors).into(),
            Error::IdempotencyMismatch => Self::new(
                Code::IdempotencyMismatch,
                "This idempotency key was used in this chat with another content; use a new key for a new message.",
            ),
            Error::InvalidCredentials => Self::new(Code::InvalidCredentials, "Email or password is wrong."),
            Error::InvalidRefreshToken => Self::new(
                Code::InvalidToken,
                "The refresh token is not valid or was used already; sign in again.",
            ),
            Error::SlowedDown(seconds) => {
                Problem::new(Code::RateLimited, "Too many failed sign-ins; wait before the next one.")
                    .retry_after(seconds)
                    .into()
            }
            Error::Overloaded => Self::unavailable("The service is busy; try again in a moment.", 1),
            Error::Database(error) if migrations::is_away(&error) => database_away(&error),
            Error::Batch(error) => match &*error {
                Error::Database(error) if migrations::is_away(error) => database_away(error),
                error => Self::internal(error),
            },
            error => Self::internal(&error),
        }
    }
}

fn database_away(error: &sqlx::Error) -> ApiError {
    tracing::error!(error = %Chain(error), "database away");
    ApiError::unavailable(
        "The database cannot be reached or is too busy; nothing was changed. Try again in a moment.",
        2,
    )
}
