use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::api::{reference::RiskLevel, rollback_request::Conflict};
use crate::domain::{
    approval::{gate::Guard, refusal::Consequence},
    object::FingerprintKey,
    plan::{
        Binding, Facts, Options,
        testing::{World, config_map, deployment, facts, id},
    },
};

const KEY: FingerprintKey = FingerprintKey::new([7; 32]);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn policy() -> Digest {
    Digest::of(b"policy")
}

fn snapshot() -> (String, Digest) {
    ("snapshot".to_owned(), Digest::of(b"snapshot"))
}

fn cfg(name: &str) -> ObjectId {
    id("", "ConfigMap", name)
}

/// A namespace in which two `ConfigMaps` changed.
fn worlds() -> (World, World) {
    let mut then = World::default();
    then.put(&cfg("a"), config_map("1"));
    then.put(&cfg("b"), config_map("1"));
    let then = then.aged();
    let mut now = then.clone();
    now.set(&cfg("a"), &["data", "mode"], json!("2"));
    now.set(&cfg("b"), &["data", "mode"], json!("2"));
    (then, now)
}

fn bound_with(now: &World, then: &World, options: &Options, facts: &Facts) -> Plan<Bound> {
    let (snapshot_uid, snapshot_digest) = snapshot();
    now.plan_with(then, options, facts).unwrap().bind(
        Binding {
            cluster: "cluster".to_owned(),
            request_uid: "request".to_owned(),
            request_digest: Digest::of(b"spec"),
            snapshot_uid,
            snapshot_digest,
            acting_user: "ada".to_owned(),
            policy_digest: Some(policy()),
            hooks: serde_json::Value::Null,
            tests: serde_json::Value::Null,
        },
        &KEY,
    )
}

fn bound(now: &World, then: &World) -> Plan<Bound> {
    bound_with(now, then, &Options::default(), &facts(then))
}

fn plan() -> Plan<Bound> {
    let (then, now) = worlds();
    bound(&now, &then)
}

/// A gate at which everything is as it must be.
fn open() -> Gate {
    Gate {
        now: at(100),
        namespace_uid: "namespace".to_owned(),
        request_uid: "request".to_owned(),
        guard: Known::Is(Guard {
            healthy: true,
            epoch: "epoch".to_owned(),
        }),
        target: Known::Is(Target {
            namespace_uid: "namespace".to_owned(),
            namespace_terminating: false,
            request_uid: "request".to_owned(),
            request_terminating: false,
            suspended: false,
            cancelled: false,
        }),
        approval: Known::Is(Approval {
            request_uid: "request".to_owned(),
            phase: ApprovalPhase::Approved,
            execution: None,
            plan_digest: plan().digest(),
            policy_digest: policy(),
            epoch: Some("epoch".to_owned()),
            usable_until: Some(at(200)),
            not_before: None,
            risk: RiskLevel::Medium,
            seal_is_ours: true,
        }),
        hold: Hold::None,
        policy_digest: Known::Is(Some(policy())),
        verdict: Known::Is(Verdict::Approved),
        snapshot: Known::Is(Some(snapshot())),
        approved_items: plan().bound_items().to_vec(),
        conflict: Conflict::Overwrite,
        risk: RiskLevel::Low,
        missing_rights: Known::Is(Vec::new()),
        executed: Known::Is(None),
    }
}

fn refused(change: impl FnOnce(&mut Gate)) -> Refusal {
    let mut gate = open();
    change(&mut gate);
    clear(&gate, plan()).unwrap_err()
}

fn is<T>(known: &mut Known<T>) -> &mut T {
    match known {
        Known::Is(value) => value,
        Known::Unknown(why) => panic!("{why}"),
    }
}

fn why() -> String {
    "timeout".to_owned()
}

#[test]
fn when_everything_is_as_it_must_be_the_latch_makes_a_permit() {
    let clearance = clear(&open(), plan()).unwrap();
    assert_eq!(clearance.consumes_to(), ApprovalPhase::Consumed);
    let latch = Latch::Taken {
        phase: ApprovalPhase::Consumed,
        execution: "run-1".to_owned(),
    };
    let permit = clearance.permit("run-1", latch).unwrap();
    assert_eq!((permit.execution(), permit.request_uid()), ("run-1", "request"));
    assert_eq!(permit.plan_digest(), plan().digest());
    assert_eq!(permit.into_plan(), plan());
}

type Change = fn(&mut Gate);

/// The number of a step, something that is not as that step wants it, and the refusal that it must bring.
// A table.
#[allow(clippy::too_many_lines)]
fn rows() -> Vec<(u8, Change, Refusal)> {
    vec![
        (
            1,
            |gate| gate.guard = Known::Unknown(why()),
            Refusal::GuardUnknown(why()),
        ),
        (1, |gate| is(&mut gate.guard).healthy = false, Refusal::GuardUnhealthy),
        (1, |gate| is(&mut gate.guard).epoch.push('x'), Refusal::EpochChanged),
        (1, |gate| is(&mut gate.approval).epoch = None, Refusal::EpochChanged),
        (
            2,
            |gate| gate.target = Known::Unknown(why()),
            Refusal::TargetUnknown(why()),
        ),
        (
            2,
            |gate| is(&mut gate.target).namespace_uid.push('x'),
            Refusal::NamespaceReplaced,
        ),
        (
            2,
            |gate| is(&mut gate.target).namespace_terminating = true,
            Refusal::NamespaceTerminating,
        ),
        (
            2,
            |gate| is(&mut gate.target).request_uid.push('x'),
            Refusal::RequestReplaced,
        ),
        (
            2,
            |gate| is(&mut gate.target).request_terminating = true,
            Refusal::RequestTerminating,
        ),
        (2, |gate| is(&mut gate.target).cancelled = true, Refusal::Cancelled),
        (2, |gate| is(&mut gate.target).suspended = true, Refusal::Suspended),
        (
            3,
            |gate| gate.approval = Known::Unknown(why()),
            Refusal::ApprovalUnknown(why()),
        ),
        (
            3,
            |gate| is(&mut gate.approval).phase = ApprovalPhase::Pending,
            Refusal::NotApproved(ApprovalPhase::Pending),
        ),
        (
            3,
            |gate| is(&mut gate.approval).phase = ApprovalPhase::Revoked,
            Refusal::NotApproved(ApprovalPhase::Revoked),
        ),
        (
            3,
            |gate| is(&mut gate.approval).phase = ApprovalPhase::Consumed,
            Refusal::AlreadyExecuted(String::new()),
        ),
        (
            3,
            |gate| is(&mut gate.approval).usable_until = None,
            Refusal::ApprovalExpired,
        ),
        (
            3,
            |gate| is(&mut gate.approval).request_uid.push('x'),
            Refusal::OtherRequest,
        ),
        (
            3,
            |gate| is(&mut gate.approval).execution = Some("run-0".to_owned()),
            Refusal::AlreadyExecuted("run-0".to_owned()),
        ),
        (3, |gate| gate.now = at(200), Refusal::ApprovalExpired),
        (
            3,
            |gate| is(&mut gate.approval).not_before = Some(at(101)),
            Refusal::TooEarly(at(101)),
        ),
        (3, |gate| gate.hold = Hold::Until(at(150)), Refusal::Held(Some(at(150)))),
        (3, |gate| gate.hold = Hold::NoEnd, Refusal::Held(None)),
        (
            3,
            |gate| is(&mut gate.approval).seal_is_ours = false,
            Refusal::BrokenSeal,
        ),
        (
            4,
            |gate| gate.policy_digest = Known::Unknown(why()),
            Refusal::PolicyUnknown(why()),
        ),
        (4, |gate| gate.policy_digest = Known::Is(None), Refusal::PolicyChanged),
        (
            4,
            |gate| gate.policy_digest = Known::Is(Some(Digest::of(b"x"))),
            Refusal::PolicyChanged,
        ),
        (
            5,
            |gate| gate.verdict = Known::Unknown(why()),
            Refusal::CountUnknown(why()),
        ),
        (
            5,
            |gate| gate.verdict = Known::Is(Verdict::Undetermined),
            Refusal::CountUnknown("an objection could not be checked".to_owned()),
        ),
        (
            5,
            |gate| gate.verdict = Known::Is(Verdict::Revoked),
            Refusal::NotApprovedAnyMore(Verdict::Revoked),
        ),
        (
            5,
            |gate| gate.verdict = Known::Is(Verdict::Pending(0)),
            Refusal::NotApprovedAnyMore(Verdict::Pending(0)),
        ),
        (
            6,
            |gate| gate.snapshot = Known::Unknown(why()),
            Refusal::SnapshotUnknown(why()),
        ),
        (6, |gate| gate.snapshot = Known::Is(None), Refusal::SnapshotGone),
        (
            6,
            |gate| gate.snapshot = Known::Is(Some(("other".to_owned(), snapshot().1))),
            Refusal::SnapshotChanged,
        ),
        (
            6,
            |gate| gate.snapshot = Known::Is(Some((snapshot().0, Digest::of(b"x")))),
            Refusal::SnapshotChanged,
        ),
        (
            7,
            |gate| is(&mut gate.approval).plan_digest = Digest::of(b"x"),
            Refusal::PlanChanged(Vec::new()),
        ),
        (
            7,
            |gate| gate.risk = RiskLevel::High,
            Refusal::RiskHigher {
                approved: RiskLevel::Medium,
                now: RiskLevel::High,
            },
        ),
        (
            8,
            |gate| gate.missing_rights = Known::Unknown(why()),
            Refusal::RightsUnknown(why()),
        ),
        (
            8,
            |gate| gate.missing_rights = Known::Is(vec!["update configmaps".to_owned()]),
            Refusal::MissingRights(vec!["update configmaps".to_owned()]),
        ),
        (
            9,
            |gate| gate.executed = Known::Unknown(why()),
            Refusal::LedgerUnknown(why()),
        ),
        (
            9,
            |gate| gate.executed = Known::Is(Some("run-0".to_owned())),
            Refusal::AlreadyExecuted("run-0".to_owned()),
        ),
    ]
}

#[test]
fn each_thing_that_is_not_as_it_must_be_shuts_the_gate_and_says_so() {
    for (_, change, expected) in rows() {
        assert_eq!(refused(change), expected);
        assert!(!expected.to_string().is_empty());
    }
}

#[test]
fn the_steps_are_asked_in_their_order() {
    let rows = rows();
    let step = |refusal: &Refusal| rows.iter().find(|row| row.2 == *refusal).map(|row| row.0);
    for (number, first, expected) in &rows {
        for (_, second, other) in rows.iter().filter(|row| row.0 > *number) {
            // The epoch of an approval that could not be read is not known.
            if (expected, other) == (&Refusal::EpochChanged, &Refusal::ApprovalUnknown(why())) {
                continue;
            }
            let both = refused(|gate| {
                second(gate);
                first(gate);
            });
            assert!(step(&both) <= Some(*number), "{both:?} instead of {expected:?}");
        }
    }
}

#[test]
fn what_is_not_known_never_opens_the_gate_and_loses_nothing() {
    let unknowns: [Change; 8] = [
        |gate| gate.guard = Known::Unknown(why()),
        |gate| gate.target = Known::Unknown(why()),
        |gate| gate.approval = Known::Unknown(why()),
        |gate| gate.policy_digest = Known::Unknown(why()),
        |gate| gate.verdict = Known::Unknown(why()),
        |gate| gate.snapshot = Known::Unknown(why()),
        |gate| gate.missing_rights = Known::Unknown(why()),
        |gate| gate.executed = Known::Unknown(why()),
    ];
    for change in unknowns {
        assert_eq!(refused(change).consequence(), Consequence::Wait(None));
    }
}

#[test]
fn a_lost_or_doubtful_latch_permits_nothing() {
    let with = |latch| clear(&open(), plan()).unwrap().permit("run-1", latch).unwrap_err();
    assert_eq!(with(Latch::Lost), Refusal::LatchLost);
    assert_eq!(with(Latch::Unknown(why())), Refusal::LatchUnknown(why()));
    let taken = |phase, execution: &str| Latch::Taken {
        phase,
        execution: execution.to_owned(),
    };
    assert_eq!(with(taken(ApprovalPhase::Consumed, "run-2")), Refusal::LatchLost);
    assert_eq!(with(taken(ApprovalPhase::Approved, "run-1")), Refusal::LatchLost);
}

#[test]
fn break_glass_needs_no_quorum_and_waits_for_its_review() {
    let mut gate = open();
    is(&mut gate.approval).phase = ApprovalPhase::BreakGlass;
    is(&mut gate.approval).usable_until = None;
    gate.verdict = Known::Unknown(why());
    assert_eq!(
        clear(&gate, plan()).unwrap().consumes_to(),
        ApprovalPhase::AwaitingReview
    );
    gate.missing_rights = Known::Is(vec!["x".to_owned()]);
    assert!(clear(&gate, plan()).is_err(), "everything else is asked all the same");
}

#[test]
fn live_drift_voids_the_approval_unless_it_means_doing_less() {
    let (then, mut now) = worlds();
    now.set(&cfg("b"), &["data", "mode"], json!("9"));
    let gate = open();
    assert_eq!(
        clear(&gate, bound(&now, &then)).unwrap_err(),
        Refusal::PlanChanged(vec![cfg("b")])
    );

    let keep = Options {
        conflict: Conflict::KeepLive,
        ..Options::default()
    };
    let drifted = Facts {
        drifted: BTreeSet::from([cfg("b")]),
        ..facts(&then)
    };
    let less = bound_with(&now, &then, &keep, &drifted);
    assert_eq!(
        clear(&gate, less.clone()).unwrap_err(),
        Refusal::PlanChanged(vec![cfg("b")])
    );
    let mut lenient = open();
    lenient.conflict = Conflict::KeepLive;
    let clearance = clear(&lenient, less).unwrap();
    assert_eq!(clearance.permit.kept(), [cfg("b")]);
}

#[test]
fn a_plan_with_refused_items_does_not_run() {
    let web = id("apps", "Deployment", "web");
    let mut then = World::default();
    then.put(&web, deployment("web:1", 1));
    let mut now = then.clone();
    now.set(&web, &["spec", "selector", "matchLabels", "app"], json!("other"));
    let plan = bound(&now, &then);
    let mut gate = open();
    is(&mut gate.approval).plan_digest = plan.digest();
    assert_eq!(clear(&gate, plan).unwrap_err(), Refusal::PlanRefused(vec![web]));
}

/// A gate at which `run-1` was interrupted.
fn interrupted() -> Gate {
    let mut gate = open();
    is(&mut gate.approval).phase = ApprovalPhase::Consumed;
    is(&mut gate.approval).execution = Some("run-1".to_owned());
    gate.executed = Known::Is(Some("run-1".to_owned()));
    gate.now = at(9999);
    gate
}

#[test]
fn after_a_crash_the_same_execution_goes_on_with_what_is_left() {
    let (then, mut now) = worlds();
    now.set(&cfg("a"), &["data", "mode"], json!("1"));
    let rest = bound(&now, &then);
    let permit = resume(&interrupted(), "run-1", &Purpose::Continue, rest).unwrap();
    assert_eq!(permit.plan().writes().count(), 1);
    assert_eq!(permit.approved().len(), 2);
}

#[test]
fn after_a_crash_nothing_else_goes_on() {
    let (then, now) = worlds();
    let rest = || bound(&now, &then);
    let resumed = |gate: &Gate, execution: &str| resume(gate, execution, &Purpose::Continue, rest()).unwrap_err();
    assert_eq!(
        resumed(&interrupted(), "run-2"),
        Refusal::AlreadyExecuted("run-1".to_owned())
    );
    assert_eq!(resumed(&open(), "run-1"), Refusal::NotApproved(ApprovalPhase::Approved));
    let mut forged = interrupted();
    forged.approved_items.clear();
    assert_eq!(resumed(&forged, "run-1"), Refusal::PlanChanged(Vec::new()));
    let mut unsealed = interrupted();
    is(&mut unsealed.approval).seal_is_ours = false;
    assert_eq!(resumed(&unsealed, "run-1"), Refusal::BrokenSeal);
    let mut unguarded = interrupted();
    is(&mut unguarded.guard).healthy = false;
    assert_eq!(resumed(&unguarded, "run-1"), Refusal::GuardUnhealthy);

    let mut target = then.clone();
    target.put(&cfg("more"), config_map("1"));
    let more = bound(&now, &target);
    let error = resume(&interrupted(), "run-1", &Purpose::Continue, more).unwrap_err();
    assert_eq!(error, Refusal::PlanChanged(vec![cfg("more")]));
}

#[test]
fn an_undo_touches_only_what_the_execution_wrote() {
    let (then, now) = worlds();
    let mut half = now.clone();
    half.set(&cfg("a"), &["data", "mode"], json!("1"));
    let back = || bound(&half, &now);
    let wrote = |names: &[&str]| Purpose::Undo(names.iter().map(|name| cfg(name)).collect());
    let mut gate = interrupted();
    is(&mut gate.target).cancelled = true;
    assert_eq!(
        resume(&gate, "run-1", &Purpose::Continue, bound(&half, &then)).unwrap_err(),
        Refusal::Cancelled
    );
    let permit = resume(&gate, "run-1", &wrote(&["a"]), back()).unwrap();
    assert_eq!(
        permit.plan().writes().map(|item| &item.id).collect::<Vec<_>>(),
        [&cfg("a")]
    );
    assert_eq!(
        resume(&gate, "run-1", &wrote(&["b"]), back()).unwrap_err(),
        Refusal::PlanChanged(vec![cfg("a")])
    );
}
