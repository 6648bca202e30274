//! Row 3: the memory of a capture, and how it grows with the number of objects.

use anyhow::Result;
use testbed::Cluster;

use super::{Plan, float, row};
use crate::load;
use crate::memory::{Peak, memory_of};
use crate::operator;
use crate::report::{Goal, Report, Unit, bytes};

/// Memory above idle at `small` and at `large` objects.
///
/// # Errors
/// As [`memory_of`].
pub async fn memory(plan: &Plan, small: usize, large: usize, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(load::quiet_cluster("memory")).await?;
    operator::install(&cluster).await?;
    let few = memory_of(&plan.program, &cluster, "few", small).await?;
    let many = memory_of(&plan.program, &cluster, "many", large).await?;
    cluster.stop().await?;
    let what = format!("memory above idle, {large} objects");
    let above = row(3, "large", what, float(many.above()), Unit::Bytes);
    report.add(
        above
            .must(Goal::AtMost(float(32 << 20)))
            .aim(Goal::AtMost(float(16 << 20)))
            .exact()
            .note(note(&many)),
    );
    let what = format!("memory at {large} against {small} objects");
    let growth = float(many.above()) / float(few.above().max(1));
    let growth = row(3, "large", what, growth, Unit::Times).must(Goal::AtMost(1.25));
    report.add(growth.exact().note(note(&few)));
    Ok(())
}

fn note(peak: &Peak) -> String {
    format!(
        "idle {}, peak {}; {} captured in {:.1} s, {} listed in {} pages, {} stored by {} writes",
        bytes(peak.idle),
        bytes(peak.most),
        peak.captured,
        peak.wall.as_secs_f64(),
        bytes(peak.listed),
        peak.pages,
        bytes(peak.stored),
        peak.writes
    )
}
