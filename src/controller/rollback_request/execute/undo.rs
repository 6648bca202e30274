//! The way back: a plan from live to the safety snapshot, of what this execution wrote and nothing else, under the permit that
//! the consumed approval covers.

use std::{collections::BTreeSet, time::Duration};

use kube::ResourceExt as _;
use tokio::time::Instant;

use super::{
    Made, Stop, Work,
    items::delays,
    restart::is_marked,
    snapshots::Taken,
    steps::{self, Steps},
};
use crate::{
    api::{RollbackRequest, duration, names, reasons, rollback_request::StepState},
    cluster::{
        Class,
        list::Collection,
        watch::{self, Seen, Subject},
    },
    controller::{
        approval_request,
        rollback_request::{gate, hold, plan, repository, run},
    },
    domain::{
        approval::{Consequence, ExecutionPermit, gate::Known, permit::Purpose, resume},
        object::ObjectId,
        plan::{Action, Bound, KeepReason, Plan, digest::BoundItem, write::seconds},
    },
};

/// How long the status may take to say that the way back begins.
const PUBLISHED: Duration = Duration::from_secs(30);

/// Why there is no permit yet, or none at all.
enum Refused {
    Later(String),
    Never(String),
}

impl Work<'_> {
    /// Goes back to the safety snapshot. It has the time of an execution of its own.
    pub(super) async fn undo(
        &self,
        wrote: BTreeSet<ObjectId>,
        approved: &[BoundItem],
        execution: &str,
    ) -> Result<(), Stop> {
        let allowed = duration::parse(&run::timeouts(self.request()).execution).unwrap_or(Duration::from_secs(30 * 60));
        let deadline = Instant::now() + allowed;
        let report = &self.execution.report;
        report.begin(steps::UNDO);
        self.announced().await;
        let undone = Box::pin(self.go_back(wrote, approved, execution, deadline)).await;
        let state = if undone.is_ok() {
            StepState::Done
        } else {
            StepState::Failed
        };
        report.end(steps::UNDO, state);
        undone
    }

    async fn go_back(
        &self,
        wrote: BTreeSet<ObjectId>,
        approved: &[BoundItem],
        execution: &str,
        deadline: Instant,
    ) -> Result<(), Stop> {
        let failed = |why: String| Stop::failed(reasons::UNDO_FAILED, why);
        let safety = self.way_back().await.map_err(failed)?;
        let mut delays = delays();
        let (permit, made) = loop {
            let why = match self.permit_back(&safety, &wrote, execution).await {
                Ok(permitted) => break permitted,
                Err(Refused::Never(why)) => return Err(failed(why)),
                Err(Refused::Later(why)) => why,
            };
            let delay = delays.next().unwrap_or_default();
            if tokio::time::timeout_at(deadline, tokio::time::sleep(delay))
                .await
                .is_err()
            {
                return Err(failed(format!("its time was over; the last try said: {why}")));
            }
        };
        let plan = permit.into_plan();
        let back = Work::back(self.execution, &made, deadline)?;
        let steps = Steps::of(&plan, plan.bound_items(), self.request());
        let before = self.execution.report.failures().len();
        for items in steps.groups.iter().flat_map(|group| &group.numbers) {
            back.write(items).await?;
        }
        back.restart(&back.to_restart(approved, self.restarted_at)).await?;
        for items in &steps.prune {
            back.write(items).await?;
        }
        let failures = self.execution.report.failures();
        if let Some(stop) = Stop::of(failures.get(before..).unwrap_or_default()) {
            return Err(stop);
        }
        back.healthy_after_undo().await;
        self.left(&plan, &wrote)
    }

    /// What of the objects that were written is not as it was: it is named, and fails the way back unless it has to stay.
    fn left(&self, plan: &Plan<Bound>, wrote: &BTreeSet<ObjectId>) -> Result<(), Stop> {
        let mut lost = Vec::new();
        for item in plan.items().iter().filter(|item| wrote.contains(&item.id)) {
            match &item.action {
                Action::Keep(KeepReason::LiveWins) => {}
                Action::Keep(why) => self.execution.report.note(format!("{} stays: {why}", item.id)),
                Action::Skip(why) => lost.push(format!("{}: {why}", item.id)),
                _ => {}
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        Err(Stop::failed(
            reasons::UNDO_FAILED,
            format!("not as before: {}", lost.join(", ")),
        ))
    }

    /// Consumers that were restarted on the way there have read what is not there any more.
    fn to_restart(&self, approved: &[BoundItem], there: jiff::Timestamp) -> Vec<ObjectId> {
        let mark = seconds(there);
        approved
            .iter()
            .filter(|item| item.action == Action::Restart(Vec::new()).name())
            .map(|item| &item.object)
            .filter(|id| self.live.get(id).is_some_and(|live| is_marked(&live.raw, &mark)))
            .cloned()
            .collect()
    }

    async fn permit_back(
        &self,
        safety: &Taken,
        wrote: &BTreeSet<ObjectId>,
        execution: &str,
    ) -> Result<(ExecutionPermit, Made), Refused> {
        let (context, request) = (&self.execution.context, self.request());
        let failed = |failure: crate::capture::Failure| {
            if matches!(failure.class, Class::Transient | Class::Waiting) {
                Refused::Later(failure.message)
            } else {
                Refused::Never(failure.message)
            }
        };
        let asked = request.status.as_ref().and_then(|status| status.approval.as_ref());
        let Some(asked) = asked else {
            return Err(Refused::Never("the approval is not known any more".into()));
        };
        let approval = approval_request::facts(context, request, &asked.request).await;
        let (digest, policy) = match &approval.approval {
            Known::Is(found) => (found.plan_digest, found.policy_digest),
            Known::Unknown(why) => {
                return Err(match hold::leaves_with_all(context, request).await {
                    Ok(Some(gone)) => Refused::Never(gone),
                    Ok(None) | Err(_) => Refused::Later(why.clone()),
                });
            }
        };
        let repository = repository(context).map_err(failed)?;
        let approved = gate::approved(&repository, request, digest).await.map_err(failed)?;
        let Some(approved) = approved else {
            return Err(Refused::Never(
                "what was approved is not in the repository any more".into(),
            ));
        };
        let aim = plan::Aim::Undo(wrote, policy);
        let (catalog, put_back) = (&self.execution.catalog, approved.put_back());
        let (made, plan) = plan::from_live(context, catalog, request, &safety.resolved, aim, &put_back, &[])
            .await
            .map_err(failed)?;
        let gate = gate::facts(context, request, &made, &plan, &approval, &approved).await;
        match resume(&gate, execution, &Purpose::Undo(wrote.clone()), plan) {
            Ok(permit) => Ok((permit, made)),
            Err(refusal) => Err(match refusal.consequence() {
                Consequence::Wait(_) => Refused::Later(refusal.to_string()),
                _ => Refused::Never(refusal.to_string()),
            }),
        }
    }

    /// Waits until the status says that the way back has begun: after a crash it is gone on with, and not the way there.
    async fn announced(&self) {
        let request = self.request();
        let subject = Subject {
            collection: Collection {
                group: names::GROUP.into(),
                version: names::VERSION.into(),
                plural: "rollbackrequests".into(),
                namespace: Some(self.namespace.clone()),
            },
            name: Some(request.name_any()),
            from: None,
        };
        let client = &self.execution.context.client;
        let said = watch::until(client, &subject, Instant::now() + PUBLISHED, |seen| {
            let (Seen::There(object) | Seen::Gone(object)) = seen;
            let request: RollbackRequest = serde_json::from_value(object.clone()).ok()?;
            let steps = request.status.map(|status| status.steps).unwrap_or_default();
            steps.iter().any(|step| step.name == steps::UNDO).then_some(())
        });
        if said.await.is_none() {
            tracing::warn!(
                namespace = self.namespace,
                name = request.name_any(),
                "the status does not say yet that the rollback goes back; going back"
            );
        }
    }
}
