//! Reasons of conditions and events, each once. `CamelCase`, stable: people and alerts match on them.

/// Not yet picked up.
pub const PENDING: &str = "Pending";
/// Waits behind another one of the same namespace; the message names it.
pub const QUEUED: &str = "Queued";
/// Objects are being read.
pub const CAPTURING: &str = "Capturing";
/// Complete and readable.
pub const CAPTURED: &str = "Captured";
/// Contents were read back and their digests are right.
pub const DIGESTS_MATCH: &str = "DigestsMatch";
/// The feature comes with a later release; nothing is done.
pub const NOT_AVAILABLE: &str = "NotAvailable";
/// Filters that match nothing.
pub const NOTHING_MATCHED: &str = "NothingMatched";
/// A kind could not be listed; the message names it. Exclude it to go on without it.
pub const CAPTURE_INCOMPLETE: &str = "CaptureIncomplete";
/// The spec cannot work; the message says what to change.
pub const INVALID_SPEC: &str = "InvalidSpec";
/// A Snapshot in the operator's own namespace.
pub const OPERATOR_NAMESPACE: &str = "OperatorNamespace";
/// The namespace is being deleted.
pub const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";
/// The namespace does not exist any more, or is another one of the same name.
pub const NAMESPACE_GONE: &str = "NamespaceGone";
/// `include` names a kind that the server does not serve, or that is never captured.
pub const UNKNOWN_KIND: &str = "UnknownKind";
/// A right is missing; the message names verb, resource and subject.
pub const FORBIDDEN: &str = "Forbidden";
/// The store is full; the message says how much it holds and may hold.
pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
/// The store does not answer; tried again.
pub const STORE_UNAVAILABLE: &str = "StoreUnavailable";
/// The API server does not answer, or answers with errors; tried again.
pub const API_UNAVAILABLE: &str = "ApiUnavailable";
/// Contents are missing or their digest is wrong; nothing is restored from them.
pub const CORRUPT: &str = "Corrupt";
/// Contents were written by a newer release; upgrade the operator.
pub const NEWER_FORMAT: &str = "NewerFormat";
/// Took longer than allowed; the message says what was waited for.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// The operator stopped in the middle; the capture begins again.
pub const INTERRUPTED: &str = "Interrupted";
/// `spec.ttl` is over; contents are freed.
pub const EXPIRED: &str = "Expired";
/// `spec.ttl` is over, but the contents are kept: `spec.deletionPolicy` is `Retain`.
pub const RETAINED: &str = "Retained";
/// The guard is missing, changed, or not settled; the message says until when.
pub const GUARD_UNHEALTHY: &str = "GuardUnhealthy";

/// Skipped: another object controls it and brings it back.
pub const CONTROLLED: &str = "Controlled";
/// Skipped: it is being deleted.
pub const BEING_DELETED: &str = "BeingDeleted";
/// Skipped: made by the cluster for every namespace.
pub const CLUSTER_MANAGED: &str = "ClusterManaged";
/// Skipped: Backstep's own.
pub const OWN_OBJECT: &str = "OwnObject";
/// Skipped: matches `exclude`.
pub const EXCLUDED: &str = "Excluded";
/// Skipped: does not match `selector` or `include`.
pub const NOT_SELECTED: &str = "NotSelected";
/// Skipped: its component is not captured.
pub const COMPONENT_NOT_CAPTURED: &str = "ComponentNotCaptured";
/// Skipped: the claim is captured, its data is not.
pub const VOLUME_DATA_NOT_CAPTURED: &str = "VolumeDataNotCaptured";
/// An image has no digest: no Pod of the workload has reported one.
pub const NO_RUNNING_POD: &str = "NoRunningPod";
/// Pods of one revision run different digests: the tag moved between their starts.
pub const MIXED_DIGESTS: &str = "MixedDigests";
/// An image id is no `repo@sha256:…`: it can be compared, never pinned.
pub const NOT_PULLABLE_DIGEST: &str = "NotPullableDigest";

/// Approval: no policy matches; the request waits until its time is over.
pub const NO_MATCHING_POLICY: &str = "NoMatchingPolicy";
/// Policy: it can never be met.
pub const UNSATISFIABLE: &str = "Unsatisfiable";
/// Approval: people still have to decide; the message says who, and how.
pub const AWAITING_APPROVAL: &str = "AwaitingApproval";
/// Approval: everybody who must has approved; the message says until when it may be used.
pub const APPROVED: &str = "Approved";
/// Approval: somebody rejected it; final.
pub const REJECTED: &str = "Rejected";
/// Approval: taken back before it was used; final.
pub const REVOKED: &str = "Revoked";
/// Approval: plan, policy or guard changed; it is asked for again.
pub const SUPERSEDED: &str = "Superseded";
/// Approval: one execution used it; final.
pub const CONSUMED: &str = "Consumed";
/// Approval: runs before it is approved, and is reviewed afterwards.
pub const BREAK_GLASS: &str = "BreakGlass";
/// Approval: ran without approval; others must acknowledge it.
pub const AWAITING_REVIEW: &str = "AwaitingReview";
/// Approval: ran without approval, and others acknowledged it; final.
pub const REVIEWED: &str = "Reviewed";
/// Approval: ran without approval, and nobody has acknowledged it in time.
pub const REVIEW_OVERDUE: &str = "ReviewOverdue";
/// Approval: a decision does not count; the message says why.
pub const NOT_COUNTED: &str = "NotCounted";
/// Approval: more decisions than an `ApprovalRequest` records; nothing is approved from them.
pub const TOO_MANY_DECISIONS: &str = "TooManyDecisions";
/// Approval: the policy's limit of requests is reached; the message names it.
pub const LIMIT_REACHED: &str = "LimitReached";
/// Policy: its stages can be met, and its times can be read.
pub const SATISFIABLE: &str = "Satisfiable";

/// Rollback: the target names no Snapshot, version, tag or time that there is.
pub const TARGET_NOT_FOUND: &str = "TargetNotFound";
/// Rollback: the target is not Ready.
pub const TARGET_NOT_READY: &str = "TargetNotReady";
/// Rollback: two Ready Snapshots carry the tag.
pub const TARGET_AMBIGUOUS: &str = "TargetAmbiguous";
/// Rollback: live and snapshot are compared.
pub const PLANNING: &str = "Planning";
/// Rollback: the plan is made and nothing stands in its way; final for a dry run.
pub const PLANNED: &str = "Planned";
/// Rollback: something stands in the way; the plan lists all of it.
pub const PREFLIGHT_FAILED: &str = "PreflightFailed";
/// Rollback: the request selects no object of the snapshot.
pub const NOTHING_SELECTED: &str = "NothingSelected";
/// Rollback: Flux or Argo CD owns what would be written; the message names the owner.
pub const GITOPS_MANAGED: &str = "GitOpsManaged";
/// Rollback: `spec.suspend` holds it.
pub const SUSPENDED: &str = "Suspended";
/// Rollback: withdrawn.
pub const CANCELLED: &str = "Cancelled";
/// Rollback: approved; being executed.
pub const EXECUTING: &str = "Executing";
/// Rollback: written; its tests are run.
pub const VERIFYING: &str = "Verifying";
/// Rollback: the target is reached and proven.
pub const COMPLETED: &str = "Completed";
/// Rollback: a window or freeze of the policy holds it, or `notBefore`.
pub const HELD: &str = "Held";
/// Rollback: a live object is not as it was when the plan was approved; the message names it.
pub const DRIFT: &str = "Drift";
/// Rollback: it ran before, under this name and spec or this `requestId`.
pub const ALREADY_EXECUTED: &str = "AlreadyExecuted";
/// Rollback: the snapshot before the first write could not be taken; nothing was written.
pub const SAFETY_SNAPSHOT_FAILED: &str = "SafetySnapshotFailed";
/// Rollback: the target is reached, but the snapshot that proves it could not be taken.
pub const RESULT_SNAPSHOT_FAILED: &str = "ResultSnapshotFailed";
/// Rollback: the API server refused a write; the message holds its words.
pub const WRITE_REFUSED: &str = "WriteRefused";
/// Rollback: a workload did not become healthy; the message holds its own words.
pub const ROLLOUT_FAILED: &str = "RolloutFailed";
/// Rollback: other images run than were captured.
pub const IMAGES_DIFFER: &str = "ImagesDiffer";
/// Rollback: a test failed.
pub const VERIFICATION_FAILED: &str = "VerificationFailed";
/// Rollback: some items failed, all others are done (`onFailure: Continue`).
pub const PARTIAL: &str = "Partial";
/// Rollback: the way back to the safety snapshot failed; the message says where.
pub const UNDO_FAILED: &str = "UndoFailed";
