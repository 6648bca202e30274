//! `snapshot verify`.

use clap::Args;
use kube::ResourceExt as _;

use super::{
    super::output::{Format, Tone, bytes, counted},
    Context, Exit, Failure,
};
use crate::ops::{Class, Error, Reference, contents::Contents, reference, verify};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep snapshot verify shop@7 -n shop
  kubectl backstep snapshot verify --all

Everything that is stored is read back and its SHA-256 computed: nothing of it is taken on trust. --all also compares every Snapshot with the \
store. The exit code is 6 when something is damaged.")]
pub struct Options {
    /// The snapshots: NAME, LINEAGE@VERSION or tag:NAME
    #[arg(value_name = "SNAPSHOT", value_parser = super::reference, required_unless_present = "all")]
    snapshots: Vec<Reference>,
    /// Contents that were retained when their Snapshot went; for administrators
    #[arg(long, conflicts_with = "all")]
    retained: bool,
    /// The whole store, of all namespaces
    #[arg(long, conflicts_with = "snapshots")]
    all: bool,
    /// How to write the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let mut snapshots = Vec::new();
    for name in &options.snapshots {
        let snapshot = super::find(&session, context, name, options.retained).await?;
        if !reference::has_contents(&snapshot) {
            let phase = reference::phase(&snapshot);
            return Err(Error::new(
                Class::Refused,
                format!("snapshot {} has no contents to verify", snapshot.name_any()),
            )
            .because(format!("it is {phase:?}"))
            .into());
        }
        snapshots.push(snapshot);
    }
    let contents = Contents::open(&session, context.store.as_ref()).await?;
    let bar = context.out.bar("verifying");
    let verified = if options.all {
        verify::all(&session, &contents, |seen| {
            bar.set_length((seen.blobs_total + seen.snapshots_total) as u64);
            bar.set_position((seen.blobs + seen.snapshots) as u64);
        })
        .await
    } else {
        bar.set_length(snapshots.len() as u64);
        verify::some(&contents, &snapshots, |_| bar.inc(1)).await
    };
    bar.finish_and_clear();
    let verified = verified?;
    let out = &mut context.out;
    match options.output {
        Format::Json | Format::Yaml => out.structured(options.output, &verified)?,
        Format::Table | Format::Wide | Format::Name => {
            for damage in &verified.damage {
                let title = out.tone(Tone::Bad, format_args!("DAMAGED  {}", damage.blob));
                out.line(title)?;
                for problem in &damage.problems {
                    out.line(format_args!("    {problem}"))?;
                }
                if damage.snapshots.is_empty() {
                    out.line("    no snapshot needs it")?;
                }
                for snapshot in &damage.snapshots {
                    out.line(format_args!("    affects {snapshot}"))?;
                }
            }
            out.line(format_args!(
                "{}, {} and {} ({}) were read back: {}",
                counted(verified.snapshots, "snapshot"),
                counted(verified.contents, "content"),
                counted(verified.blobs, "blob"),
                bytes(verified.bytes),
                if verified.damage.is_empty() {
                    "nothing is damaged".to_owned()
                } else {
                    format!("{} damaged", verified.damage.len())
                }
            ))?;
            if !verified.objects_compared {
                out.note("The Snapshots were not compared with the store: you may not list them in all namespaces.")?;
            }
            if !verified.damage.is_empty() {
                out.note("  fix: restore the damaged blobs from a backup of the store, or take new snapshots and delete the affected ones")?;
            }
        }
    }
    Ok(if verified.damage.is_empty() {
        Exit::Ok
    } else {
        Exit::Corrupt
    })
}
