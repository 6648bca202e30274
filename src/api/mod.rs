//! The kinds of `backstep.dev/v1alpha1` as users write them. CRDs are generated from here.

// Two printer columns of one type are no mistake, and the lint looks into `#[kube(…)]`.
#![allow(clippy::duplicated_attributes)]

pub mod approval_decision;
pub mod approval_policy;
pub mod approval_request;
pub mod bounded;
pub mod conditions;
pub mod crd;
pub mod duration;
pub mod hook;
pub mod names;
pub mod reasons;
pub mod reference;
pub mod rollback_plan;
pub mod rollback_request;
pub mod schema;
pub mod snapshot;
pub mod verify;

pub use approval_decision::{ApprovalDecision, ApprovalDecisionSpec};
pub use approval_policy::{ApprovalPolicy, ApprovalPolicySpec, ApprovalPolicyStatus};
pub use approval_request::{ApprovalRequest, ApprovalRequestSpec, ApprovalRequestStatus};
pub use rollback_plan::{RollbackPlan, RollbackPlanSpec};
pub use rollback_request::{RollbackRequest, RollbackRequestSpec, RollbackRequestStatus};
pub use snapshot::{Snapshot, SnapshotSpec, SnapshotStatus};
