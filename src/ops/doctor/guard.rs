//! The guard: whether it is the one of this release, and what the operator makes of it.

use super::{Check, INSTALL};
use crate::{
    cluster::{
        clock,
        guard::{
            self, Mutators,
            expected::Installation,
            published::{self, Published},
        },
    },
    ops::Session,
};

/// Whether policies, bindings and CRDs are the ones of this release, field by field, and what the operator makes of them.
pub(super) async fn checks(session: &Session) -> Vec<Check> {
    const NAME: &str = "guard";
    let namespace = &session.operator_namespace;
    let told = match published::read(&session.client, namespace).await {
        Ok(told) => told,
        Err(error) => return vec![Check::unknown(NAME, error.into())],
    };
    let installation = told.as_ref().map_or_else(
        || Installation {
            namespace: namespace.clone(),
            ..Installation::default()
        },
        |told| told.installation.clone(),
    );
    let seen = match guard::compare(&session.client, &installation, Mutators::Report).await {
        Ok(seen) => seen,
        Err(error) => {
            return vec![
                Check::unknown("specs of the guard", error.into()),
                state(NAME, told, None),
            ];
        }
    };
    vec![specs(&seen), state(NAME, told, Some(&seen.epoch))]
}

/// Of policies, bindings and CRDs.
fn specs(seen: &guard::Report) -> Check {
    const NAME: &str = "specs of the guard";
    if !seen.missing.is_empty() {
        let fix = format!(
            "find out who changed it (the audit log tells), then {INSTALL}; where operator and chart are of another version than this \
             command, use the kubectl-backstep of that version"
        );
        return Check::fail(NAME, seen.missing.join("; "), fix);
    }
    if let Some(foreign) = seen.foreign_mutators.as_ref().filter(|foreign| !foreign.is_empty()) {
        let fix =
            "exclude backstep.dev from what they match, or set guard.foreignMutators: Block in the chart's values";
        return Check::warn(NAME, foreign.join("; "), fix);
    }
    Check::ok(
        NAME,
        "CRDs, admission policies and bindings are those of this release, field by field",
    )
}

/// What the operator says of the guard; `epoch` is the present one.
fn state(name: &'static str, told: Option<Published>, epoch: Option<&str>) -> Check {
    let Some(told) = told else {
        return Check::warn(
            name,
            "the operator has not said what it sees of the guard",
            "it says so once it leads (see operator); an operator older than this command never does",
        );
    };
    if !told.missing.is_empty() {
        let fix = format!("nothing is approved or executed until then; {INSTALL}");
        return Check::fail(name, told.missing.join("; "), fix);
    }
    let seen = told.epoch.unwrap_or_default();
    if epoch.is_some_and(|epoch| epoch != seen) {
        return Check::warn(
            name,
            "something of it was changed or created anew, and the operator has not looked at it yet",
            "run this again in half a minute; approvals that are not used yet become void, and are asked for again",
        );
    }
    let short: String = seen.chars().take("sha256:".len() + 12).collect();
    match told.settled {
        Some(settled) if settled > clock::now() => Check::warn(
            name,
            format!("epoch {short} settles until {settled}"),
            "wait: until then nobody is asked for approval, so that every API server knows the policies",
        ),
        Some(settled) => Check::ok(name, format!("in place; epoch {short}, settled since {settled}")),
        None => Check::fail(name, "the operator has not found it in place yet", INSTALL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::doctor::Outcome;

    #[test]
    fn the_guard_is_well_only_where_the_operator_says_so_of_the_present_epoch() {
        let told = |missing: &[&str], settled: Option<&str>| Published {
            installation: Installation::default(),
            missing: missing.iter().map(|what| (*what).to_owned()).collect(),
            epoch: Some("sha256:a".into()),
            settled: settled.map(|time| time.parse().unwrap()),
        };
        let past = Some("2020-01-01T00:00:00Z");
        for (told, epoch, outcome) in [
            (Some(told(&[], past)), Some("sha256:a"), Outcome::Ok),
            (Some(told(&[], past)), None, Outcome::Ok),
            (Some(told(&[], past)), Some("sha256:b"), Outcome::Warn),
            (Some(told(&[], Some("2999-01-01T00:00:00Z"))), None, Outcome::Warn),
            (Some(told(&[], None)), None, Outcome::Fail),
            (Some(told(&["a binding"], past)), Some("sha256:a"), Outcome::Fail),
            (None, Some("sha256:a"), Outcome::Warn),
        ] {
            let check = state("guard", told.clone(), epoch);
            assert_eq!(check.outcome, outcome, "{told:?} {epoch:?}");
            assert_eq!(check.fix.is_none(), outcome == Outcome::Ok);
        }
    }
}
