//! `snapshot list`.

use clap::Args;
use kube::{ResourceExt as _, api::ListParams};

use super::{
    super::{args, output::Format},
    Context, Exit, Failure,
};
use crate::ops::{
    contents::Contents,
    list::{self, Scope},
    reference, retained,
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep snapshot list -n shop
  kubectl backstep snapshot list -A -o wide
  kubectl backstep snapshot list --lineage shop --limit 100
  kubectl backstep snapshot list -A --retained")]
pub struct Options {
    /// Snapshots of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Contents that were retained when their Snapshot went; for administrators
    #[arg(long, conflicts_with_all = ["selector", "limit"])]
    retained: bool,
    /// Only versions of this lineage
    #[arg(long, value_name = "NAME", value_parser = args::lineage)]
    lineage: Option<String>,
    /// Only those with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// At most this many, and a token to go on is printed; without it everything is read
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on where the last page ended
    #[arg(long = "continue", value_name = "TOKEN", requires = "limit")]
    continue_token: Option<String>,
    /// How to write them
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    output: Format,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let scope = if options.all_namespaces {
        Scope::All
    } else {
        Scope::Namespace
    };
    let params = ListParams {
        label_selector: options.selector.clone(),
        // The server selects, so that a page holds as many as were asked for.
        field_selector: options
            .lineage
            .as_ref()
            .map(|lineage| format!("spec.lineage={lineage}")),
        limit: options.limit,
        continue_token: options.continue_token.clone(),
        ..ListParams::default()
    };
    let page = if options.retained {
        let contents = Contents::open(&session, context.store.as_ref()).await?;
        let mut snapshots = retained::all(&session, &contents, scope).await?;
        snapshots.retain(|s| {
            options
                .lineage
                .as_deref()
                .is_none_or(|lineage| reference::lineage(s) == lineage)
        });
        list::Page {
            snapshots,
            next: None,
            remaining: None,
        }
    } else if options.limit.is_some() {
        list::page(&session, scope, &params).await?
    } else {
        list::Page {
            snapshots: list::all(&session, scope, &params).await?,
            next: None,
            remaining: None,
        }
    };
    let snapshots = page.snapshots;
    match options.output {
        Format::Json | Format::Yaml => context.out.objects(options.output, &snapshots, true)?,
        Format::Name => {
            for snapshot in &snapshots {
                context
                    .out
                    .line(format_args!("snapshot.backstep.dev/{}", snapshot.name_any()))?;
            }
        }
        Format::Table | Format::Wide if snapshots.is_empty() => {
            let place = if options.all_namespaces {
                "any namespace".to_owned()
            } else {
                format!("namespace {}", session.namespace)
            };
            let what = if options.retained {
                "retained contents"
            } else {
                "snapshots"
            };
            let lineage = options
                .lineage
                .as_ref()
                .map_or_else(String::new, |l| format!(" of lineage {l}"));
            context.out.note(format_args!("No {what}{lineage} found in {place}."))?;
        }
        Format::Table | Format::Wide => {
            let wide = options.output == Format::Wide;
            let rows: Vec<_> = snapshots
                .iter()
                .map(|s| super::row(s, options.all_namespaces, wide))
                .collect();
            context.out.table(&super::header(options.all_namespaces, wide), rows)?;
        }
    }
    if let (Some(token), Some(limit)) = (page.next, options.limit) {
        let left = page
            .remaining
            .map_or_else(|| "More are left".to_owned(), |n| format!("{n} are left"));
        context
            .out
            .note(format_args!("{left}; go on with: --limit {limit} --continue {token}"))?;
    }
    Ok(Exit::Ok)
}
