//! The controller of `ApprovalPolicies`: says whether a policy can be met at all, and why not.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    api::PostParams,
    runtime::{
        controller::{Action, Config, Controller},
        watcher,
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        ApprovalPolicy, ApprovalPolicySpec,
        conditions::{self, NewCondition},
        reasons,
        rollback_request::Priority,
    },
    cluster::{self, Class, call, clock},
    controller::context::Context,
    domain::approval::{hold::Calendar, policy::check},
    telemetry::metrics::ReconcileError,
};

/// Runs the controller until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let api: Api<ApprovalPolicy> = Api::all(context.client.clone());
    Controller::new(api, watcher::Config::default().page_size(500).any_semantic())
        .with_config(Config::default().concurrency(2))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, on_error, context)
        .for_each(|_| futures::future::ready(()))
        .await;
}

/// What a policy is by itself: whether it is ready, the reason and what to change.
fn verdict(spec: &ApprovalPolicySpec) -> (bool, &'static str, String) {
    if let Err(problem) = check(spec) {
        return (false, reasons::UNSATISFIABLE, problem.to_string());
    }
    if let Err(problem) = Calendar::new(spec, Priority::Low) {
        let message = format!("{problem}; correct it, for nothing that this policy matches is approved");
        return (false, reasons::INVALID_SPEC, message);
    }
    let mut message = "its stages can be met".to_owned();
    if spec.stages.is_empty() {
        "it has no stage: what it does not approve by itself waits until its time is over".clone_into(&mut message);
    }
    (true, reasons::SATISFIABLE, message)
}

async fn reconcile(policy: Arc<ApprovalPolicy>, context: Arc<Context>) -> Result<Action, cluster::Error> {
    if policy.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let (ready, reason, message) = verdict(&policy.spec);
    let generation = policy.metadata.generation;
    let mut changed = ApprovalPolicy::clone(&policy);
    let status = changed.status.get_or_insert_default();
    status.observed_generation = generation;
    let now = clock::now_time();
    let mut set = |type_| {
        let new = NewCondition {
            type_,
            status: Some(if type_ == conditions::READY { ready } else { true }),
            reason: reason.to_owned(),
            message: message.clone(),
        };
        conditions::set(&mut status.conditions, &new, generation, &now);
    };
    set(conditions::READY);
    if ready {
        conditions::remove(&mut status.conditions, conditions::STALLED);
    } else {
        set(conditions::STALLED);
    }
    if changed.status != policy.status {
        let api: Api<ApprovalPolicy> = Api::all(context.client.clone());
        let name = policy.name_any();
        let params = PostParams::default();
        let what = format!("write the status of approvalpolicy {name}");
        call::repeat(&what, call::DEADLINE, || api.replace_status(&name, &params, &changed)).await?;
        if !ready {
            context.event(policy.as_ref(), true, reason, "Check", &message).await;
        }
    }
    Ok(Action::await_change())
}

#[allow(clippy::needless_pass_by_value)]
fn on_error(policy: Arc<ApprovalPolicy>, error: &cluster::Error, context: Arc<Context>) -> Action {
    let class = error.class();
    let labels = ReconcileError {
        kind: "ApprovalPolicy",
        class: class.label(),
    };
    context.metrics.reconcile_errors.get_or_create(&labels).inc();
    if !error.is_conflict() && !error.is_not_found() {
        tracing::warn!(name = policy.name_any(), class = class.label(), %error, "reconcile failed");
    }
    match class {
        Class::Transient => Action::requeue(Duration::from_secs(1)),
        Class::Waiting | Class::Invalid | Class::Forbidden | Class::Corrupt => Action::requeue(Duration::from_secs(30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        approval_policy::{PolicyStage, Window},
        approval_request::Approvers,
    };

    fn one_of(users: &[&str], required: i32) -> ApprovalPolicySpec {
        ApprovalPolicySpec {
            stages: vec![PolicyStage {
                name: "sre".into(),
                required,
                approvers: Some(Approvers {
                    users: users.iter().map(|name| (*name).to_owned()).collect(),
                    ..Approvers::default()
                }),
                ..PolicyStage::default()
            }],
            ..ApprovalPolicySpec::default()
        }
    }

    #[test]
    fn a_policy_that_asks_for_more_people_than_it_names_says_which_stage() {
        assert!(verdict(&one_of(&["ada", "bob"], 2)).0);
        let (ready, reason, message) = verdict(&one_of(&["ada"], 2));
        assert_eq!((ready, reason), (false, reasons::UNSATISFIABLE));
        assert!(
            message.contains("stage sre") && message.contains("2 distinct people"),
            "{message}"
        );
    }

    #[test]
    fn a_window_that_cannot_be_read_is_no_window() {
        let spec = ApprovalPolicySpec {
            windows: vec![Window {
                cron: "0 25 * * *".into(),
                duration: "1h".into(),
                time_zone: "UTC".into(),
            }],
            ..one_of(&["ada"], 1)
        };
        let (ready, reason, message) = verdict(&spec);
        assert_eq!((ready, reason), (false, reasons::INVALID_SPEC));
        assert!(message.contains("0 25 * * *"), "{message}");
    }
}
