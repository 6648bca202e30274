//! `snapshot …`.

use clap::Subcommand;
use kube::ResourceExt as _;

use super::{
    Context, Exit, Failure,
    output::{Tone, age, bytes, or_none},
};
use crate::{
    api::{Snapshot, snapshot::SnapshotPhase},
    ops::{Error, Reference, Session, contents::Contents, reference, resolve, retained},
};

mod create;
mod delete;
mod diff;
mod export;
mod list;
mod show;
mod tag;
mod verify;

#[derive(Subcommand)]
pub enum Verb {
    /// Take a snapshot of a namespace
    Create(create::Options),
    /// List snapshots
    #[command(visible_alias = "ls")]
    List(list::Options),
    /// Show one snapshot, what it holds, or one captured object
    Show(show::Options),
    /// Compare two snapshots, or a snapshot with what is live
    Diff(diff::Options),
    /// Read stored contents back and compare them with their digests
    Verify(verify::Options),
    /// Write the captured objects to standard output, a directory or a tar archive
    Export(export::Options),
    /// Put tags on a snapshot, or take them off (TAG-)
    Tag(tag::Options),
    /// Delete snapshots; what no other snapshot needs is freed
    #[command(visible_alias = "rm")]
    Delete(delete::Options),
}

pub async fn run(verb: Verb, context: &mut Context) -> Result<Exit, Failure> {
    match verb {
        Verb::Create(options) => create::run(options, context).await,
        Verb::List(options) => list::run(&options, context).await,
        Verb::Show(options) => show::run(&options, context).await,
        Verb::Diff(options) => Box::pin(diff::run(&options, context)).await,
        Verb::Verify(options) => verify::run(&options, context).await,
        Verb::Export(options) => export::run(&options, context).await,
        Verb::Tag(options) => tag::run(&options, context).await,
        Verb::Delete(options) => delete::run(&options, context).await,
    }
}

/// NAME, LINEAGE@VERSION or tag:NAME.
fn reference(text: &str) -> Result<Reference, Error> {
    text.parse()
}

/// The snapshot that `name` names: an object, or with `of_gone` retained contents of one that is gone.
async fn find(session: &Session, context: &Context, name: &Reference, of_gone: bool) -> Result<Snapshot, Error> {
    if !of_gone {
        return resolve(session, name).await;
    }
    let contents = Contents::open(session, context.store.as_ref()).await?;
    retained::resolve(session, &contents, name).await
}

fn phase_cell(snapshot: &Snapshot) -> (String, Tone) {
    let phase = reference::phase(snapshot);
    let tone = match phase {
        SnapshotPhase::Ready => Tone::Good,
        SnapshotPhase::Failed => Tone::Bad,
        SnapshotPhase::Pending | SnapshotPhase::Capturing => Tone::Notice,
        SnapshotPhase::Expired => Tone::Quiet,
    };
    (format!("{phase:?}"), tone)
}

const HEADER: [&str; 6] = ["NAME", "VERSION", "PHASE", "OBJECTS", "TAGS", "AGE"];
const WIDE_HEADER: [&str; 5] = ["PARENT", "SIZE", "STORED", "DIGEST", "REQUESTED BY"];

/// The row of one snapshot.
fn row(snapshot: &Snapshot, namespaced: bool, wide: bool) -> Vec<(String, Tone)> {
    let plain = |text: String| (text, Tone::Plain);
    let status = snapshot.status.clone().unwrap_or_default();
    let mut row = Vec::new();
    if namespaced {
        row.push(plain(snapshot.namespace().unwrap_or_default()));
    }
    let version = reference::versioned(snapshot).unwrap_or_else(|| format!("{}@?", reference::lineage(snapshot)));
    let tags = reference::tags(snapshot);
    row.extend([
        plain(snapshot.name_any()),
        plain(version),
        phase_cell(snapshot),
        plain(
            status
                .objects
                .as_ref()
                .map_or_else(|| "-".into(), |o| o.captured.to_string()),
        ),
        plain(or_none((!tags.is_empty()).then(|| tags.join(",")))),
        plain(age(snapshot.creation_timestamp().map(|t| t.0))),
    ]);
    if wide {
        let size = |pick: fn(&crate::api::snapshot::SnapshotSize) -> i64| {
            status
                .size
                .as_ref()
                .map_or_else(|| "-".into(), |s| bytes(u64::try_from(pick(s)).unwrap_or(0)))
        };
        let digest = status.digest.as_deref().map(|d| {
            d.strip_prefix("sha256:")
                .unwrap_or(d)
                .chars()
                .take(12)
                .collect::<String>()
        });
        let author = snapshot.spec.requested_by.as_ref().and_then(|r| r.username.clone());
        row.extend([
            plain(or_none(status.parent.as_ref().map(|p| p.version.to_string()))),
            plain(size(|s| s.logical_bytes)),
            plain(size(|s| s.stored_bytes)),
            plain(or_none(digest)),
            plain(or_none(author)),
        ]);
    }
    row
}

/// Header that fits [`row`].
fn header(namespaced: bool, wide: bool) -> Vec<&'static str> {
    let mut header = if namespaced { vec!["NAMESPACE"] } else { Vec::new() };
    header.extend(HEADER);
    if wide {
        header.extend(WIDE_HEADER);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let snapshot = Snapshot::new("web", crate::api::SnapshotSpec::default());
        for namespaced in [false, true] {
            for wide in [false, true] {
                assert_eq!(row(&snapshot, namespaced, wide).len(), header(namespaced, wide).len());
            }
        }
    }

    #[test]
    fn a_snapshot_that_nobody_looked_at_is_pending_without_a_version() {
        let snapshot = Snapshot::new("web", crate::api::SnapshotSpec::default());
        let cells: Vec<String> = row(&snapshot, false, false).into_iter().map(|(text, _)| text).collect();
        assert_eq!(cells, ["web", "default@?", "Pending", "-", "<none>", "<unknown>"]);
    }
}
