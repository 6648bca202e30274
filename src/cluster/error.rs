//! What a call can fail with, and what follows from it.

use std::time::Duration;

/// Outcome of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What follows from an error: the requeue, the event's reason and the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Try again with back-off: 429, 5xx, time-outs, conflicts.
    Transient,
    /// Not a failure: something else has to happen first.
    Waiting,
    /// The spec cannot work as written.
    Invalid,
    /// A right is missing.
    Forbidden,
    /// Stored contents do not match their digest.
    Corrupt,
}

impl Class {
    /// Stable label for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Waiting => "waiting",
            Self::Invalid => "invalid",
            Self::Forbidden => "forbidden",
            Self::Corrupt => "corrupt",
        }
    }
}

/// A call to the API server that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error, or could not be reached.
    #[error("{what}: {}", describe(source))]
    Api {
        /// What was tried, e.g. `list configmaps in shop`.
        what: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer within the deadline.
    #[error("{what}: no answer within {} s; is the API server overloaded or unreachable?", after.as_secs())]
    Deadline {
        /// What was tried.
        what: String,
        /// The deadline.
        after: Duration,
    },
    /// The server's answer was not what the API promises.
    #[error("{what}: the server's answer cannot be read: {source}")]
    Unreadable {
        /// What was tried.
        what: String,
        /// Where reading stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A client could not be made.
    #[error("cannot reach a cluster: {0}; set KUBECONFIG or pass --kubeconfig")]
    Config(String),
}

/// The server's own words where there are any; never a request body.
fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        kube::Error::Service(inner) => {
            let mut text = inner.to_string();
            let mut source = std::error::Error::source(inner.as_ref());
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        }
        other => other.to_string(),
    }
}

impl Error {
    /// Wraps the client's error with what was tried.
    pub fn api(what: impl Into<String>, source: kube::Error) -> Self {
        Self::Api {
            what: what.into(),
            source: Box::new(source),
        }
    }

    /// HTTP status of the server's answer, where there was one.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// The object or kind does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// A `continue` token or resourceVersion is too old (410).
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// The object changed since it was read, or exists already (409).
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Seconds that the server asks to wait (429 and 503).
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => status
                    .details
                    .as_ref()
                    .map(|d| u64::from(d.retry_after_seconds))
                    .filter(|s| *s > 0)
                    .map(|s| Duration::from_secs(s.min(60))),
                _ => None,
            },
            _ => None,
        }
    }

    /// What follows from this error.
    pub fn class(&self) -> Class {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    401 | 403 => Class::Forbidden,
                    400 | 404 | 405 | 406 | 413 | 415 | 422 => Class::Invalid,
                    _ => Class::Transient,
                },
                kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => Class::Invalid,
                _ => Class::Transient,
            },
            Self::Deadline { .. } => Class::Transient,
            Self::Unreadable { .. } | Self::Config(_) => Class::Invalid,
        }
    }
}
