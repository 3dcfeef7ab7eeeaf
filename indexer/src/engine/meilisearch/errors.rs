//! Errors of Meilisearch and of the way to it.

use meilisearch_sdk::errors::{Error, ErrorCode, ErrorType};

use crate::engine::EngineError;

/// What Meilisearch's errors mean to whoever uses an engine; none repeats an address or a key.
pub(super) fn engine_error(error: &Error) -> EngineError {
    let text = error.to_string();
    match error {
        Error::Meilisearch(refused) => match (&refused.error_code, refused.error_type) {
            (ErrorCode::NoSpaceLeftOnDevice | ErrorCode::DatabaseSizeLimitReached, _) => EngineError::Full(text),
            // Somebody removed an index: no batch is at fault, and it is made anew before the next.
            (ErrorCode::IndexNotFound | ErrorCode::TooManyOpenFiles | ErrorCode::IoError, _) => {
                EngineError::Unavailable(text)
            }
            (_, ErrorType::InvalidRequest) => EngineError::Rejected(text),
            (_, ErrorType::Internal) => EngineError::Failed(text),
            // A key that is wrong or has expired, too: a person is needed, and every batch waits for them.
            _ => EngineError::Unavailable(text),
        },
        // These carry the address, which is not ours to show.
        Error::MeilisearchCommunication(failed) if failed.status_code == 413 => {
            EngineError::Rejected("HTTP 413".to_owned())
        }
        Error::MeilisearchCommunication(failed) => EngineError::Unavailable(format!("HTTP {}", failed.status_code)),
        Error::Other(_) => EngineError::Unavailable("Meilisearch cannot be reached".to_owned()),
        _ => EngineError::Unavailable(text),
    }
}

/// What is there, or nothing when Meilisearch knows no such document or index.
pub(super) fn if_there<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(there) => Ok(Some(there)),
        Err(Error::Meilisearch(refused))
            if matches!(
                refused.error_code,
                ErrorCode::DocumentNotFound | ErrorCode::IndexNotFound
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Waits for an answer, which comes within the bound of [`super::http::Http`].
pub(super) async fn bounded<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, EngineError> {
    call.await.map_err(|error| engine_error(&error))
}
