//! Checks of everything that Backstep needs, each with how to mend it.

mod guard;

use serde::Serialize;

use super::{Class, Error, Result, Session, facts, store::Location};
use crate::{
    api::{crd, names},
    cluster::guard::{REQUIRED_KINDS, REQUIRED_POLICIES, STAMPING_POLICIES},
};

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Could not be looked at with this user's rights.
    Skip,
    /// Works, but something will be missed.
    Warn,
    /// Something does not work.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What was found.
    pub outcome: Outcome,
    /// In words.
    pub detail: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

const INSTALL: &str = "install or upgrade the chart: helm upgrade --install backstep charts/backstep -n backstep-system --create-namespace";
impl Check {
    fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            name,
            outcome,
            detail: detail.into(),
            fix: None,
        }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Ok, detail)
    }

    fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::new(name, Outcome::Warn, detail)
        }
    }

    fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::new(name, Outcome::Fail, detail)
        }
    }

    /// A check that could not be made. Only a missing right of the user is no fault of the installation.
    fn unknown(name: &'static str, error: Error) -> Self {
        let outcome = if error.class == Class::Forbidden {
            Outcome::Skip
        } else {
            Outcome::Fail
        };
        let detail = match &error.why {
            Some(why) => format!("{}: {why}", error.what),
            None => error.what.clone(),
        };
        let fix = if outcome == Outcome::Skip {
            Some("ask an administrator to run `kubectl backstep doctor`".to_owned())
        } else {
            error.fix
        };
        Self {
            fix,
            ..Self::new(name, outcome, detail)
        }
    }
}

/// The worst outcome of all checks.
pub fn worst(checks: &[Check]) -> Outcome {
    checks.iter().map(|c| c.outcome).max().unwrap_or(Outcome::Ok)
}

/// Makes every check; each one says what it could not see.
///
/// # Errors
/// Only when the API server cannot be reached at all.
pub async fn doctor(session: &Session, store: Option<&Location>) -> Result<Vec<Check>> {
    let server = facts::server(session).await?;
    let (crds, policies, guard, stamping, leader, policy, rights, repository) = tokio::join!(
        crds(session),
        policies(session),
        guard::checks(session),
        stamping(session, &server),
        leader(session),
        default_policy(session),
        rights(session),
        repository(session, store),
    );
    Ok([
        vec![version(&server), clock(&server)],
        crds,
        vec![policies],
        guard,
        vec![stamping, leader, policy],
        rights,
        vec![repository],
    ]
    .concat())
}

fn version(server: &facts::Server) -> Check {
    const NAME: &str = "server version";
    let (first, last) = (facts::SUPPORTED_MINORS.start(), facts::SUPPORTED_MINORS.end());
    match server.minor {
        Some(minor) if facts::SUPPORTED_MINORS.contains(&minor) => Check::ok(NAME, server.version.clone()),
        Some(minor) if minor < *first => Check::fail(
            NAME,
            format!("{} is older than 1.{first}", server.version),
            format!("upgrade the cluster: Backstep supports Kubernetes 1.{first} to 1.{last}"),
        ),
        _ => Check::warn(
            NAME,
            format!("{} has not been tried with this version of Backstep", server.version),
            format!("look for a newer Backstep; this one supports Kubernetes 1.{first} to 1.{last}"),
        ),
    }
}

fn clock(server: &facts::Server) -> Check {
    const NAME: &str = "clock";
    match server.skew {
        None => Check::new(NAME, Outcome::Skip, "the API server sends no time"),
        Some(skew) if skew.abs() <= 5 => Check::ok(NAME, "agrees with the API server's within 5 s"),
        Some(skew) => {
            let direction = if skew > 0 { "behind" } else { "ahead of" };
            let detail = format!("this machine's clock is {} s {direction} the API server's", skew.abs());
            let fix = "synchronise the clocks (NTP); ages, ttl and waiting times are off by this much";
            if skew.abs() > 300 {
                Check::fail(NAME, detail, fix)
            } else {
                Check::warn(NAME, detail, fix)
            }
        }
    }
}

async fn crds(session: &Session) -> Vec<Check> {
    const NAME: &str = "kinds";
    let served = match facts::served_kinds(session).await {
        Ok(served) => served,
        Err(error) => return vec![Check::unknown(NAME, error)],
    };
    let missing: Vec<&str> = REQUIRED_KINDS
        .into_iter()
        .filter(|kind| !served.contains(*kind))
        .collect();
    let first = if missing.is_empty() {
        Check::ok(NAME, format!("all {} are served", REQUIRED_KINDS.len()))
    } else {
        Check::fail(NAME, format!("not served: {}", missing.join(", ")), INSTALL)
    };
    let mut checks = vec![first];
    if !served.is_empty() {
        checks.push(generation(session).await);
    }
    checks
}

/// Compares what is installed with what this command was built with, by the fields of each kind.
async fn generation(session: &Session) -> Check {
    const NAME: &str = "generation of kinds";
    let known = match crd::all() {
        Ok(known) => known,
        Err(error) => {
            return Check::unknown(
                NAME,
                Error::internal(format!("the built-in CRDs cannot be read: {error}")),
            );
        }
    };
    let (mut older, mut newer) = (Vec::new(), Vec::new());
    for ours in &known {
        let plural = ours["spec"]["names"]["plural"].as_str().unwrap_or_default();
        let installed = match facts::crd(session, plural).await {
            Ok(Some(installed)) => installed,
            // Missing kinds are the check before.
            Ok(None) => continue,
            Err(error) => return Check::unknown(NAME, error),
        };
        let (theirs, ours) = (facts::schema_fields(&installed), facts::schema_fields(ours));
        older.extend(ours.difference(&theirs).map(|field| format!("{plural} {field}")));
        newer.extend(theirs.difference(&ours).map(|field| format!("{plural} {field}")));
    }
    let some = |fields: &[String]| {
        let shown = fields.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        if fields.len() > 3 {
            format!("{shown} and {} more", fields.len() - 3)
        } else {
            shown
        }
    };
    if !older.is_empty() {
        Check::fail(
            NAME,
            format!(
                "the installed kinds are older than this command, they lack {}",
                some(&older)
            ),
            INSTALL,
        )
    } else if !newer.is_empty() {
        Check::warn(
            NAME,
            format!(
                "the installed kinds are newer than this command, they have {}",
                some(&newer)
            ),
            "upgrade kubectl-backstep to the version of the operator",
        )
    } else {
        Check::ok(NAME, "the installed kinds have the fields that this command knows")
    }
}

async fn policies(session: &Session) -> Check {
    const NAME: &str = "admission policies";
    let seen = match facts::policies(session).await {
        Ok(seen) => seen,
        Err(error) => return Check::unknown(NAME, error),
    };
    let wrong: Vec<String> = REQUIRED_POLICIES
        .into_iter()
        .filter_map(|name| {
            let what = if !seen.present.contains(name) {
                "is missing"
            } else if !seen.failing_closed.contains(name) {
                "does not fail closed"
            } else if !seen.denying.contains(name) {
                "has no binding that denies"
            } else {
                return None;
            };
            Some(format!("{name} {what}"))
        })
        .collect();
    if wrong.is_empty() {
        Check::ok(NAME, format!("{} are in force", REQUIRED_POLICIES.len()))
    } else {
        let fix = format!(
            "{INSTALL}; without them nobody vouches for who asked and who approved, and the operator does not act"
        );
        Check::fail(NAME, wrong.join("; "), fix)
    }
}

async fn stamping(session: &Session, server: &facts::Server) -> Check {
    const NAME: &str = "identity stamping";
    let by_client =
        "this command writes who asks by itself; with kubectl apply and GitOps write spec.requestedBy.username";
    match facts::stamping(session).await {
        Ok(None) if server.minor.is_none_or(|minor| minor < facts::STAMPING_SINCE) => Check::warn(
            NAME,
            format!("servers before 1.{} cannot do it", facts::STAMPING_SINCE),
            by_client,
        ),
        Ok(None) => Check::warn(
            NAME,
            "MutatingAdmissionPolicy is switched off on this server",
            by_client,
        ),
        Ok(Some(seen)) => {
            let missing: Vec<&str> = STAMPING_POLICIES
                .into_iter()
                .filter(|name| !seen.contains(*name))
                .collect();
            if missing.is_empty() {
                Check::ok(NAME, "the API server fills in who asks")
            } else {
                Check::fail(NAME, format!("missing: {}", missing.join(", ")), INSTALL)
            }
        }
        Err(error) => Check::unknown(NAME, error),
    }
}

async fn leader(session: &Session) -> Check {
    const NAME: &str = "operator";
    let namespace = &session.operator_namespace;
    let fix = format!(
        "look at it: kubectl -n {namespace} get pods,lease; kubectl -n {namespace} logs deploy/{}",
        names::OPERATOR
    );
    match facts::leader(session).await {
        Ok(Some(leader)) if leader.fresh => {
            let age = leader.age_seconds.unwrap_or_default().max(0);
            Check::ok(
                NAME,
                format!("{} leads, renewed {age} s ago", leader.holder.unwrap_or_default()),
            )
        }
        Ok(Some(leader)) => match (leader.holder, leader.age_seconds) {
            (Some(holder), Some(age)) => {
                Check::fail(NAME, format!("{holder} has not renewed its Lease for {age} s"), fix)
            }
            _ => Check::fail(NAME, "no process holds the Lease", fix),
        },
        Ok(None) => Check::fail(
            NAME,
            format!(
                "there is no Lease {} in namespace {namespace}: no operator ever ran there",
                names::OPERATOR
            ),
            format!("name its namespace with --operator-namespace, or {INSTALL}"),
        ),
        Err(error) => Check::unknown(NAME, error),
    }
}

async fn default_policy(session: &Session) -> Check {
    const NAME: &str = "approval policy";
    let kind = kube::api::GroupVersionKind::gvk(names::GROUP, names::VERSION, "ApprovalPolicy");
    let resource = kube::api::ApiResource::from_gvk_with_plural(&kind, "approvalpolicies");
    let api: kube::Api<kube::api::DynamicObject> = kube::Api::all_with(session.client.clone(), &resource);
    let params = kube::api::ListParams::default();
    match session
        .repeat("list approvalpolicies", || api.list_metadata(&params))
        .await
    {
        Ok(list) if list.items.iter().any(|p| p.metadata.name.as_deref() == Some("default")) => {
            Check::ok(NAME, format!("`default` is there, {} in all", list.items.len()))
        }
        Ok(list) if list.items.is_empty() => Check::warn(
            NAME,
            "there is none: every rollback request would wait until its time is over",
            "apply an ApprovalPolicy; the chart ships one named `default`",
        ),
        Ok(list) => Check::warn(
            NAME,
            format!("`default` is gone; {} others are there", list.items.len()),
            "see that every namespace matches one of them: a request that none matches waits until its time is over",
        ),
        Err(error) if error.class == Class::Unavailable => {
            Check::new(NAME, Outcome::Skip, "ApprovalPolicy is not served (see kinds)")
        }
        Err(error) => Check::unknown(NAME, error),
    }
}

/// Rights of the user, by what they are for.
const RIGHTS: [(&str, &[&str], &str); 4] = [
    ("list and show snapshots", &["get", "list"], "backstep-viewer"),
    ("take snapshots", &["create"], "backstep-requester"),
    ("wait for snapshots", &["get", "list", "watch"], "backstep-viewer"),
    ("tag and delete snapshots", &["patch", "delete"], "backstep-requester"),
];

async fn rights(session: &Session) -> Vec<Check> {
    let namespace = &session.namespace;
    let mut known: Vec<(&str, Result<bool>)> = Vec::new();
    for verb in ["get", "list", "watch", "create", "patch", "delete"] {
        known.push((
            verb,
            facts::may(session, verb, names::GROUP, "snapshots", Some(namespace)).await,
        ));
    }
    let mut checks = Vec::new();
    for (purpose, verbs, role) in RIGHTS {
        let mut lacking = Vec::new();
        let mut unknown = None;
        for (verb, allowed) in known.iter().filter(|(verb, _)| verbs.contains(verb)) {
            match allowed {
                Ok(true) => {}
                Ok(false) => lacking.push(*verb),
                Err(error) => unknown = Some(error.clone()),
            }
        }
        checks.push(match unknown {
            Some(error) => Check::unknown("your rights", error),
            None if lacking.is_empty() => Check::ok("your rights", format!("you may {purpose} in {namespace}")),
            None => Check::warn(
                "your rights",
                format!("you may not {purpose} in {namespace}: {} on snapshots.backstep.dev is missing", lacking.join(", ")),
                format!("an administrator can grant it: kubectl -n {namespace} create rolebinding … --clusterrole={role} --user=…"),
            ),
        });
    }
    checks
}

async fn repository(session: &Session, store: Option<&Location>) -> Check {
    const NAME: &str = "repository";
    match super::contents::usage(session, store).await {
        Ok(usage) => {
            let detail = format!(
                "{} holds {} bytes; snapshots: {}",
                usage.store, usage.stored_bytes, usage.snapshots
            );
            match usage.quota_bytes {
                Some(quota) if quota > 0 && usage.stored_bytes.saturating_mul(10) > quota.saturating_mul(9) => {
                    Check::warn(
                        NAME,
                        format!("{detail}, more than 90 % of its quota of {quota}"),
                        "delete snapshots (kubectl backstep snapshot delete), or raise store.quota in the chart's values",
                    )
                }
                _ => Check::ok(NAME, detail),
            }
        }
        Err(error) if error.class == Class::Forbidden => Check::new(
            NAME,
            Outcome::Skip,
            "its contents are for administrators: show OBJECT, diff, export and verify are not for you",
        ),
        Err(error) => Check::unknown(NAME, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(minor: Option<u32>, skew: Option<i64>) -> facts::Server {
        facts::Server {
            version: "v1.x".into(),
            minor,
            skew,
        }
    }

    #[test]
    fn unsupported_versions_fail_when_old_and_warn_when_new() {
        assert_eq!(version(&server(Some(32), None)).outcome, Outcome::Fail);
        assert_eq!(version(&server(Some(33), None)).outcome, Outcome::Ok);
        assert_eq!(version(&server(Some(37), None)).outcome, Outcome::Ok);
        assert_eq!(version(&server(Some(38), None)).outcome, Outcome::Warn);
        assert_eq!(version(&server(None, None)).outcome, Outcome::Warn);
    }

    #[test]
    fn clock_skew_warns_and_then_fails_in_both_directions() {
        for (skew, outcome) in [
            (0, Outcome::Ok),
            (5, Outcome::Ok),
            (-60, Outcome::Warn),
            (301, Outcome::Fail),
            (-400, Outcome::Fail),
        ] {
            assert_eq!(clock(&server(None, Some(skew))).outcome, outcome, "{skew}");
        }
    }

    #[test]
    fn what_a_user_may_not_see_is_skipped_not_failed() {
        assert_eq!(
            Check::unknown("x", Error::new(Class::Forbidden, "no")).outcome,
            Outcome::Skip
        );
        assert_eq!(
            Check::unknown("x", Error::new(Class::TimedOut, "no")).outcome,
            Outcome::Fail
        );
    }

    #[test]
    fn the_worst_outcome_wins() {
        assert_eq!(
            worst(&[Check::ok("a", ""), Check::fail("b", "", ""), Check::warn("c", "", "")]),
            Outcome::Fail
        );
    }
}
