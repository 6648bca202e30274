//! `snapshot delete`.

use std::fmt::Write as _;

use clap::Args;
use kube::ResourceExt as _;

use super::{super::args, Context, Exit, Failure};
use crate::{
    api::Snapshot,
    ops::{Reference, Session, contents::Contents, delete, reference, retained},
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep snapshot delete before-1-9
  kubectl backstep snapshot delete shop@3 shop@4 --yes
  kubectl backstep snapshot delete shop@2 --retained")]
pub struct Options {
    /// The snapshots: NAME, LINEAGE@VERSION or tag:NAME
    #[arg(value_name = "SNAPSHOT", required = true, value_parser = super::reference)]
    snapshots: Vec<Reference>,
    /// Contents that were retained when their Snapshot went; for administrators
    #[arg(long)]
    retained: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    // All names are resolved before the first deletion: a typo deletes nothing.
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for name in &options.snapshots {
        let snapshot = super::find(&session, context, name, options.retained).await?;
        if !snapshots.iter().any(|s| s.uid() == snapshot.uid()) {
            snapshots.push(snapshot);
        }
    }
    if !options.yes && !confirmed(&session, &snapshots)? {
        context.out.note("Nothing was deleted.")?;
        return Ok(Exit::Ok);
    }
    if options.retained {
        let contents = Contents::open(&session, context.store.as_ref()).await?;
        retained::delete(&contents, &snapshots).await?;
        for snapshot in &snapshots {
            let version = reference::versioned(snapshot).unwrap_or_default();
            context.out.line(format_args!(
                "contents of snapshot \"{}\" ({version}) deleted",
                snapshot.name_any()
            ))?;
        }
        return Ok(Exit::Ok);
    }
    for snapshot in &snapshots {
        delete::delete(&session, snapshot).await?;
        context.out.line(format_args!(
            "snapshot.backstep.dev \"{}\" deleted",
            snapshot.name_any()
        ))?;
    }
    Ok(Exit::Ok)
}

fn confirmed(session: &Session, snapshots: &[Snapshot]) -> Result<bool, Failure> {
    let mut question = String::new();
    for snapshot in snapshots {
        let version = reference::versioned(snapshot).map_or_else(String::new, |v| format!(" ({v})"));
        let pinned = if delete::is_pinned(snapshot) {
            ", which is pinned"
        } else {
            ""
        };
        let _ = writeln!(question, "  {}{version}{pinned}", snapshot.name_any());
    }
    let _ = write!(
        question,
        "Delete {} from namespace {}? A deleted snapshot cannot be brought back.",
        count(snapshots.len()),
        session.namespace
    );
    args::confirmed("deleting snapshots", &question)
}

fn count(snapshots: usize) -> String {
    if snapshots == 1 {
        "this snapshot".to_owned()
    } else {
        format!("these {snapshots} snapshots")
    }
}
