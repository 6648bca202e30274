//! `approve`, `reject` and `revoke`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use kube::ResourceExt as _;

use super::{
    Context, Exit, Failure, args,
    output::{Format, left, one_line},
    shown,
};
use crate::{
    api::{
        ApprovalRequest, RollbackPlan,
        approval_request::{ApprovalPhase, Decision},
    },
    ops::{Class, Error, Session, approval, rollback},
};

/// Lines of diffs shown before the question.
const DIFF_LINES: usize = 200;
/// How long it is waited for the count.
const COUNT_WITHIN: Duration = Duration::from_secs(20);

/// Flags of the three verbs.
#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep approvals --mine -n shop
  kubectl backstep approve undo-1-9 -n shop --comment 'the release is worse'
  kubectl backstep reject undo-1-9 --comment 'fix forward' --yes
  kubectl backstep revoke undo-1-9 --stage sre --comment 'wrong version'

The plan is shown first, and what you decide is bound to exactly that plan. An approval of an emergency that has run already acknowledges it. \
The exit code is 8 when the decision was recorded and does not count; the reason is told.")]
pub struct Options {
    /// The rollback request, or its approval request
    #[arg(value_name = "REQUEST")]
    request: String,
    /// Stage to decide; without it the one that is open, or that of your own earlier decision
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Why; reject, revoke and acknowledging an emergency need it
    #[arg(short = 'm', long, value_name = "TEXT")]
    comment: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// How much of the diffs to show first
    #[arg(long, value_enum, value_name = "WHICH", default_value = "some")]
    diffs: Diffs,
    /// How to write the decision
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Diffs {
    /// All of them
    All,
    /// The first 200 lines
    Some,
    /// Only what is done to which object
    None,
}

pub async fn run(decision: Decision, options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let (approval, decision) = subject(&session, &options.request, decision).await?;
    let user = session.whoami().await?;
    let username = user.username.clone().unwrap_or_default();
    let stage = options
        .stage
        .clone()
        .or_else(|| approval::stage_of(&approval, decision, &username))
        .unwrap_or_default();
    if decision != Decision::Approve && options.comment.as_deref().is_none_or(|c| c.trim().is_empty()) {
        return Err(Error::usage(format!("{} needs a reason", verb(decision)))
            .fix("pass --comment")
            .into());
    }
    let plan = plan_of(&session, &approval).await?;
    if plan.is_none() && decision == Decision::Approve {
        return Err(
            Error::not_found(format!("approvalrequest {} has no plan to read", approval.name_any()))
                .because("its RollbackPlan is gone, and nobody should approve what cannot be read")
                .fix("cancel the request and make a new one")
                .into(),
        );
    }
    // For machines the decision alone is the result.
    if options.output.is_none() {
        describe(&approval, plan.as_ref(), &stage, options, context)?;
        context.out.finish()?;
    }
    if !options.yes {
        let question = format!(
            "{} stage {stage} of {} as {}?",
            capital(verb(decision)),
            approval.spec.request_ref.name,
            one_line(&username)
        );
        if !args::confirmed("deciding", &question)? {
            context.out.note("Nothing was decided.")?;
            return Ok(Exit::Ok);
        }
    }
    let comment = options.comment.clone();
    let made = approval::decide(&session, &approval, decision, &stage, comment, &user).await?;
    let name = made.name_any();
    match options.output {
        None => context.out.line(format_args!(
            "approvaldecision.backstep.dev/{name} created: {decision:?} for stage {stage}"
        ))?,
        Some(format @ (Format::Json | Format::Yaml)) => context.out.objects(format, &[&made], false)?,
        Some(Format::Table | Format::Wide | Format::Name) => {
            context.out.line(format_args!("approvaldecision.backstep.dev/{name}"))?;
        }
    }
    context.out.finish()?;
    counted(&session, &approval, &made.uid().unwrap_or_default(), options, context).await
}

/// What is decided on, and how: an approval of what has run already acknowledges it.
async fn subject(session: &Session, name: &str, decision: Decision) -> Result<(ApprovalRequest, Decision), Error> {
    match approval::find(session, name, decision).await {
        Err(error) if decision == Decision::Approve && error.class == Class::Refused => {
            // The first answer says more about what was asked for.
            match approval::find(session, name, Decision::Acknowledge).await {
                Ok(found) => Ok((found, Decision::Acknowledge)),
                Err(_) => Err(error),
            }
        }
        other => Ok((other?, decision)),
    }
}

/// The plan that the approval is bound to, and no other.
async fn plan_of(session: &Session, approval: &ApprovalRequest) -> Result<Option<RollbackPlan>, Error> {
    let Some(name) = &approval.spec.plan_ref else {
        return Ok(None);
    };
    let Some(plan) = rollback::plan_named(session, name).await? else {
        return Ok(None);
    };
    let same =
        plan.spec.digest == approval.spec.plan_digest && plan.spec.request_ref.uid == approval.spec.request_ref.uid;
    if same {
        return Ok(Some(plan));
    }
    Err(Error::new(
        Class::Refused,
        format!("rollbackplan {name} is not the plan that is to be approved"),
    )
    .because(format!(
        "the approval is about {}, the plan is {} of request {}",
        approval.spec.plan_digest, plan.spec.digest, plan.spec.request_ref.name
    ))
    .fix("do not decide; tell whoever runs the operator"))
}

const fn verb(decision: Decision) -> &'static str {
    match decision {
        Decision::Approve => "approve",
        Decision::Reject => "reject",
        Decision::Revoke => "revoke",
        Decision::Acknowledge => "acknowledge",
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn describe(
    approval: &ApprovalRequest,
    plan: Option<&RollbackPlan>,
    stage: &str,
    options: &Options,
    context: &mut Context,
) -> Result<(), Failure> {
    let spec = &approval.spec;
    let out = &mut context.out;
    let why = match (&spec.reason, &spec.ticket) {
        (None, None) => String::new(),
        (Some(reason), None) => format!(": {}", one_line(reason)),
        (None, Some(ticket)) => format!(" ({})", one_line(ticket)),
        (Some(reason), Some(ticket)) => format!(": {} ({})", one_line(reason), one_line(ticket)),
    };
    out.line(format_args!(
        "RollbackRequest {}, asked for by {}{why}",
        spec.request_ref.name,
        one_line(&spec.requester.username)
    ))?;
    if spec.emergency == Some(true) {
        let text = out.tone(
            super::output::Tone::Bad,
            "EMERGENCY: it runs before approval and is reviewed afterwards",
        );
        out.line(text)?;
    }
    out.line(format_args!(
        "Policy {}, phase {:?}, expires in {}",
        spec.policy.name,
        approval::phase(approval),
        left(spec.expires_at.0)
    ))?;
    for each in &spec.stages {
        let mark = if each.name == stage { ">" } else { " " };
        let have = approval::approved(approval, &each.name);
        let who = one_line(&approval::who(approval, each));
        out.line(format_args!("{mark} stage {}: {have} approved, needs {who}", each.name))?;
    }
    let Some(plan) = plan else {
        return out.line("The plan is gone.");
    };
    let diffs = match options.diffs {
        Diffs::All => shown::Diffs::All,
        Diffs::Some => shown::Diffs::Lines(DIFF_LINES),
        Diffs::None => shown::Diffs::None,
    };
    shown::plan(out, plan, diffs)
}

/// Says whether the decision counts, and what the request is waiting for now.
async fn counted(
    session: &Session,
    approval: &ApprovalRequest,
    uid: &str,
    options: &Options,
    context: &mut Context,
) -> Result<Exit, Failure> {
    let name = approval.name_any();
    let spinner = context.out.spinner("waiting for the count");
    let found = approval::counted(session, &name, uid, COUNT_WITHIN).await;
    spinner.finish_and_clear();
    let Some((approval, recorded)) = found? else {
        context.out.note(format_args!(
            "It is recorded, and the operator has not counted it yet; see: kubectl get approvalrequest {name} -n {} -o yaml",
            session.namespace
        ))?;
        return Ok(Exit::Ok);
    };
    if recorded.counted != Some(true) {
        let why = recorded
            .reason
            .unwrap_or_else(|| "the operator does not say why".to_owned());
        return Err(
            Error::new(Class::Refused, "the decision is recorded and does not count")
                .because(one_line(&why))
                .into(),
        );
    }
    if options.output.is_some() {
        return Ok(Exit::Ok);
    }
    let phase = approval::phase(&approval);
    let waiting = approval::current_stage(&approval)
        .filter(|_| phase == ApprovalPhase::Pending)
        .map(|stage| {
            let have = approval::approved(&approval, &stage.name);
            format!(", stage {} has {have} of {}", stage.name, stage.required)
        });
    context.out.line(format_args!(
        "It counts: approvalrequest {name} is {phase:?}{}",
        waiting.unwrap_or_default()
    ))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_begins_with_a_capital() {
        assert_eq!(capital(verb(Decision::Acknowledge)), "Acknowledge");
        assert_eq!(capital(""), "");
    }
}
