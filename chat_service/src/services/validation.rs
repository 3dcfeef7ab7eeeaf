//! Collects every invalid field of a request before anything is done.

use fechatter_core::problem::FieldError;

use crate::error::Error;

/// The faults found so far.
#[derive(Debug, Default)]
pub struct Validation(Vec<FieldError>);

impl Validation {
    /// Records a fault unless `ok`.
    #[must_use]
    pub fn check(mut self, ok: bool, field: &str, code: &str, detail: impl std::fmt::Display) -> Self {
        if !ok {
            self.0.push(FieldError {
                field: field.to_owned(),
                code: code.to_owned(),
                detail: detail.to_string(),
            });
        }
        self
    }

    /// Records the error of `result`, if it is one.
    #[must_use]
    pub fn check_result<E: std::fmt::Display>(self, result: Result<(), E>, field: &str, code: &str) -> Self {
        match result {
            Ok(()) => self,
            Err(error) => self.check(false, field, code, error),
        }
    }

    /// All good, or all faults at once.
    pub fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(self.0))
        }
    }
}
