//! `snapshot export`.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, ValueEnum};
use kube::ResourceExt as _;

use super::{super::output::counted, Context, Exit, Failure};
use crate::ops::{
    Reference,
    contents::{Contents, HIDDEN},
    export::{self, Target},
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep snapshot export shop@7 -n shop > shop-7.yaml
  kubectl backstep snapshot export before-1-9 --output ./before-1-9
  kubectl backstep snapshot export tag:stable --output stable.tar --secrets include
  kubectl backstep snapshot export shop@3 --retained > shop-3.yaml

Hidden values of Secrets are written as <hidden>, which the API server refuses: such a Secret cannot be applied by mistake.")]
pub struct Options {
    /// The snapshot: NAME, LINEAGE@VERSION or tag:NAME
    #[arg(value_name = "SNAPSHOT", value_parser = super::reference)]
    snapshot: Reference,
    /// Contents that were retained when their Snapshot went; for administrators
    #[arg(long)]
    retained: bool,
    /// Where to write: a new directory, a new FILE.tar, or - for standard output
    #[arg(short, long, value_name = "PATH", default_value = "-")]
    output: PathBuf,
    /// How to write each object
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "yaml")]
    format: Format,
    /// What happens to the values of Secrets
    #[arg(long, value_enum, value_name = "MODE", default_value = "hide")]
    secrets: Secrets,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// YAML documents
    Yaml,
    /// JSON
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Secrets {
    /// Replace them
    Hide,
    /// Write them in clear; files can then be read by you alone
    Include,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let snapshot = super::find(&session, context, &options.snapshot, options.retained).await?;
    let contents = Contents::open(&session, context.store.as_ref()).await?;
    let manifest = contents.manifest(&snapshot).await?;
    let format = match options.format {
        Format::Yaml => export::Format::Yaml,
        Format::Json => export::Format::Json,
    };
    let to_stream = options.output.as_os_str() == "-";
    let is_tar = options
        .output
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("tar"));
    let bar = context.out.bar("exporting");
    bar.set_length(manifest.record().counts.captured);
    let reveal = options.secrets == Secrets::Include;
    let mut stdout = std::io::BufWriter::new(std::io::stdout());
    let target = if to_stream {
        Target::Stream(&mut stdout)
    } else if is_tar {
        Target::Tar(options.output.clone())
    } else {
        Target::Directory(options.output.clone())
    };
    let written = export::export(&contents, &manifest, target, format, reveal, |count| {
        bar.set_position(count);
    })
    .await;
    bar.finish_and_clear();
    let written = written.map_err(|failure| match failure {
        export::Failure::Ops(error) => Failure::from(error),
        export::Failure::Io(error) => Failure::from(error),
    })?;
    stdout.flush()?;
    if !to_stream {
        context.out.note(format_args!(
            "{} of snapshot {} written to {}",
            counted(written.objects, "object"),
            snapshot.name_any(),
            options.output.display()
        ))?;
    }
    if written.hidden > 0 {
        context.out.note(format_args!(
            "The values of {} are {HIDDEN}; --secrets include writes them.",
            counted(written.hidden, "Secret")
        ))?;
    }
    if written.fingerprints > 0 {
        context.out.note(format_args!(
            "Of {} the snapshot holds only fingerprints (secrets: Fingerprint), which cannot be applied.",
            counted(written.fingerprints, "Secret")
        ))?;
    }
    Ok(Exit::Ok)
}
