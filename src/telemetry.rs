//! The log: to standard error, as text for people or as one JSON object a line for machines.
//!
//! What is logged is chosen by a filter that the caller hands in (`TENANTRY_LOG`, as `info` or `tenantry::lifecycle=debug,warn`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// A log that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not read.
    #[error("TENANTRY_LOG=`{filter}` is not a filter")]
    Filter {
        /// As it was given.
        filter: String,
        /// Why.
        #[source]
        source: ParseError,
    },
    /// There is a log already.
    #[error("the log is set up already")]
    Twice(#[source] TryInitError),
}

fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(text).map_err(|source| TelemetryError::Filter { filter: text.to_owned(), source })
}

/// Sets the process's log up, once.
///
/// # Errors
/// The filter does not read, or there is a log already.
pub fn init(text: &str, format: Format) -> Result<(), TelemetryError> {
    let log = tracing_subscriber::fmt().with_env_filter(filter(text)?).with_writer(std::io::stderr);
    // Colours are for who looks at it, not for files and journals.
    let log = if std::io::stderr().is_terminal() { log } else { log.with_ansi(false) };
    let outcome = match format {
        Format::Text => log.finish().try_init(),
        Format::Json => log.json().flatten_event(true).finish().try_init(),
    };
    outcome.map_err(TelemetryError::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_read_is_named() {
        assert!(filter("tenantry::lifecycle=debug,warn").is_ok());
        let error = filter("tenantry=loud").unwrap_err();
        assert!(error.to_string().contains("tenantry=loud"));
    }
}
