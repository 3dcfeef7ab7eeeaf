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
    filter.clone_into(&mut current);
    Ok(())
}

/// A filter that [`set`] can replace. `text` makes the whole of one of the configuration's.
pub(crate) fn reloadable<S>(
    filter: &str,
    text: impl Fn(&str) -> String + Send + Sync + 'static,
    changed: impl Fn(&EnvFilter) + Send + Sync + 'static,
) -> Result<(reload::Layer<EnvFilter, S>, Apply), ParseError>
where
    S: 'static,
{
    let first = EnvFilter::try_new(text(filter))?;
    changed(&first);
    let (layer, handle) = reload::Layer::new(first);
    let apply = move |filter: &str| {
        let filter = EnvFilter::try_new(text(filter))?;
        changed(&filter);
        handle.reload(filter).map_err(|_| FilterFault::NoLog)
    };
    Ok((layer, Box::new(apply)))
}

/// The log is up.
pub(crate) fn install(filter: &str, layers: Vec<Apply>) {
    // A second log of a process is refused before.
    let _ = LOG.set(Log {
        filter: Mutex::new(filter.to_owned()),
        layers,
    });
}
