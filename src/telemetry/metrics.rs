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

/// Label of outcomes.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    /// `ready`, `failed`; of approvals their phase, e.g. `approved`.
    pub outcome: &'static str,
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
