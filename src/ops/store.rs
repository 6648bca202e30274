//! Where the contents of snapshots live, and reading them with the user's own rights.

use std::{fmt, path::PathBuf, str::FromStr};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

use super::{Class, Error, Result, Session};
use crate::api::names::STORE_CONFIG_MAP;

/// The operator's built-in store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Secrets of one namespace.
    Secrets {
        /// The namespace; absent is the operator's.
        namespace: Option<String>,
    },
    /// A directory, seen from the machine that opens it.
    Directory(PathBuf),
}

/// A store as the operator published it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where it is; Secrets have a namespace.
    pub location: Location,
    /// Most bytes it may hold, where the operator says so.
    pub quota: Option<u64>,
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            Error::usage(format!("`{text}` is not a store"))
                .fix("write `secrets`, `secrets:NAMESPACE` or `file:///absolute/path`")
        };
        if text == "secrets" {
            return Ok(Self::Secrets { namespace: None });
        }
        if let Some(namespace) = text.strip_prefix("secrets:") {
            let ok = !namespace.is_empty() && namespace.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            let namespace = Some(namespace.to_owned()).filter(|_| ok).ok_or_else(unknown)?;
            return Ok(Self::Secrets {
                namespace: Some(namespace),
            });
        }
        let path = text.strip_prefix("file://").map(PathBuf::from).ok_or_else(unknown)?;
        if path.is_absolute() {
            Ok(Self::Directory(path))
        } else {
            Err(unknown())
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secrets {
                namespace: Some(namespace),
            } => write!(f, "secrets:{namespace}"),
            Self::Secrets { namespace: None } => f.write_str("secrets"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// Says what somebody without rights on the store can do.
pub fn not_for_everybody(why: String) -> Error {
    Error::new(Class::Forbidden, "you may not read the contents of snapshots")
        .because(why)
        .fix(
            "contents can be read by administrators only; to see what going back would change, create a RollbackRequest with \
             dryRun: true and read its RollbackPlan, or ask an administrator",
        )
}

/// The operator's store: `chosen`, else what the operator published.
///
/// # Errors
/// `Forbidden` for whom the store is closed, `Unavailable` when no operator has published one.
pub async fn locate(session: &Session, chosen: Option<&Location>) -> Result<Published> {
    let namespace = &session.operator_namespace;
    let placed = |location: Location, published: Option<String>| match location {
        Location::Secrets { namespace: None } => Location::Secrets {
            namespace: Some(published.unwrap_or_else(|| namespace.clone())),
        },
        other => other,
    };
    if let Some(location) = chosen {
        return Ok(Published {
            location: placed(location.clone(), None),
            quota: None,
        });
    }
    let api: Api<ConfigMap> = Api::namespaced(session.client.clone(), namespace);
    let what = format!("read configmap {STORE_CONFIG_MAP} in {namespace}");
    let found = match session.repeat(&what, || api.get_opt(STORE_CONFIG_MAP)).await {
        Ok(found) => found,
        Err(error) if error.class == Class::Forbidden => {
            return Err(not_for_everybody(error.why.unwrap_or(error.what)));
        }
        Err(error) => return Err(error),
    };
    let missing = || {
        Error::new(
            Class::Unavailable,
            "it is not known where the contents of snapshots are",
        )
        .because(format!(
            "the operator publishes it in configmap {STORE_CONFIG_MAP} of namespace {namespace}, and there is none"
        ))
        .fix("is the operator running there (kubectl backstep doctor)? Otherwise name --operator-namespace or --store")
    };
    let mut data = found.ok_or_else(missing)?.data.unwrap_or_default();
    let location: Location = data.get("store").ok_or_else(missing)?.parse().map_err(|error: Error| {
        error.because(format!(
            "configmap {STORE_CONFIG_MAP} of namespace {namespace} says so; this command may be older than the operator"
        ))
    })?;
    let quota = data
        .get("quota")
        .and_then(|quota| quota.parse().ok())
        .filter(|quota| *quota > 0);
    Ok(Published {
        location: placed(location, data.remove("namespace").filter(|n| !n.is_empty())),
        quota,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_read_back_what_they_write() {
        for text in ["secrets:backstep-system", "file:///var/lib/backstep"] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn relative_paths_and_unknown_stores_are_refused() {
        for text in ["", "s3://bucket", "file://relative", "secrets:", "secrets:a/b", "/path"] {
            assert_eq!(text.parse::<Location>().unwrap_err().class, Class::Usage, "{text}");
        }
    }
}
