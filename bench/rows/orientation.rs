//! RAW alone: what the machine can do.

use std::time::Instant;

use anyhow::Result;

use super::{CONNECTIONS, Plan, float, row};
use crate::data::DataSet;
use crate::load;
use crate::raw;
use crate::report::{Report, Unit, bytes, median};

/// RAW alone, on the kinds of `set`.
///
/// # Errors
/// The cluster's.
pub async fn orientation(plan: &Plan, set: &DataSet, report: &mut Report) -> Result<()> {
    let cluster = load::cluster_with(std::slice::from_ref(set)).await?;
    let client = cluster.admin().await?;
    let resources: Vec<_> = set.mix.iter().map(|(kind, _)| kind.resource()).collect();
    let namespace = set.namespace(0);
    let scope = (set.namespaces == 1).then_some(namespace.as_str());
    let mut samples = Vec::new();
    let mut read = raw::Read::default();
    for _ in 0..=plan.pairs {
        let started = Instant::now();
        read = raw::list(&client, &resources, scope, CONNECTIONS).await?;
        samples.push(started.elapsed().as_secs_f64());
    }
    // The first one fills the server's caches.
    let seconds = median(&samples[1..]);
    let objects = set.len() as u64;
    let what = "RAW's lists of the data's kinds, in seconds";
    report.add(row(1, &set.name, what, seconds, Unit::Number).note(format!(
        "{} requests, {}, {} an object, {:.0} objects/s",
        read.requests,
        bytes(read.bytes),
        bytes(read.bytes / objects),
        float(objects) / seconds
    )));
    cluster.stop().await
}
