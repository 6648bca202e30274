//! The rollout of named workloads is complete.

use std::time::Duration;

use tokio::time::Instant;

use super::Look;
use crate::{
    api::verify::RolloutStatus,
    domain::{
        health::{self, Health},
        object::ObjectId,
        verify::Seen,
    },
};

/// Between two looks at a rollout that is under way.
const EVERY: Duration = Duration::from_secs(1);

/// `Deployment/web` as an identity.
pub(super) fn workload(text: &str) -> Option<ObjectId> {
    let (kind, name) = text.split_once('/')?;
    matches!(kind, "Deployment" | "StatefulSet" | "DaemonSet").then(|| ObjectId::new("apps", kind, name))
}

/// Waits for rollouts under way until the attempt's time is over.
pub(super) async fn look(look: &Look<'_>, test: &RolloutStatus) -> Seen {
    loop {
        let mut waits = None;
        for name in &test.workloads {
            match one(look, name).await {
                Ok(None) => {}
                Ok(Some(seen)) => {
                    waits.get_or_insert(seen);
                }
                Err(seen) => return seen,
            }
        }
        let Some(seen) = waits else {
            return Seen::passed("complete");
        };
        if Instant::now() + EVERY >= look.until {
            return Seen::failed(seen);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What one workload waits for; an error is final.
async fn one(look: &Look<'_>, name: &str) -> Result<Option<String>, Seen> {
    let id = workload(name).ok_or_else(|| Seen::inconclusive(format!("{name} is no workload that rolls out")))?;
    let object = look.read(&id, false).await?;
    let object = object.ok_or_else(|| Seen::failed(format!("{name} is absent")))?;
    match health::health(&id, &object) {
        Health::Current => Ok(None),
        Health::InProgress(what) => Ok(Some(format!("{name}: {what}"))),
        Health::Failed(why) => Err(Seen::failed(format!("{name}: {why}"))),
        Health::Unknown => Err(Seen::inconclusive(format!("the status of {name} cannot be understood"))),
    }
}
