//! From the permit to the end.
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::plan::Made;
use crate::{
    api::{
        RollbackRequest,
        reference::ResolvedSnapshot,
        rollback_request::{ItemsStatus, RollbackPhase, SnapshotVersion, StepStatus, VerificationStatus},
    },
    capture::Catalog,
    controller::context::Context,
    domain::approval::ExecutionPermit,
};

#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub phase: RollbackPhase,
    pub steps: Vec<StepStatus>,
    pub items: Option<ItemsStatus>,
    pub verification: Option<VerificationStatus>,
    pub safety_snapshot: Option<SnapshotVersion>,
    pub result_snapshot: Option<SnapshotVersion>,
}
#[derive(Clone)]
pub(super) struct Reporter(Arc<dyn Fn() + Send + Sync>);
impl Reporter {
    pub fn new(ping: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self(ping)
    }
    pub fn read(&self) -> Report {
        (self.0)();
        Report::default()
    }
}
pub(super) struct Execution {
    pub context: Arc<Context>,
    pub catalog: Arc<Mutex<Catalog>>,
    pub request: Arc<RollbackRequest>,
    pub resolved: ResolvedSnapshot,
    pub started: Timestamp,
    pub deadline: tokio::time::Instant,
    pub report: Reporter,
    pub cancel: CancellationToken,
}
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub phase: RollbackPhase,
    pub reason: &'static str,
    pub message: String,
}
pub(super) async fn run(_: &Execution, _: Made, _: ExecutionPermit) -> Outcome {
    Outcome {
        phase: RollbackPhase::Failed,
        reason: "NotAvailable",
        message: String::new(),
    }
}
pub(super) async fn prove(_: &Execution) -> Outcome {
    Outcome {
        phase: RollbackPhase::Completed,
        reason: "Completed",
        message: String::new(),
    }
}
