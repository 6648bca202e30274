//! `snapshot tag`.

use clap::Args;
use kube::ResourceExt as _;

use super::{Context, Exit, Failure};
use crate::ops::{Reference, reference, tag};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep snapshot tag shop@7 stable
  kubectl backstep snapshot tag before-1-9 stable candidate-")]
pub struct Options {
    /// The snapshot: NAME, LINEAGE@VERSION or tag:NAME
    #[arg(value_name = "SNAPSHOT", value_parser = super::reference)]
    snapshot: Reference,
    /// Tags to put on; TAG- takes one off
    #[arg(value_name = "TAG", required = true, allow_hyphen_values = false)]
    tags: Vec<String>,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let change = tag::Change::parse(&options.tags)?;
    let session = context.session().await?;
    let tagged = tag::tag(&session, &options.snapshot, &change).await?;
    let tags = reference::tags(&tagged.snapshot);
    let tags = if tags.is_empty() {
        "has no tags".to_owned()
    } else {
        format!("has the tags {}", tags.join(", "))
    };
    context.out.line(format_args!(
        "snapshot.backstep.dev/{} {tags}",
        tagged.snapshot.name_any()
    ))?;
    for (tag, other) in &tagged.ambiguous {
        context.out.note(format_args!(
            "warning: snapshot {other} of the same lineage carries {tag} too, so tag:{tag} names neither\n  \
             fix: kubectl backstep snapshot tag {other} {tag}- -n {}",
            session.namespace
        ))?;
    }
    Ok(Exit::Ok)
}
