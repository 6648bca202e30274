//! Structured logs on standard error.

use std::io;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Starts logging; `filter` is a level or a list of `target=level` directives.
///
/// # Errors
/// The filter cannot be parsed, or logging was started before.
pub fn start(format: Format, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        anyhow::anyhow!("--log-level `{filter}`: {e}; use error, warn, info, debug, trace or target=level")
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(io::stderr))
            .try_init()?,
        Format::Text => registry
            .with(fmt::layer().with_ansi(false).with_writer(io::stderr))
            .try_init()?,
    }
    Ok(())
}
