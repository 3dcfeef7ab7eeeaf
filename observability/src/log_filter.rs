//! The filter of the log while the process runs: an operator looks closer without a restart.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::{EnvFilter, reload};

/// Layers that the filter of the configuration bounds, each with what goes before or after that.
type Apply = Box<dyn Fn(&str) -> Result<(), FilterFault> + Send + Sync>;

/// Why a filter is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FilterFault {
    #[error("{0}; a filter is a level, or several such as `info,access=off`")]
    Syntax(#[from] ParseError),
    #[error("there is no log yet")]
    NoLog,
}

struct Log {
    filter: Mutex<String>,
    layers: Vec<Apply>,
    /// Called when all layers have a filter.
    taken: fn(&str),
}

static LOG: OnceLock<Log> = OnceLock::new();

/// The filter in force; none before [`crate::init`].
pub fn current() -> Option<String> {
    let log = LOG.get()?;
    Some(log.filter.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Whether this is a filter.
///
/// # Errors
///
/// What is wrong with it.
pub fn check(filter: &str) -> Result<(), FilterFault> {
    Ok(EnvFilter::try_new(filter).map(drop)?)
}

/// Takes another filter, in the syntax of `log.filter`, for standard output and for exported logs.
///
/// # Errors
///
/// When it is no filter; the one before stays.
pub fn set(filter: &str) -> Result<(), FilterFault> {
    let log = LOG.get().ok_or(FilterFault::NoLog)?;
    // All of them or none.
    check(filter)?;
    let mut current = log.filter.lock().unwrap_or_else(PoisonError::into_inner);
    for apply in &log.layers {
        apply(filter)?;
    }
    (log.taken)(filter);
    filter.clone_into(&mut current);
    Ok(())
}

/// A filter that [`set`] can replace. `text` makes the whole of one of the configuration's.
pub(crate) fn reloadable<S>(
    filter: &str,
    text: impl Fn(&str) -> String + Send + Sync + 'static,
) -> Result<(reload::Layer<EnvFilter, S>, Apply), ParseError>
where
    S: 'static,
{
    let (layer, handle) = reload::Layer::new(EnvFilter::try_new(text(filter))?);
    let apply = move |filter: &str| {
        let filter = EnvFilter::try_new(text(filter))?;
        handle.reload(filter).map_err(|_| FilterFault::NoLog)
    };
    Ok((layer, Box::new(apply)))
}

/// The log is up. `taken` is called now and after each change.
pub(crate) fn install(filter: &str, layers: Vec<Apply>, taken: fn(&str)) {
    taken(filter);
    // A second log of a process is refused before.
    let _ = LOG.set(Log {
        filter: Mutex::new(filter.to_owned()),
        layers,
        taken,
    });
}
