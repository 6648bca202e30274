//! `timeline`.

use clap::Args;
use serde_json::json;

use super::{
    Context, Exit, Failure, args,
    output::{Format, Tone, age, one_line},
};
use crate::{
    api::snapshot::SnapshotPhase,
    ops::timeline::{self, Origin, Version},
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep timeline -n shop
  kubectl backstep timeline --lineage shop -o json

Oldest first. A version stands below the one it was taken after; what a rollback left behind is a branch. Snapshots that were taken right before \
a rollback and after it are marked, and so are the rollbacks that went to a version.")]
pub struct Options {
    /// Only this lineage
    #[arg(long, value_name = "NAME", value_parser = args::lineage)]
    lineage: Option<String>,
    /// How to write it
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    output: Format,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let lineages = timeline::timeline(&session, options.lineage.as_deref()).await?;
    let out = &mut context.out;
    match options.output {
        Format::Json | Format::Yaml => out.structured(options.output, &json!({"lineages": lineages}))?,
        Format::Name => {
            for version in lineages.iter().flat_map(|l| &l.versions) {
                out.line(format_args!("snapshot.backstep.dev/{}", version.name))?;
            }
        }
        Format::Table | Format::Wide if lineages.is_empty() => {
            out.note(format_args!("No snapshots found in namespace {}.", session.namespace))?;
        }
        Format::Table | Format::Wide => {
            for (index, lineage) in lineages.iter().enumerate() {
                if index > 0 {
                    out.line("")?;
                }
                out.line(&lineage.name)?;
                for drawn in timeline::draw(lineage) {
                    let number = drawn.version.version.map_or_else(|| "?".to_owned(), |v| v.to_string());
                    let (tone, rest) = told(drawn.version, options.output == Format::Wide);
                    let rest = out.tone(tone, rest);
                    out.line(format_args!("{} {number} {rest}", drawn.prefix))?;
                }
            }
        }
    }
    Ok(Exit::Ok)
}

/// `good  3h  tags stable, v1  undone by …`.
fn told(version: &Version, wide: bool) -> (Tone, String) {
    let mut parts = vec![version.name.clone(), age(version.at)];
    if !version.tags.is_empty() {
        parts.push(format!("[{}]", version.tags.join(", ")));
    }
    let mut tone = match &version.origin {
        Origin::Asked => Tone::Plain,
        Origin::Safety(request) => {
            parts.push(format!("before rollback {request}"));
            Tone::Quiet
        }
        Origin::Result(request) => {
            parts.push(format!("after rollback {request}"));
            Tone::Good
        }
    };
    if version.phase != SnapshotPhase::Ready {
        parts.push(format!("{:?}", version.phase));
        tone = if version.phase == SnapshotPhase::Failed {
            Tone::Bad
        } else {
            Tone::Quiet
        };
    }
    parts.extend(version.visits.iter().map(|v| format!("<- {} {:?}", v.request, v.phase)));
    if let (Some(description), true) = (&version.description, wide) {
        parts.push(one_line(description));
    }
    (tone, parts.join("  "))
}
