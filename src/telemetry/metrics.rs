//! What the operator counts. Label values come from closed sets only.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::api::{reasons, rollback_request::RollbackPhase, verify::VerifyOutcome};

/// Label of outcomes.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    /// `ready`, `failed`; of approvals their phase, e.g. `approved`.
    pub outcome: &'static str,
}

/// Labels of rollbacks that ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RollbackEnded {
    /// The final phase, in small letters.
    pub outcome: &'static str,
    /// What the reason is about: see [`RollbackEnded::of`].
    pub cause: &'static str,
}

impl RollbackEnded {
    /// The labels of a request that ended in `phase` for `reason`; `None` where the phase is not final.
    pub fn of(phase: RollbackPhase, reason: &str) -> Option<Self> {
        let outcome = match phase {
            RollbackPhase::Pending
            | RollbackPhase::Planning
            | RollbackPhase::AwaitingApproval
            | RollbackPhase::Executing
            | RollbackPhase::Verifying => return None,
            RollbackPhase::Planned => "planned",
            RollbackPhase::Completed => "completed",
            RollbackPhase::Partial => "partial",
            RollbackPhase::Failed => "failed",
            RollbackPhase::Undone => "undone",
            RollbackPhase::Rejected => "rejected",
            RollbackPhase::Expired => "expired",
            RollbackPhase::Cancelled => "cancelled",
            RollbackPhase::Superseded => "superseded",
        };
        let cause = match (phase, reason) {
            (RollbackPhase::Planned | RollbackPhase::Completed, _) => "none",
            (RollbackPhase::Rejected | RollbackPhase::Expired | RollbackPhase::Superseded, _) => "approval",
            (RollbackPhase::Cancelled, _) => "cancelled",
            (
                _,
                reasons::TARGET_NOT_FOUND
                | reasons::TARGET_NOT_READY
                | reasons::TARGET_AMBIGUOUS
                | reasons::INVALID_SPEC
                | reasons::NOTHING_SELECTED,
            ) => "request",
            (_, reasons::PREFLIGHT_FAILED | reasons::GITOPS_MANAGED | reasons::FORBIDDEN) => "preflight",
            (_, reasons::CORRUPT | reasons::STORE_UNAVAILABLE | reasons::NEWER_FORMAT) => "store",
            (_, reasons::API_UNAVAILABLE | reasons::DEADLINE_EXCEEDED) => "time",
            (_, reason) if reason.starts_with("Verification") => "verification",
            _ => "execution",
        };
        Some(Self { outcome, cause })
    }
}

/// Label of verifications.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Verified {
    /// `passed`, `failed`, `inconclusive`.
    pub outcome: &'static str,
}

impl Verified {
    /// The label of an outcome.
    pub const fn of(outcome: VerifyOutcome) -> Self {
        let outcome = match outcome {
            VerifyOutcome::Passed => "passed",
            VerifyOutcome::Failed => "failed",
            VerifyOutcome::Inconclusive => "inconclusive",
        };
        Self { outcome }
    }
}

/// Label of reconcile errors.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReconcileError {
    /// Kind of the object.
    pub kind: &'static str,
    /// Class of the error.
    pub class: &'static str,
}

/// Every metric of the operator; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Snapshots finished, by outcome.
    pub snapshots: Family<Outcome, Counter>,
    /// Seconds from the first read to the commit.
    pub capture_seconds: Histogram,
    /// Objects captured.
    pub objects_captured: Counter,
    /// Snapshots waiting for a capture pass.
    pub captures_waiting: Gauge,
    /// Bytes in the repository.
    pub repository_bytes: Gauge,
    /// Bytes the repository may hold; 0 is no limit.
    pub repository_quota_bytes: Gauge,
    /// Snapshots in the repository.
    pub repository_snapshots: Gauge,
    /// 1 when the last verification found damage.
    pub repository_corrupt: Gauge,
    /// `RollbackRequests` taken up: dry runs are not counted.
    pub rollbacks_created: Counter,
    /// `RollbackRequests` that ended, dry runs included.
    pub rollbacks: Family<RollbackEnded, Counter>,
    /// Seconds from the start of an execution to its end.
    pub rollback_seconds: Histogram,
    /// Verifications that ended.
    pub verifications: Family<Verified, Counter>,
    /// Reconcile errors.
    pub reconcile_errors: Family<ReconcileError, Counter>,
    /// 1 while CRDs and admission policies are in place.
    pub guard_healthy: Gauge,
    /// Mutating webhooks and policies of others that see decisions.
    pub guard_foreign_mutators: Gauge,
    /// `ApprovalRequests` that wait for decisions.
    pub approvals_pending: Gauge,
    /// Seconds from the creation of an `ApprovalRequest` to its approval.
    pub approval_seconds: Histogram,
    /// `ApprovalRequests` that moved on, by where to.
    pub approvals: Family<Outcome, Counter>,
    /// Executions without approval that nobody acknowledged in time.
    pub reviews_overdue: Gauge,
    /// 1 while this process is the leader.
    pub leader: Gauge,
}

/// The metrics and the registry that encodes them.
pub struct Telemetry {
    /// Handles.
    pub metrics: Metrics,
    registry: Registry,
}

impl Telemetry {
    /// Registers every metric under the prefix `backstep_`.
    #[allow(clippy::too_many_lines, reason = "one registration a metric")]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("backstep");
        let metrics = Metrics {
            snapshots: Family::default(),
            capture_seconds: Histogram::new(exponential_buckets(0.05, 2.0, 14)),
            objects_captured: Counter::default(),
            captures_waiting: Gauge::default(),
            repository_bytes: Gauge::default(),
            repository_quota_bytes: Gauge::default(),
            repository_snapshots: Gauge::default(),
            repository_corrupt: Gauge::default(),
            rollbacks_created: Counter::default(),
            rollbacks: Family::default(),
            // 1 s to 4.5 h.
            rollback_seconds: Histogram::new(exponential_buckets(1.0, 2.0, 15)),
            verifications: Family::default(),
            reconcile_errors: Family::default(),
            guard_healthy: Gauge::default(),
            guard_foreign_mutators: Gauge::default(),
            approvals_pending: Gauge::default(),
            approval_seconds: Histogram::new(exponential_buckets(1.0, 3.0, 12)),
            approvals: Family::default(),
            reviews_overdue: Gauge::default(),
            leader: Gauge::default(),
        };
        registry.register("snapshots", "Snapshots finished, by outcome", metrics.snapshots.clone());
        registry.register_with_unit(
            "capture_duration",
            "From the first read of a capture to its commit",
            Unit::Seconds,
            metrics.capture_seconds.clone(),
        );
        registry.register("objects_captured", "Objects captured", metrics.objects_captured.clone());
        registry.register(
            "captures_waiting",
            "Snapshots waiting for a capture pass",
            metrics.captures_waiting.clone(),
        );
        registry.register_with_unit(
            "repository_used",
            "Bytes stored",
            Unit::Bytes,
            metrics.repository_bytes.clone(),
        );
        registry.register_with_unit(
            "repository_quota",
            "Bytes that may be stored; 0 is no limit",
            Unit::Bytes,
            metrics.repository_quota_bytes.clone(),
        );
        registry.register(
            "repository_snapshots",
            "Snapshots stored",
            metrics.repository_snapshots.clone(),
        );
        registry.register(
            "repository_corrupt",
            "1 when a verification found damage",
            metrics.repository_corrupt.clone(),
        );
        registry.register(
            "rollbacks_created",
            "Rollbacks asked for, dry runs not counted",
            metrics.rollbacks_created.clone(),
        );
        registry.register(
            "rollbacks",
            "Rollback requests that ended, by final phase and cause",
            metrics.rollbacks.clone(),
        );
        registry.register_with_unit(
            "rollback_duration",
            "From the start of an execution to its end",
            Unit::Seconds,
            metrics.rollback_seconds.clone(),
        );
        registry.register(
            "verifications",
            "Verifications of rollbacks, by outcome",
            metrics.verifications.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Reconcile errors, by kind and class",
            metrics.reconcile_errors.clone(),
        );
        registry.register(
            "guard_healthy",
            "1 while CRDs and admission policies are in place",
            metrics.guard_healthy.clone(),
        );
        registry.register(
            "guard_foreign_mutators",
            "Mutating webhooks and policies of others that see decisions",
            metrics.guard_foreign_mutators.clone(),
        );
        registry.register(
            "approvals_pending",
            "ApprovalRequests that wait for decisions",
            metrics.approvals_pending.clone(),
        );
        registry.register_with_unit(
            "approval_latency",
            "From the creation of an ApprovalRequest to its approval",
            Unit::Seconds,
            metrics.approval_seconds.clone(),
        );
        registry.register(
            "approvals",
            "ApprovalRequests that moved on, by outcome",
            metrics.approvals.clone(),
        );
        registry.register(
            "reviews_overdue",
            "Executions without approval that nobody acknowledged in time",
            metrics.reviews_overdue.clone(),
        );
        registry.register("leader", "1 while this process leads", metrics.leader.clone());
        Self { metrics, registry }
    }

    /// `OpenMetrics` text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::from("# metrics could not be encoded\n"),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_rollback_is_counted_by_phase_and_cause() {
        let of = |phase, reason| RollbackEnded::of(phase, reason).map(|labels| (labels.outcome, labels.cause));
        assert_eq!(of(RollbackPhase::Verifying, ""), None);
        assert_eq!(of(RollbackPhase::Completed, "Completed"), Some(("completed", "none")));
        assert_eq!(
            of(RollbackPhase::Failed, reasons::PREFLIGHT_FAILED),
            Some(("failed", "preflight"))
        );
        assert_eq!(
            of(RollbackPhase::Undone, "VerificationFailed"),
            Some(("undone", "verification"))
        );
        assert_eq!(of(RollbackPhase::Rejected, "anything"), Some(("rejected", "approval")));
        assert_eq!(of(RollbackPhase::Failed, "SomethingNew"), Some(("failed", "execution")));
    }

    #[test]
    fn every_metric_that_alerts_and_runbooks_name_is_served() {
        let telemetry = Telemetry::new();
        let metrics = &telemetry.metrics;
        metrics.snapshots.get_or_create(&Outcome { outcome: "failed" }).inc();
        let failed = RollbackEnded::of(RollbackPhase::Failed, "").unwrap();
        metrics.rollbacks.get_or_create(&failed).inc();
        metrics
            .verifications
            .get_or_create(&Verified::of(VerifyOutcome::Passed))
            .inc();
        metrics.approvals.get_or_create(&Outcome { outcome: "approved" }).inc();
        let error = ReconcileError {
            kind: "Snapshot",
            class: "transient",
        };
        metrics.reconcile_errors.get_or_create(&error).inc();
        let served = telemetry.encode();
        let pages = [
            include_str!("../../docs/runbooks/alerts.yaml"),
            include_str!("../../docs/reference/metrics.md"),
        ];
        for page in pages {
            let words = page.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
            for name in words.filter(|word| word.starts_with("backstep_")) {
                assert!(served.contains(name), "{name} is not served:\n{served}");
            }
        }
    }
}
