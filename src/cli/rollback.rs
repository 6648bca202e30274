//! `rollback`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use kube::ResourceExt as _;

use super::{
    Context, Exit, Failure,
    args::{self, DryRun},
    output::Format,
    scope::{self, Scope},
    watch,
};
use crate::{
    api::{
        RollbackRequest,
        rollback_request::{Emergency, OnFailure, Priority, ReasonType, RollbackPhase, Timeouts},
        verify::{RolloutStatus, SnapshotMatches, Verify, VerifyCheck, VerifyTest},
    },
    ops::{
        Error, Session, approval, duration,
        rollback::{self, Request},
    },
};

/// How long it is waited for the plan when nobody asked to wait, to say who may approve it.
const FIRST_LOOK: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep rollback before-1-9 -n shop --reason 'checkout is broken' --verify-rollout Deployment/web
  kubectl backstep rollback --lineage shop --previous --prune created --wait=1h
  kubectl backstep rollback tag:stable --include ConfigMap/web --name undo-1-9 --on-failure stop
  kubectl backstep rollback shop@7 --emergency 'payments are down, on-call decided'

Nothing is changed in the namespace before the plan is approved. Without --wait it is said who may approve, once the plan is made; the exit code \
is 9 when it cannot be. With --wait the exit code tells the outcome: 0 completed; 9 failed, undone or \
partial; 8 rejected, cancelled or superseded; 5 not approved in time, or not over when the wait was. Ending the wait does not end the rollback.")]
pub struct Options {
    #[command(flatten)]
    scope: Scope,
    /// Name of the rollback request; without it one is made
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    about: About,
    /// client: print what would be sent; server: let the API server check it and keep nothing
    #[arg(long, value_enum, value_name = "WHERE", conflicts_with_all = ["wait", "timeout"])]
    dry_run: Option<DryRun>,
}

/// What `rollback` and `undo` share beside the target.
#[derive(Args)]
pub struct About {
    /// Why, for those who approve and for the history
    #[arg(short, long, value_name = "TEXT")]
    reason: Option<String>,
    /// What kind of reason [default: manual]
    #[arg(long, value_enum, value_name = "TYPE")]
    reason_type: Option<ReasonFlag>,
    /// Ticket that the reason names
    #[arg(long, value_name = "TICKET")]
    ticket: Option<String>,
    /// Order in the queue [default: normal]
    #[arg(long, value_enum, value_name = "PRIORITY")]
    priority: Option<PriorityFlag>,
    /// Afterwards the rollout of this workload must be complete: Deployment/web; may be given several times
    #[arg(long, value_name = "WORKLOAD")]
    verify_rollout: Vec<String>,
    /// Afterwards live must equal the target, but for what the plan keeps
    #[arg(long)]
    verify_snapshot: bool,
    /// How long everything must hold after the tests passed [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = held)]
    stabilize: Option<Duration>,
    /// What happens when it fails in the middle [default: undo]
    #[arg(long, value_enum, value_name = "WHAT")]
    on_failure: Option<OnFailureFlag>,
    /// Break the glass: run before approval, because of this; needs the verb break-glass, and is reviewed afterwards
    #[arg(long, value_name = "JUSTIFICATION")]
    emergency: Option<String>,
    /// The same id never runs twice
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// How long approval may take; the shorter of this and the policy's counts [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = args::time)]
    approval_timeout: Option<Duration>,
    /// How long the execution may take [default: 30m]
    #[arg(long, value_name = "DURATION", value_parser = args::time)]
    execution_timeout: Option<Duration>,
    /// Show each step and wait for the end; for 1h, or as long as given
    #[arg(short, long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "1h", value_parser = args::time)]
    wait: Option<Duration>,
    /// The same as --wait=TIMEOUT
    #[arg(long, value_name = "TIMEOUT", value_parser = args::time)]
    timeout: Option<Duration>,
    /// How to write the result
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReasonFlag {
    /// Somebody wants it
    Manual,
    /// Errors rose
    Error,
    /// A health check failed
    HealthCheck,
    /// A resource limit was hit
    ResourceLimit,
    /// Security
    Security,
    /// Compliance
    Compliance,
    /// A policy demands it
    Policy,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PriorityFlag {
    /// After all others
    Low,
    /// As they come
    Normal,
    /// Before these
    High,
    /// First
    Urgent,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnFailureFlag {
    /// Leaves everything and reports
    Stop,
    /// Does all other items
    Continue,
    /// Goes back to the safety snapshot
    Undo,
}

/// A time that may be nothing.
fn held(text: &str) -> Result<Duration, Error> {
    duration::parse(text)
}

impl About {
    /// Writes these flags into `spec`.
    pub fn fill(&self, spec: &mut crate::api::RollbackRequestSpec) {
        spec.reason = scope::reason(self.reason.as_ref(), self.ticket.as_ref());
        if let Some(type_) = self.reason_type {
            spec.reason.get_or_insert_default().type_ = match type_ {
                ReasonFlag::Manual => ReasonType::Manual,
                ReasonFlag::Error => ReasonType::Error,
                ReasonFlag::HealthCheck => ReasonType::HealthCheck,
                ReasonFlag::ResourceLimit => ReasonType::ResourceLimit,
                ReasonFlag::Security => ReasonType::Security,
                ReasonFlag::Compliance => ReasonType::Compliance,
                ReasonFlag::Policy => ReasonType::Policy,
            };
        }
        if let Some(priority) = self.priority {
            spec.priority = match priority {
                PriorityFlag::Low => Priority::Low,
                PriorityFlag::Normal => Priority::Normal,
                PriorityFlag::High => Priority::High,
                PriorityFlag::Urgent => Priority::Urgent,
            };
        }
        if let Some(on_failure) = self.on_failure {
            spec.on_failure = match on_failure {
                OnFailureFlag::Stop => OnFailure::Stop,
                OnFailureFlag::Continue => OnFailure::Continue,
                OnFailureFlag::Undo => OnFailure::Undo,
            };
        }
        spec.emergency = self.emergency.clone().map(|justification| Emergency { justification });
        spec.request_id.clone_from(&self.request_id);
        if self.approval_timeout.is_some() || self.execution_timeout.is_some() {
            let or =
                |time: Option<Duration>, default: &str| time.map_or_else(|| default.to_owned(), duration::kubernetes);
            spec.timeouts = Some(Timeouts {
                approval: or(self.approval_timeout, "24h"),
                execution: or(self.execution_timeout, "30m"),
            });
        }
        spec.verify = self.verify();
    }

    fn verify(&self) -> Option<Verify> {
        let test = |name: &str, check| VerifyTest {
            name: name.to_owned(),
            timeout: "5m".into(),
            retries: 0,
            check,
        };
        let mut tests = Vec::new();
        if !self.verify_rollout.is_empty() {
            let workloads = self.verify_rollout.clone();
            tests.push(test(
                "rolled-out",
                VerifyCheck::RolloutStatus(RolloutStatus { workloads }),
            ));
        }
        if self.verify_snapshot {
            let matches = SnapshotMatches { except_kept: true };
            tests.push(test("as-captured", VerifyCheck::SnapshotMatches(matches)));
        }
        (!tests.is_empty() || self.stabilize.is_some()).then(|| Verify {
            tests,
            stabilize: self.stabilize.map_or_else(|| "30s".into(), duration::kubernetes),
            timeout: "10m".into(),
        })
    }

    const fn deadline(&self) -> Option<Duration> {
        match (self.timeout, self.wait) {
            (Some(timeout), _) => Some(timeout),
            (None, wait) => wait,
        }
    }
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let mut spec = options.scope.spec(&session).await?;
    options.about.fill(&mut spec);
    let request = Request {
        name: options.name.clone(),
        prefix: "rollback".into(),
        spec,
    };
    submit(&request, &options.about, options.dry_run, &session, context).await
}

/// Creates the request; then waits for its end, or says what happens next.
pub async fn submit(
    request: &Request,
    about: &About,
    dry_run: Option<DryRun>,
    session: &Session,
    context: &mut Context,
) -> Result<Exit, Failure> {
    let (made, remark) = match dry_run {
        Some(DryRun::Client) => (request.object(&session.namespace), " (dry run)"),
        Some(DryRun::Server) => (rollback::create(session, request, true).await?, " (server dry run)"),
        None => (rollback::create(session, request, false).await?, ""),
    };
    if dry_run.is_some() {
        print(about.output, context, &made, remark)?;
        return Ok(Exit::Ok);
    }
    let name = made.name_any();
    if let Some(deadline) = about.deadline() {
        if about.output.is_none() {
            print(None, context, &made, remark)?;
        }
        let ended = watch::live(session, &name, deadline, about.output.is_none(), context).await?;
        if about.output.is_some() {
            print(about.output, context, &ended, remark)?;
        }
        rollback::outcome(&ended)?;
        return Ok(Exit::Ok);
    }
    print(about.output, context, &made, remark)?;
    if about.output.is_none() {
        context.out.finish()?;
        next(session, &name, context).await?;
    }
    Ok(Exit::Ok)
}

fn print(output: Option<Format>, context: &mut Context, made: &RollbackRequest, remark: &str) -> Result<(), Failure> {
    let name = made
        .metadata
        .name
        .clone()
        .or_else(|| made.metadata.generate_name.clone().map(|p| format!("{p}*")));
    let name = format!("rollbackrequest.backstep.dev/{}", name.unwrap_or_default());
    match output {
        None => context.out.line(format_args!("{name} created{remark}"))?,
        Some(Format::Json | Format::Yaml) => {
            let format = output.unwrap_or_default();
            context.out.objects(format, std::slice::from_ref(made), false)?;
        }
        Some(Format::Name) => context.out.line(name)?,
        Some(Format::Table | Format::Wide) => {
            context.out.line(format_args!("{name} {:?}", rollback::phase(made)))?;
        }
    }
    Ok(())
}

/// Waits a moment for the plan, and says who may approve it; a request that failed at once is a failure here, too.
async fn next(session: &Session, name: &str, context: &mut Context) -> Result<(), Failure> {
    let decided = |state: &RollbackRequest| match rollback::phase(state) {
        RollbackPhase::Pending | RollbackPhase::Planning => false,
        RollbackPhase::AwaitingApproval => state.status.as_ref().is_some_and(|s| s.approval.is_some()),
        _ => true,
    };
    let spinner = context.out.spinner("planning");
    let seen = rollback::follow(session, name, FIRST_LOOK, |_| {}, decided).await;
    spinner.finish_and_clear();
    let follow = format!("kubectl backstep watch {name} -n {}", session.namespace);
    let state = match seen {
        Ok(state) => state,
        Err(error) if error.class == crate::ops::Class::TimedOut => {
            let why = error.why.unwrap_or_default();
            return context
                .out
                .line(format_args!("Not planned yet: {why}. Follow it: {follow}"));
        }
        Err(error) => return Err(error.into()),
    };
    for (tone, line) in super::shown::news(None, &state) {
        let line = context.out.tone(tone, line);
        context.out.line(line)?;
    }
    rollback::outcome(&state)?;
    if rollback::is_over(&state) {
        return Ok(());
    }
    if rollback::phase(&state) == RollbackPhase::AwaitingApproval
        && let Some(told) = state.status.as_ref().and_then(|s| s.approval.as_ref())
    {
        let asked = approval::read(session, &told.request).await?;
        for stage in asked.iter().flat_map(|a| &a.spec.stages) {
            let who = asked.as_ref().map(|a| approval::who(a, stage)).unwrap_or_default();
            context.out.line(format_args!(
                "Stage {} needs {}",
                stage.name,
                super::output::one_line(&who)
            ))?;
        }
        context.out.line(format_args!(
            "An approver decides with: kubectl backstep approve {name} -n {}",
            session.namespace
        ))?;
    }
    context.out.line(format_args!("Follow it: {follow}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        about: About,
    }

    fn filled(args: &[&str]) -> crate::api::RollbackRequestSpec {
        let parsed = Alone::try_parse_from(std::iter::once("undo").chain(args.iter().copied()))
            .unwrap_or_else(|e| panic!("{e}"));
        let mut spec = rollback::spec(&crate::api::rollback_request::Target::default()).unwrap();
        parsed.about.fill(&mut spec);
        spec
    }

    #[test]
    fn without_flags_nothing_but_the_defaults_is_asked_for() {
        let spec = rollback::spec(&crate::api::rollback_request::Target::default()).unwrap();
        assert_eq!(filled(&[]), spec);
    }

    #[test]
    fn flags_reach_the_spec() {
        let spec = filled(&[
            "--reason",
            "broken",
            "--ticket",
            "OPS-12",
            "--reason-type",
            "health-check",
            "--verify-rollout",
            "Deployment/web",
            "--verify-snapshot",
            "--on-failure",
            "stop",
            "--emergency",
            "down",
            "--priority",
            "urgent",
            "--execution-timeout",
            "1h",
        ]);
        let reason = spec.reason.unwrap();
        assert_eq!(
            (reason.type_, reason.metadata["ticket"].as_str()),
            (ReasonType::HealthCheck, "OPS-12")
        );
        assert_eq!(spec.verify.unwrap().tests.len(), 2);
        assert_eq!((spec.on_failure, spec.priority), (OnFailure::Stop, Priority::Urgent));
        assert_eq!(spec.emergency.unwrap().justification, "down");
        let timeouts = spec.timeouts.unwrap();
        assert_eq!((timeouts.approval.as_str(), timeouts.execution.as_str()), ("24h", "1h"));
    }
}
