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

/// The client's own line for each answer of 5xx, before it is known whether the call is tried again; what comes of a call is told by
/// whoever made it.
const OF_THE_CLIENT: &str = "kube_client::client::builder";

/// Starts logging; `filter` is a level or a list of `target=level` directives.
///
/// # Errors
/// The filter cannot be parsed, or logging was started before.
pub fn start(format: Format, filter: &str) -> anyhow::Result<()> {
    let quieter = if filter.contains(OF_THE_CLIENT) {
        filter.to_owned()
    } else {
        format!("{filter},{OF_THE_CLIENT}=off")
    };
    let filter = EnvFilter::try_new(quieter).map_err(|e| {
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
