//! `undo`.

use clap::Args;
use kube::ResourceExt as _;

use super::{
    Context, Exit, Failure,
    args::DryRun,
    rollback::{self as verb, About},
};
use crate::ops::rollback::{self, Request};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep undo undo-1-9 -n shop --reason 'the rollback made it worse' --wait
  kubectl backstep undo undo-1-9 --dry-run=client -o yaml

An undo is an ordinary rollback to the safety snapshot that was taken right before the first write, within the same components or objects, and \
away with what was created since. It is planned, approved and recorded like any other.")]
pub struct Options {
    /// The rollback request to undo
    #[arg(value_name = "REQUEST")]
    request: String,
    /// Name of the new rollback request; without it one is made
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    about: About,
    /// client: print what would be sent; server: let the API server check it and keep nothing
    #[arg(long, value_enum, value_name = "WHERE", conflicts_with_all = ["wait", "timeout"])]
    dry_run: Option<DryRun>,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let undone = rollback::find(&session, &options.request).await?;
    let mut spec = rollback::undo(&session, &undone).await?;
    options.about.fill(&mut spec);
    let name = undone.name_any();
    let reason = spec.reason.get_or_insert_default();
    if reason.message.is_none() {
        reason.message = Some(format!("undo of {name}"));
    }
    // Names of requests may have 200 characters; the server adds some to the prefix.
    let prefix: String = format!("undo-{name}").chars().take(180).collect();
    let request = Request {
        name: options.name.clone(),
        prefix: prefix.trim_end_matches(['-', '.']).to_owned(),
        spec,
    };
    verb::submit(&request, &options.about, options.dry_run, &session, context).await
}
