//! How a plan, a state and its changes are told to people. Everything that others wrote stays on its line.

use super::{
    Failure,
    output::{Out, Tone, counted, one_line, short},
};
use crate::{
    api::{
        RollbackPlan, RollbackRequest, RollbackRequestStatus, conditions,
        reference::{ObjectReference, Risk, RiskLevel},
        rollback_plan::{PlanAction, PlanItem, PlanSummary, PreflightOutcome},
        rollback_request::{
            ItemsStatus, PlanStatus, RollbackPhase, SnapshotVersion, StepState, StepStatus, VerificationStatus,
        },
        verify::VerifyOutcome,
    },
    domain::record::Record,
    ops::rollback,
};

/// How much of the diffs is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diffs {
    /// All of them.
    All,
    /// This many lines at most, in all.
    Lines(usize),
    /// None.
    None,
}

/// `Deployment.apps/web`.
fn object(object: &ObjectReference) -> String {
    let kind = if object.group.is_empty() {
        object.kind.clone()
    } else {
        format!("{}.{}", object.kind, object.group)
    };
    one_line(&format!("{kind}/{}", object.name))
}

const fn risk_tone(level: RiskLevel) -> Tone {
    match level {
        RiskLevel::Low => Tone::Good,
        RiskLevel::Medium => Tone::Notice,
        RiskLevel::High | RiskLevel::Critical => Tone::Bad,
    }
}

/// `High (62 of 100)`.
pub fn risk(risk: &Risk) -> (String, Tone) {
    (
        format!("{:?} ({} of 100)", risk.level, risk.score),
        risk_tone(risk.level),
    )
}

/// A risk level alone.
pub fn level(level: Option<RiskLevel>) -> (String, Tone) {
    level.map_or_else(
        || ("-".into(), Tone::Plain),
        |level| (format!("{level:?}"), risk_tone(level)),
    )
}

/// How a phase feels.
pub const fn phase_tone(phase: RollbackPhase) -> Tone {
    match phase {
        RollbackPhase::Completed | RollbackPhase::Planned => Tone::Good,
        RollbackPhase::Pending
        | RollbackPhase::Planning
        | RollbackPhase::AwaitingApproval
        | RollbackPhase::Executing
        | RollbackPhase::Verifying => Tone::Notice,
        RollbackPhase::Partial
        | RollbackPhase::Failed
        | RollbackPhase::Undone
        | RollbackPhase::Rejected
        | RollbackPhase::Expired => Tone::Bad,
        RollbackPhase::Cancelled | RollbackPhase::Superseded => Tone::Quiet,
    }
}

/// `1 to create, 3 to update, 36 as they are`; `nothing to do` where that is so.
pub fn summary(summary: &PlanSummary) -> String {
    let parts: Vec<String> = [
        (summary.create, "to create"),
        (summary.update, "to update"),
        (summary.recreate, "to recreate"),
        (summary.delete, "to delete"),
        (summary.restart, "to restart"),
        (summary.keep, "kept"),
        (summary.skip, "skipped"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    let what = if parts.is_empty() {
        "nothing to do".to_owned()
    } else {
        parts.join(", ")
    };
    format!("{what}, {} as they are", summary.unchanged)
}

const fn sign(action: PlanAction) -> (&'static str, &'static str, Tone) {
    match action {
        PlanAction::Create => ("+", "create", Tone::Good),
        PlanAction::Update => ("~", "update", Tone::Notice),
        PlanAction::Recreate => ("!", "recreate", Tone::Bad),
        PlanAction::Delete => ("-", "delete", Tone::Bad),
        PlanAction::Keep => ("=", "keep", Tone::Quiet),
        PlanAction::Skip => (".", "skip", Tone::Quiet),
        PlanAction::Restart => ("*", "restart", Tone::Notice),
    }
}

fn why(item: &PlanItem) -> String {
    let text = match (&item.reason, &item.detail) {
        (None, None) => return String::new(),
        (Some(reason), None) => reason.clone(),
        (None, Some(detail)) => detail.clone(),
        (Some(reason), Some(detail)) => format!("{reason}: {detail}"),
    };
    format!("  ({})", one_line(&text))
}

/// Whether nothing is done to the object.
pub const fn stays(item: &PlanItem) -> bool {
    matches!(item.action, PlanAction::Keep | PlanAction::Skip)
}

/// The plan: target, risk, items in order with their diffs, and the checks that did not simply pass.
pub fn plan(out: &mut Out, plan: &RollbackPlan, diffs: Diffs) -> Result<(), Failure> {
    head(out, plan)?;
    let mut sorted: Vec<&PlanItem> = plan.spec.items.iter().collect();
    // What is done comes first, in order; what stays as it is comes last.
    sorted.sort_by_key(|item| (stays(item), item.order));
    items(out, sorted, diffs)?;
    tail(out, plan)
}

/// Target and risk.
pub fn head(out: &mut Out, plan: &RollbackPlan) -> Result<(), Failure> {
    let spec = &plan.spec;
    out.line(format_args!(
        "Back to {} (version {})",
        spec.target.snapshot, spec.target.version
    ))?;
    let (level, tone) = risk(&spec.risk);
    let level = out.tone(tone, level);
    out.line(format_args!("Risk: {level}"))?;
    for factor in &spec.risk.factors {
        let points = factor.points.map_or_else(|| "    ".to_owned(), |p| format!("{p:>+4}"));
        let detail = factor.detail.as_deref().map(one_line).unwrap_or_default();
        out.line(format_args!("  {points}  {}  {detail}", one_line(&factor.name)))?;
    }
    Ok(())
}

/// Items as they come, with their diffs.
pub fn items<'a>(out: &mut Out, items: impl IntoIterator<Item = &'a PlanItem>, diffs: Diffs) -> Result<(), Failure> {
    let mut left = match diffs {
        Diffs::All => usize::MAX,
        Diffs::Lines(lines) => lines,
        Diffs::None => 0,
    };
    let mut cut = 0;
    for item in items {
        let (mark, word, tone) = sign(item.action);
        let title = out.tone(tone, format_args!("{mark} {word} {}", object(&item.object)));
        out.line(format_args!("{title}{}", why(item)))?;
        if diffs == Diffs::None {
            continue;
        }
        for line in item.diff.iter().flat_map(|diff| diff.lines()) {
            if left == 0 {
                cut += 1;
                continue;
            }
            left -= 1;
            let tone = match line.as_bytes().first() {
                Some(b'+') => Tone::Good,
                Some(b'-') => Tone::Bad,
                _ => Tone::Plain,
            };
            let line = out.tone(tone, one_line(line));
            out.line(format_args!("    {line}"))?;
        }
    }
    if cut > 0 {
        let more = out.tone(
            Tone::Notice,
            format_args!("{} of diffs not shown; --diffs=all shows them", counted(cut, "line")),
        );
        out.line(more)?;
    }
    Ok(())
}

/// Whether it was cut, the checks that did not simply pass, and the counts.
pub fn tail(out: &mut Out, plan: &RollbackPlan) -> Result<(), Failure> {
    let spec = &plan.spec;
    if spec.truncated {
        let more = format!(
            "the plan is longer than its object may be: items or diffs are left out here, the digest covers all of them; \
             administrators see all of it: kubectl backstep plan --of {} --full",
            one_line(&spec.request_ref.name)
        );
        let more = out.tone(Tone::Bad, more);
        out.line(more)?;
    }
    checks(out, plan)?;
    out.line(format_args!(
        "Plan {}: {}",
        plan.metadata.name.as_deref().unwrap_or_default(),
        summary(&spec.summary)
    ))
}

fn checks(out: &mut Out, plan: &RollbackPlan) -> Result<(), Failure> {
    let checks = &plan.spec.preflight;
    let passed = checks.iter().filter(|c| c.result == PreflightOutcome::Passed).count();
    for check in checks {
        let (word, tone) = match check.result {
            PreflightOutcome::Passed => continue,
            PreflightOutcome::Failed => ("FAILED", Tone::Bad),
            PreflightOutcome::Warning => ("WARNING", Tone::Notice),
            PreflightOutcome::NotCheckable => ("NOT CHECKABLE", Tone::Notice),
        };
        let word = out.tone(tone, word);
        let detail = check.detail.as_deref().map(one_line).unwrap_or_default();
        out.line(format_args!("{word} {}: {detail}", one_line(&check.check)))?;
    }
    if passed > 0 {
        out.line(format_args!("{} passed", counted(passed, "check")))?;
    }
    Ok(())
}

fn step(step: &StepStatus) -> (Tone, String) {
    let (tone, state) = match step.state {
        StepState::Waiting => (Tone::Quiet, "waits".to_owned()),
        StepState::Running => (Tone::Notice, "runs".to_owned()),
        StepState::Skipped => (Tone::Quiet, "is not needed".to_owned()),
        StepState::Failed => (Tone::Bad, "FAILED".to_owned()),
        StepState::Done => {
            let took = step.started_at.as_ref().zip(step.finished_at.as_ref());
            let took = took.map(|(from, to)| format!(" in {}", short(to.0.as_second() - from.0.as_second())));
            (Tone::Good, format!("is done{}", took.unwrap_or_default()))
        }
    };
    (tone, format!("  {} {state}", one_line(&step.name)))
}

/// What is new in `now` since `before`, line by line; everything where there was nothing before.
pub fn news(before: Option<&RollbackRequest>, now: &RollbackRequest) -> Vec<(Tone, String)> {
    let mut lines = Vec::new();
    let old = before.and_then(|r| r.status.clone()).unwrap_or_default();
    let new = now.status.clone().unwrap_or_default();
    let moved = before.is_none_or(|b| rollback::phase(b) != rollback::phase(now));
    let name_of = |status: &RollbackRequestStatus| status.plan.as_ref().map(|p| p.name.clone());
    if let Some(plan) = new.plan.as_ref().filter(|_| name_of(&old) != name_of(&new)) {
        lines.push((Tone::Plain, planned(plan)));
    }
    if let Some(approval) = new.approval.as_ref().filter(|_| old.approval != new.approval) {
        let tone = match approval.state.as_str() {
            "Approved" | "Consumed" | "Reviewed" => Tone::Good,
            "Pending" | "BreakGlass" | "AwaitingReview" => Tone::Notice,
            _ => Tone::Bad,
        };
        let state = one_line(&approval.state);
        lines.push((tone, format!("Approval {} is {state}", approval.request)));
    }
    let reason = |request: &RollbackRequest| {
        rollback::progress(request).map(|text| text.split(':').next().unwrap_or_default().to_owned())
    };
    if moved || before.is_some_and(|b| reason(b) != reason(now)) {
        lines.push(stands(now));
    }
    for now in &new.steps {
        let known = old.steps.iter().find(|s| s.name == now.name).map(|s| s.state);
        if known != Some(now.state) && now.state != StepState::Waiting {
            lines.push(step(now));
        }
    }
    let taken = |what: &str, old: &Option<SnapshotVersion>, new: &Option<SnapshotVersion>| {
        let new = new.as_ref().filter(|_| old.is_none())?;
        let text = format!("  {what} snapshot {} (version {})", new.name, new.version);
        Some((Tone::Plain, text))
    };
    lines.extend(taken("safety", &old.safety_snapshot, &new.safety_snapshot));
    if let Some(items) = &new.items {
        let ended = moved && rollback::is_over(now);
        done(items, &old.items.unwrap_or_default(), ended, &mut lines);
    }
    if let Some(verified) = new
        .verification
        .as_ref()
        .filter(|v| old.verification.as_ref() != Some(*v))
    {
        tested(verified, &mut lines);
    }
    lines.extend(taken("result", &old.result_snapshot, &new.result_snapshot));
    lines
}

/// One finished rollback, whole.
pub fn record(record: &Record) -> Vec<(Tone, String)> {
    let (spec, status) = (&record.spec, &record.status);
    let phase = status.phase.unwrap_or_default();
    let mut lines = vec![(
        phase_tone(phase),
        format!("rollbackrequest {} in {}: {phase:?}", record.name, record.namespace),
    )];
    let mut plain = |text: String| lines.push((Tone::Plain, one_line(&text)));
    if let Some(to) = &status.resolved {
        plain(format!("Back to {} (version {})", to.name, to.version));
    }
    let asked = spec.requested_by.as_ref().and_then(|by| by.username.clone());
    if let Some(by) = spec.on_behalf_of.as_ref().map(|by| by.username.clone()).or(asked) {
        let reason = spec.reason.clone().unwrap_or_default();
        let why = reason
            .message
            .map_or_else(String::new, |message| format!(": {message}"));
        plain(format!("Asked for by {by}, {:?}{why}", reason.type_));
    }
    for decision in &record.decisions {
        let counted = match (&decision.reason, decision.counted) {
            (_, Some(true)) => String::new(),
            (Some(why), _) => format!(" (not counted: {why})"),
            (None, _) => " (not counted)".to_owned(),
        };
        plain(format!(
            "{:?} by {} in stage {}{counted}",
            decision.decision, decision.username, decision.stage
        ));
    }
    if let Some(plan) = &status.plan {
        plain(planned(plan));
    }
    let ready = status.conditions.iter().find(|c| c.type_ == conditions::READY);
    if let Some(ready) = ready {
        plain(format!("{}: {}", ready.reason, ready.message));
    }
    lines.extend(status.steps.iter().map(step));
    for (what, taken) in [("safety", &status.safety_snapshot), ("result", &status.result_snapshot)] {
        if let Some(taken) = taken {
            lines.push((
                Tone::Plain,
                format!("  {what} snapshot {} (version {})", taken.name, taken.version),
            ));
        }
    }
    if let Some(items) = &status.items {
        let whole = ItemsStatus {
            failures: record.every_failure().to_vec(),
            ..items.clone()
        };
        done(&whole, &ItemsStatus::default(), true, &mut lines);
    }
    if let Some(verified) = &status.verification {
        let mut verified = verified.clone();
        if verified.results_omitted.is_some() && !record.results.is_empty() {
            verified.results.clone_from(&record.results);
        }
        tested(&verified, &mut lines);
    }
    lines.extend(
        record
            .notes
            .iter()
            .map(|note| (Tone::Plain, format!("  {}", one_line(note)))),
    );
    lines
}

fn planned(plan: &PlanStatus) -> String {
    let restarts = i64::try_from(plan.restarts.len()).unwrap_or(i64::MAX);
    let counts = PlanSummary {
        create: plan.create,
        update: plan.update,
        recreate: plan.recreate,
        delete: plan.delete,
        keep: plan.keep,
        unchanged: plan.unchanged,
        restart: restarts.saturating_add(i64::from(plan.restarts_omitted.unwrap_or(0))),
        ..PlanSummary::default()
    };
    let risk = plan.risk.as_ref().map(risk);
    let risk = risk.map_or_else(String::new, |(text, _)| format!(", risk {text}"));
    format!("Plan {}: {}{risk}", plan.name, summary(&counts))
}

/// The phase, and what the operator says of it.
fn stands(request: &RollbackRequest) -> (Tone, String) {
    let phase = rollback::phase(request);
    let name = format!("{phase:?}");
    let text = match rollback::progress(request) {
        // A reason that only repeats the phase is not said twice.
        Some(doing) if doing == name || doing.starts_with(&format!("{name}: ")) => doing,
        Some(doing) => format!("{name}: {doing}"),
        None => name,
    };
    (phase_tone(phase), one_line(&text))
}

fn done(items: &ItemsStatus, before: &ItemsStatus, ended: bool, lines: &mut Vec<(Tone, String)>) {
    if ended || before.failed != items.failed {
        let tone = if items.failed > 0 { Tone::Bad } else { Tone::Good };
        let text = format!(
            "  items: {} done, {} failed, {} never touched",
            items.done, items.failed, items.untouched
        );
        lines.push((tone, text));
    }
    for failure in items.failures.iter().filter(|f| !before.failures.contains(f)) {
        let why = failure.message.as_deref().map(|m| format!(": {}", one_line(m)));
        let object = one_line(&failure.object);
        lines.push((
            Tone::Bad,
            format!("  {object} {}{}", failure.reason, why.unwrap_or_default()),
        ));
    }
}

fn tested(verified: &VerificationStatus, lines: &mut Vec<(Tone, String)>) {
    let tone = match verified.status {
        VerifyOutcome::Passed => Tone::Good,
        VerifyOutcome::Failed => Tone::Bad,
        VerifyOutcome::Inconclusive => Tone::Notice,
    };
    let total = counted(verified.total, "test");
    lines.push((tone, format!("  verification: {} of {total} passed", verified.passed)));
    for result in verified.results.iter().filter(|r| !r.passed) {
        let (expected, actual) = (one_line(&result.expected), one_line(&result.actual));
        lines.push((
            Tone::Bad,
            format!("  test {}: expected {expected}, saw {actual}", result.test),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(status: &Value) -> RollbackRequest {
        serde_json::from_value(json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest", "metadata": {"name": "undo"},
            "spec": {"target": {"snapshot": "good"}}, "status": status,
        }))
        .unwrap()
    }

    fn texts(lines: Vec<(Tone, String)>) -> Vec<String> {
        lines.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn the_same_state_twice_is_no_news() {
        let state = request(&json!({
            "phase": "Executing",
            "steps": [{"name": "TakeSafetySnapshot", "state": "Done"}],
            "items": {"done": 1, "failed": 1, "untouched": 2, "failures": [{"object": "ConfigMap/web", "reason": "Denied"}]},
        }));
        assert!(!news(None, &state).is_empty());
        assert_eq!(texts(news(Some(&state), &state)), Vec::<String>::new());
    }

    #[test]
    fn steps_are_told_when_they_begin_and_when_they_end() {
        let at = |second: u32| format!("2026-01-01T00:00:{second:02}Z");
        let running = request(
            &json!({"phase": "Executing", "steps": [{"name": "Write", "state": "Running", "startedAt": at(0)}, {"name": "Prune", "state": "Waiting"}]}),
        );
        let done = request(
            &json!({"phase": "Executing", "steps": [{"name": "Write", "state": "Done", "startedAt": at(0), "finishedAt": at(3)}, {"name": "Prune", "state": "Running"}]}),
        );
        assert_eq!(texts(news(None, &running)), ["Executing", "  Write runs"]);
        assert_eq!(
            texts(news(Some(&running), &done)),
            ["  Write is done in 3s", "  Prune runs"]
        );
    }

    #[test]
    fn what_others_wrote_cannot_move_the_cursor() {
        let state = request(
            &json!({"phase": "Failed", "items": {"done": 0, "failed": 1, "untouched": 0,
            "failures": [{"object": "ConfigMap/web", "reason": "Denied", "message": "a\u{1b}[2Kb\nc"}]}}),
        );
        assert!(
            texts(news(None, &state))
                .iter()
                .all(|line| !line.contains(['\u{1b}', '\n']))
        );
    }

    #[test]
    fn a_plan_that_does_nothing_says_so() {
        let counts = PlanSummary {
            unchanged: 4,
            ..PlanSummary::default()
        };
        assert_eq!(summary(&counts), "nothing to do, 4 as they are");
        let counts = PlanSummary {
            create: 1,
            delete: 2,
            ..counts
        };
        assert_eq!(summary(&counts), "1 to create, 2 to delete, 4 as they are");
    }
}
