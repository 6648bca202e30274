//! Making a `RollbackRequest`, finding one, and following it to its end.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Class, Error, Result, Session, create, reference, wait};
use crate::{
    api::{
        RollbackPlan, RollbackRequest, RollbackRequestSpec, conditions,
        rollback_request::{Prune, RollbackPhase, Target},
    },
    domain::rollback,
};

/// What to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name; absent lets the API server make one from `prefix`.
    pub name: Option<String>,
    /// Start of a name that the API server makes.
    pub prefix: String,
    /// The spec; `requested_by` is filled in by [`create()`].
    pub spec: RollbackRequestSpec,
}

impl Request {
    /// The object as it would be sent, without `requestedBy`.
    pub fn object(&self, namespace: &str) -> RollbackRequest {
        let mut metadata = ObjectMeta {
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        match &self.name {
            Some(name) => metadata.name = Some(name.clone()),
            None => metadata.generate_name = Some(format!("{}-", self.prefix)),
        }
        RollbackRequest {
            metadata,
            spec: self.spec.clone(),
            status: None,
        }
    }
}

/// A spec that goes back to `target`, with the defaults of the kind.
pub fn spec(target: &Target) -> Result<RollbackRequestSpec> {
    serde_json::from_value(json!({ "target": target }))
        .map_err(|e| Error::internal(format!("a request cannot be written: {e}")))
}

/// Creates the request; with `dry_run` the API server checks it and keeps nothing.
///
/// `requestedBy` is written here whether or not the cluster would stamp it, as it is for snapshots.
pub async fn create(session: &Session, request: &Request, dry_run: bool) -> Result<RollbackRequest> {
    let mut object = request.object(&session.namespace);
    if object.spec.requested_by.is_none() {
        object.spec.requested_by = Some(session.identity().await?);
    }
    let name = request.name.as_ref().map(|n| format!("{n} ")).unwrap_or_default();
    let what = format!("create rollbackrequest {name}in {}", session.namespace);
    create::post(session, &what, &object, dry_run).await
}

/// Takes the kind off `rollbackrequest.backstep.dev/NAME`, which `-o name` prints, and off its short forms.
pub fn bare_name<'a>(text: &'a str, kinds: &[&str]) -> Result<&'a str> {
    let (kind, name) = text
        .rsplit_once('/')
        .map_or((None, text), |(kind, name)| (Some(kind), name));
    let known = |kind: &str| {
        let kind = kind.strip_suffix(".backstep.dev").unwrap_or(kind);
        kinds.contains(&kind) || kinds.contains(&kind.strip_suffix('s').unwrap_or(kind))
    };
    if kind.is_some_and(|kind| !known(kind)) || name.is_empty() {
        return Err(Error::usage(format!(
            "`{text}` is not a {}",
            kinds.first().copied().unwrap_or("request")
        )));
    }
    Ok(name)
}

/// Kinds that name a `RollbackRequest`.
pub const KINDS: [&str; 2] = ["rollbackrequest", "rbr"];

/// The request `name` of the session's namespace.
pub async fn find(session: &Session, name: &str) -> Result<RollbackRequest> {
    let name = bare_name(name, &KINDS)?;
    let namespace = &session.namespace;
    let api: Api<RollbackRequest> = session.api_in(namespace);
    let found = session
        .repeat(&format!("read rollbackrequest {name} in {namespace}"), || {
            api.get_opt(name)
        })
        .await?;
    found.ok_or_else(|| {
        Error::not_found(format!("there is no rollbackrequest {name} in namespace {namespace}")).fix(format!(
            "list what there is: kubectl get rollbackrequests -n {namespace}"
        ))
    })
}

/// Where a request stands; `Pending` before the operator has seen it.
pub fn phase(request: &RollbackRequest) -> RollbackPhase {
    request.status.as_ref().and_then(|s| s.phase).unwrap_or_default()
}

/// Whether nothing happens to it any more.
pub fn is_over(request: &RollbackRequest) -> bool {
    rollback::is_final(phase(request))
}

/// What the operator says it is doing: reason and message of `Reconciling`, else of `Ready`.
pub fn progress(request: &RollbackRequest) -> Option<String> {
    wait::told(request.status.as_ref().map_or(&[], |s| &s.conditions))
}

/// The condition `type_` of a request.
pub fn condition<'a>(request: &'a RollbackRequest, type_: &str) -> Option<&'a Condition> {
    request.status.as_ref()?.conditions.iter().find(|c| c.type_ == type_)
}

/// Follows the request `name` until it is over, or until `done` says that enough was seen; `seen` is called with each state.
///
/// # Errors
/// `NotFound` when it is gone, `TimedOut` after `deadline` with what was seen last. How it ended is for [`outcome`] to say.
pub async fn follow(
    session: &Session,
    name: &str,
    deadline: Duration,
    mut seen: impl FnMut(&RollbackRequest),
    done: impl Fn(&RollbackRequest) -> bool,
) -> Result<RollbackRequest> {
    let step = |request: &RollbackRequest| {
        seen(request);
        (is_over(request) || done(request)).then(|| Ok(request.clone()))
    };
    let late = |last: Option<&RollbackRequest>| {
        let stands = match last {
            None => "it was never seen".to_owned(),
            Some(request) if request.status.is_none() => "no operator has looked at it".to_owned(),
            Some(request) => {
                let phase = phase(request);
                progress(request).map_or_else(|| format!("it is {phase:?}"), |text| format!("it is {phase:?}, {text}"))
            }
        };
        let after = super::duration::kubernetes(deadline);
        Error::new(Class::TimedOut, format!("rollbackrequest {name} is not over after {after}"))
            .because(stands)
            .fix(format!(
                "it goes on without this command: kubectl backstep watch {name} -n {}; is the operator well? kubectl backstep doctor",
                session.namespace
            ))
    };
    wait::until(session, name, deadline, step, late).await
}

/// What the end of a request means for whoever waited: nothing where it reached what was asked for.
///
/// # Errors
/// `Failed` for `Failed`, `Partial` and `Undone`; `Refused` for `Rejected`, `Cancelled` and `Superseded`; `TimedOut` for `Expired`.
pub fn outcome(request: &RollbackRequest) -> Result<()> {
    let (name, phase) = (request.name_any(), phase(request));
    let (class, what) = match phase {
        RollbackPhase::Pending
        | RollbackPhase::Planning
        | RollbackPhase::AwaitingApproval
        | RollbackPhase::Executing
        | RollbackPhase::Verifying
        | RollbackPhase::Planned
        | RollbackPhase::Completed => return Ok(()),
        RollbackPhase::Partial => (Class::Failed, "was carried out but for some items"),
        RollbackPhase::Failed => (Class::Failed, "failed"),
        RollbackPhase::Undone => (Class::Failed, "failed and was undone: everything is as before"),
        RollbackPhase::Rejected => (Class::Refused, "was rejected"),
        RollbackPhase::Cancelled => (Class::Refused, "was cancelled"),
        RollbackPhase::Superseded => (Class::Refused, "was superseded by another one"),
        RollbackPhase::Expired => (Class::TimedOut, "was not approved in time"),
    };
    let mut error = Error::new(class, format!("rollbackrequest {name} {what}"));
    if let Some(condition) = condition(request, conditions::STALLED).or_else(|| condition(request, conditions::READY)) {
        error = error.because(format!("{}: {}", condition.reason, condition.message));
    }
    let fix = match phase {
        RollbackPhase::Rejected => {
            "the decisions say why: kubectl get approvaldecisions; a rejected request never runs, make a new one"
        }
        RollbackPhase::Expired => "make a new request, and ask an approver beforehand: kubectl backstep approvals",
        RollbackPhase::Partial => "status.items.failures names what is left; mend it and make a new request",
        _ => "mend the cause and make a new request: a finished one never runs again",
    };
    Err(error.fix(fix))
}

/// The plan of a request; `None` where none was made.
///
/// # Errors
/// `Refused` where the plan of that name belongs to another request.
pub async fn plan(session: &Session, request: &RollbackRequest) -> Result<Option<RollbackPlan>> {
    let Some(told) = request.status.as_ref().and_then(|s| s.plan.as_ref()) else {
        return Ok(None);
    };
    let plan = plan_named(session, &told.name).await?;
    match plan {
        Some(plan) if Some(&plan.spec.request_ref.uid) != request.uid().as_ref() => Err(Error::new(
            Class::Refused,
            format!("rollbackplan {} is not the plan of this request", told.name),
        )
        .because("it names the UID of another one")
        .fix("make a new request")),
        other => Ok(other),
    }
}

/// The plan `name` of the session's namespace.
pub async fn plan_named(session: &Session, name: &str) -> Result<Option<RollbackPlan>> {
    let api: Api<RollbackPlan> = session.api_in(&session.namespace);
    session
        .repeat(&format!("read rollbackplan {name} in {}", session.namespace), || {
            api.get_opt(name)
        })
        .await
}

/// The spec that undoes what `request` did: back to its safety snapshot within the same scope, and away with what it created.
///
/// # Errors
/// `Refused` where there is no safety snapshot to go back to.
pub async fn undo(session: &Session, request: &RollbackRequest) -> Result<RollbackRequestSpec> {
    let name = request.name_any();
    let refused = |why: &str, fix: &str| {
        Error::new(Class::Refused, format!("rollbackrequest {name} cannot be undone"))
            .because(why)
            .fix(fix)
    };
    let list = format!(
        "go back to a version by name: kubectl backstep timeline -n {}",
        session.namespace
    );
    let Some(safety) = request.status.as_ref().and_then(|s| s.safety_snapshot.clone()) else {
        let phase = phase(request);
        return Err(match phase {
            _ if request.spec.dry_run => refused("it was a dry run: it changed nothing", "there is nothing to undo"),
            _ if !is_over(request) => refused(
                &format!("it is {phase:?} and has no safety snapshot yet"),
                &format!(
                    "withdraw it instead: kubectl patch rollbackrequest {name} --type=merge -p '{{\"spec\":{{\"cancel\":true}}}}'"
                ),
            ),
            _ if !request.spec.safety_snapshot => refused(
                "it was made with safetySnapshot: false, so what was before is not kept",
                &list,
            ),
            _ => refused(
                &format!("it ended as {phase:?} before its safety snapshot was taken: it changed nothing"),
                "there is nothing to undo",
            ),
        });
    };
    if !is_over(request) {
        return Err(refused(
            &format!("it is still {:?}", phase(request)),
            "wait for its end, or withdraw it: spec.cancel: true stops it and follows onFailure",
        ));
    }
    if phase(request) == RollbackPhase::Undone {
        return Err(refused("it was undone already, by itself", "there is nothing to undo"));
    }
    let api = session.snapshots();
    let what = format!("read snapshot {}", safety.name);
    let snapshot = session.repeat(&what, || api.get_opt(&safety.name)).await?;
    let ready = snapshot
        .as_ref()
        .is_some_and(|s| reference::phase(s) == crate::api::snapshot::SnapshotPhase::Ready);
    if !ready {
        let why = format!("its safety snapshot {} was deleted, or has expired", safety.name);
        return Err(refused(&why, &list));
    }
    let mut spec = spec(&Target {
        snapshot: Some(safety.name),
        ..Target::default()
    })?;
    spec.strategy = request.spec.strategy;
    spec.components.clone_from(&request.spec.components);
    spec.objects.clone_from(&request.spec.objects);
    spec.cascade = request.spec.cascade;
    spec.gitops = request.spec.gitops;
    spec.prune = Prune::Created;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::RollbackRequestStatus;

    fn request(phase: RollbackPhase) -> RollbackRequest {
        let target = Target {
            snapshot: Some("good".into()),
            ..Target::default()
        };
        let mut request = RollbackRequest::new("undo", spec(&target).unwrap());
        request.status = Some(RollbackRequestStatus {
            phase: Some(phase),
            ..RollbackRequestStatus::default()
        });
        request
    }

    #[test]
    fn a_spec_without_flags_holds_the_defaults_of_the_kind() {
        let spec = request(RollbackPhase::Pending).spec;
        assert!(spec.cascade && spec.safety_snapshot && spec.result_snapshot && !spec.dry_run);
        assert_eq!(spec.prune, Prune::None);
    }

    #[test]
    fn each_end_has_a_class_of_its_own() {
        let class = |phase| outcome(&request(phase)).err().map(|e| e.class);
        assert_eq!(class(RollbackPhase::Completed), None);
        assert_eq!(class(RollbackPhase::Planned), None);
        for phase in [RollbackPhase::Failed, RollbackPhase::Partial, RollbackPhase::Undone] {
            assert_eq!(class(phase), Some(Class::Failed), "{phase:?}");
        }
        for phase in [
            RollbackPhase::Rejected,
            RollbackPhase::Cancelled,
            RollbackPhase::Superseded,
        ] {
            assert_eq!(class(phase), Some(Class::Refused), "{phase:?}");
        }
        assert_eq!(class(RollbackPhase::Expired), Some(Class::TimedOut));
    }

    #[test]
    fn names_may_carry_their_kind_and_no_other() {
        for text in ["a", "rbr/a", "rollbackrequest/a", "rollbackrequests.backstep.dev/a"] {
            assert_eq!(bare_name(text, &KINDS), Ok("a"), "{text}");
        }
        for text in ["snapshot/a", "rbr/", ""] {
            assert_eq!(bare_name(text, &KINDS).unwrap_err().class, Class::Usage, "{text}");
        }
    }
}
