//! What an operation can fail with: what happened, why, and how to fix it.

use std::fmt;

use crate::cluster;

/// Outcome of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it was; each has an exit code of its own on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request makes no sense as written.
    Usage,
    /// The object, lineage, version or tag does not exist.
    NotFound,
    /// A right is missing.
    Forbidden,
    /// It did not happen in time.
    TimedOut,
    /// Stored contents do not match their digest.
    Corrupt,
    /// The API server, the store or an optional part of Backstep cannot be reached, or is not installed.
    Unavailable,
    /// The API server or Backstep refused: exists already, invalid, ambiguous.
    Refused,
    /// The operator tried and failed.
    Failed,
    /// A bug, or an answer that makes no sense.
    Internal,
}

/// A failure in three sentences: what, why, how to fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Decides the exit code.
    pub class: Class,
    /// What did not work.
    pub what: String,
    /// Why, where it adds something.
    pub why: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Error {
    /// An error that says only what happened; add [`Self::because`] and [`Self::fix`].
    pub fn new(class: Class, what: impl Into<String>) -> Self {
        Self {
            class,
            what: what.into(),
            why: None,
            fix: None,
        }
    }

    /// [`Class::Usage`].
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Class::Usage, what)
    }

    /// [`Class::NotFound`].
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(Class::NotFound, what)
    }

    /// [`Class::Internal`].
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(Class::Internal, what)
    }

    /// Adds why.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Adds how to fix it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(f, "\n  why: {why}")?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "\n  fix: {fix}")?;
        }
        Ok(())
    }
}

/// The API server's own status, where it answered.
pub fn api_status(error: &cluster::Error) -> Option<&kube::core::Status> {
    match error {
        cluster::Error::Api { source, .. } => match source.as_ref() {
            kube::Error::Api(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

impl From<cluster::Error> for Error {
    fn from(error: cluster::Error) -> Self {
        if let (cluster::Error::Api { what, .. }, Some(status)) = (&error, api_status(&error)) {
            return from_status(what, status);
        }
        match error {
            cluster::Error::Api { what, source } => {
                let text = cluster::Error::Api {
                    what: String::new(),
                    source,
                }
                .to_string();
                Self::new(Class::Unavailable, format!("cannot {what}"))
                    .because(text.trim_start_matches(": ").to_owned())
                    .fix("check that the API server of your context is reachable: kubectl cluster-info")
            }
            cluster::Error::Deadline { what, after } => Self::new(Class::TimedOut, format!("cannot {what}"))
                .because(format!("no answer within {} s", after.as_secs()))
                .fix("check the API server (kubectl get --raw /readyz), or raise --request-timeout"),
            cluster::Error::Unreadable { what, source } => Self::internal(format!("cannot {what}"))
                .because(format!("the server's answer cannot be read: {source}")),
            cluster::Error::Config(why) => Self::new(Class::Unavailable, "cannot find a cluster to talk to")
                .because(why)
                .fix("set KUBECONFIG, or pass --kubeconfig and --context"),
            #[allow(unreachable_patterns)]
            other => Self::internal(other.to_string()),
        }
    }
}

fn from_status(what: &str, status: &kube::core::Status) -> Error {
    let named = status.details.as_ref().is_some_and(|d| !d.name.is_empty());
    let of = |class| Error::new(class, format!("cannot {what}")).because(status.message.clone());
    match status.code {
        401 => of(Class::Forbidden).fix("log in again: the API server does not know your credentials"),
        // An admission policy's refusal says itself what to do.
        403 if status.message.contains("denied request") => of(Class::Refused),
        403 => of(Class::Forbidden)
            .fix("ask an administrator for this right; `kubectl backstep doctor` lists what is needed"),
        404 if named => of(Class::NotFound).fix("list what there is: kubectl backstep snapshot list"),
        404 => of(Class::Unavailable)
            .fix("is Backstep installed in this cluster? `kubectl backstep doctor` says what is missing"),
        409 | 400 | 413 | 422 => of(Class::Refused),
        _ => of(Class::Unavailable).fix("try again; if it stays, see `kubectl backstep doctor`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, message: &str, name: &str) -> Error {
        let mut status = kube::core::Status::failure(message, "Reason").with_code(code);
        status.details = serde_json::from_value(serde_json::json!({"name": name})).unwrap();
        Error::from(cluster::Error::api(
            "get snapshot web",
            kube::Error::Api(status.boxed()),
        ))
    }

    #[test]
    fn a_missing_object_and_a_missing_kind_are_told_apart() {
        assert_eq!(api(404, "snapshots \"web\" not found", "web").class, Class::NotFound);
        assert_eq!(
            api(404, "the server could not find the requested resource", "").class,
            Class::Unavailable
        );
    }

    #[test]
    fn a_policy_refusal_is_not_a_missing_right() {
        assert_eq!(
            api(403, "snapshots is forbidden: User \"x\" cannot create", "").class,
            Class::Forbidden
        );
        let denied = "snapshots \"a\" is forbidden: ValidatingAdmissionPolicy 'x' with binding 'x' denied request: no";
        assert_eq!(api(403, denied, "a").class, Class::Refused);
    }

    #[test]
    fn the_text_says_what_why_and_how_to_fix() {
        let error = Error::not_found("no such snapshot")
            .because("it was deleted")
            .fix("list them");
        assert_eq!(
            error.to_string(),
            "no such snapshot\n  why: it was deleted\n  fix: list them"
        );
    }
}
