//! `snapshot show`.

use clap::Args;
use kube::ResourceExt as _;
use serde_json::json;

use super::{
    super::output::{Format, Tone, age, bytes, or_none},
    Context, Exit, Failure, reference,
};
use crate::{
    api::Snapshot,
    ops::{
        self, Class, Reference,
        contents::{self, Contents},
        delete, show,
    },
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep snapshot show shop@7 -n shop
  kubectl backstep snapshot show before-1-9 Deployment/web
  kubectl backstep snapshot show tag:stable Secret/db --reveal-secrets

What a snapshot holds is read from the operator's store with your own rights; whoever may not read the store sees what the status tells.")]
pub struct Options {
    /// The snapshot: NAME, LINEAGE@VERSION or tag:NAME
    #[arg(value_name = "SNAPSHOT", value_parser = super::reference)]
    snapshot: Reference,
    /// Print the captured content of this object: Kind/NAME, Kind.group/NAME or group/Kind/NAME
    #[arg(value_name = "OBJECT", value_parser = object)]
    object: Option<show::ObjectName>,
    /// Contents that were retained when their Snapshot went; for administrators
    #[arg(long)]
    retained: bool,
    /// Print the values of Secrets in clear
    #[arg(long, requires = "object")]
    reveal_secrets: bool,
    /// How to write it; an object is YAML or JSON
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

fn object(text: &str) -> Result<show::ObjectName, ops::Error> {
    text.parse()
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let snapshot = super::find(&session, context, &options.snapshot, options.retained).await?;
    if let Some(name) = &options.object {
        let contents = Contents::open(&session, context.store.as_ref()).await?;
        let manifest = contents.manifest(&snapshot).await?;
        let object = show::object(&contents, &manifest, name, options.reveal_secrets).await?;
        let format = if options.output == Format::Json {
            Format::Json
        } else {
            Format::Yaml
        };
        context.out.structured(format, &object)?;
        return Ok(Exit::Ok);
    }
    if options.output == Format::Name {
        context
            .out
            .line(format_args!("snapshot.backstep.dev/{}", snapshot.name_any()))?;
        return Ok(Exit::Ok);
    }
    let held = match Contents::open(&session, context.store.as_ref()).await {
        Ok(contents) => held(&contents, &snapshot).await,
        Err(error) => Err(error),
    };
    // Damage must never look like a missing right.
    let held = match held {
        Err(error) if error.class == Class::Corrupt => return Err(error.into()),
        other => other,
    };
    match options.output {
        Format::Json | Format::Yaml => {
            let mut value = super::super::output::plain_object(&snapshot)?;
            value["contents"] = match &held {
                Ok(held) => json!({"objects": held.objects, "skipped": held.skipped, "images": held.images}),
                Err(error) => json!({"unavailable": error.what}),
            };
            context.out.structured(options.output, &value)?;
        }
        Format::Table | Format::Wide | Format::Name => {
            describe(&snapshot, context)?;
            tables(&snapshot, held.as_ref().ok(), options.output == Format::Wide, context)?;
            if let Err(error) = held {
                context.out.note(format_args!("\nThe objects are not shown: {error}"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

struct Held {
    objects: Vec<show::Captured>,
    skipped: Vec<crate::api::snapshot::SkipCount>,
    images: Vec<crate::api::snapshot::ImageStatus>,
}

async fn held(contents: &Contents, snapshot: &Snapshot) -> Result<Held, ops::Error> {
    let manifest = contents.manifest(snapshot).await?;
    let extras = contents::extras(&manifest).await?;
    Ok(Held {
        objects: show::entries(&manifest).await?,
        skipped: extras.skipped,
        images: extras.images,
    })
}

fn describe(snapshot: &Snapshot, context: &mut Context) -> Result<(), Failure> {
    let status = snapshot.status.clone().unwrap_or_default();
    let spec = &snapshot.spec;
    let mut rows: Vec<Vec<(String, Tone)>> = Vec::new();
    let mut row = |name: &str, value: (String, Tone)| rows.push(vec![(format!("{name}:"), Tone::Plain), value]);
    let plain = |text: String| (text, Tone::Plain);
    row("Name", plain(snapshot.name_any()));
    row("Namespace", plain(snapshot.namespace().unwrap_or_default()));
    row("Lineage", plain(reference::lineage(snapshot).to_owned()));
    row("Version", plain(or_none(status.version.map(|v| v.to_string()))));
    row(
        "Parent",
        plain(or_none(
            status.parent.as_ref().map(|p| format!("{} ({})", p.version, p.name)),
        )),
    );
    row("Phase", super::phase_cell(snapshot));
    let tags = reference::tags(snapshot);
    row("Tags", plain(or_none((!tags.is_empty()).then(|| tags.join(", ")))));
    row(
        "Pinned",
        plain(if delete::is_pinned(snapshot) {
            "yes".into()
        } else {
            "no".into()
        }),
    );
    row("Description", plain(or_none(spec.description.clone())));
    row(
        "Requested by",
        plain(or_none(spec.requested_by.as_ref().and_then(|r| r.username.clone()))),
    );
    row(
        "Created",
        plain(format!("{} ago", age(snapshot.creation_timestamp().map(|t| t.0)))),
    );
    if let Some(expires) = &status.expires_at {
        row("Expires", plain(expires.0.to_string()));
    }
    row("Digest", plain(or_none(status.digest.clone())));
    if let Some(objects) = &status.objects {
        let text = format!(
            "{} captured, {} unchanged, {} skipped, {} failed",
            objects.captured, objects.unchanged, objects.skipped, objects.failed
        );
        row("Objects", plain(text));
    }
    if let Some(size) = &status.size {
        let of = |count: i64| bytes(u64::try_from(count).unwrap_or(0));
        row(
            "Size",
            plain(format!(
                "{}, {} added to the store",
                of(size.logical_bytes),
                of(size.stored_bytes)
            )),
        );
    }
    if !status.components.is_empty() {
        let parts: Vec<String> = status
            .components
            .iter()
            .map(|c| format!("{:?} {}", c.name, c.items))
            .collect();
        row("Components", plain(parts.join(", ")));
    }
    for condition in &status.conditions {
        let text = format!("{} {}: {}", condition.status, condition.reason, condition.message);
        row(&condition.type_, plain(text.trim_end_matches([' ', ':']).to_owned()));
    }
    context.out.table(&[], rows)
}

fn tables(snapshot: &Snapshot, held: Option<&Held>, wide: bool, context: &mut Context) -> Result<(), Failure> {
    let status = snapshot.status.clone().unwrap_or_default();
    let plain = |text: &str| (text.to_owned(), Tone::Plain);
    let out = &mut context.out;
    // The manifest has all rows, the status the first of them.
    let images = held.map_or(&status.images, |h| &h.images);
    if !images.is_empty() {
        out.line("\nImages:")?;
        let rows = images.iter().map(|image| {
            let ran = match (&image.digest, &image.reason) {
                (Some(digest), _) => plain(digest),
                (None, reason) => (format!("not known: {}", or_none(reason.clone())), Tone::Notice),
            };
            vec![
                plain(&image.workload),
                plain(&image.container),
                plain(&image.image),
                ran,
            ]
        });
        out.table(&["WORKLOAD", "CONTAINER", "IMAGE", "RAN"], rows.collect::<Vec<_>>())?;
        if held.is_none() && status.images_omitted.unwrap_or(0) > 0 {
            out.line(format_args!(
                "and {} more in the manifest",
                status.images_omitted.unwrap_or(0)
            ))?;
        }
    }
    let skipped = held.map_or(&status.skipped, |h| &h.skipped);
    if !skipped.is_empty() {
        out.line("\nLeft out:")?;
        let rows = skipped
            .iter()
            .map(|s| vec![plain(&s.count.to_string()), plain(&s.kind), plain(&s.reason)]);
        out.table(&["COUNT", "KIND", "REASON"], rows.collect::<Vec<_>>())?;
        if held.is_none() && status.skipped_omitted.unwrap_or(0) > 0 {
            out.line(format_args!(
                "and {} more rows in the manifest",
                status.skipped_omitted.unwrap_or(0)
            ))?;
        }
    }
    if let Some(held) = held {
        out.line("\nObjects:")?;
        let header = ["KIND", "NAME", "COMPONENT", "DIGEST"];
        let rows = held.objects.iter().map(|object| {
            let kind = if object.group.is_empty() {
                object.kind.clone()
            } else {
                format!("{}.{}", object.kind, object.group)
            };
            let hex = object.digest.strip_prefix("sha256:").unwrap_or(&object.digest);
            let digest = if wide {
                object.digest.clone()
            } else {
                hex.chars().take(12).collect()
            };
            vec![
                (kind, Tone::Plain),
                plain(&object.name),
                plain(&object.component),
                (digest, Tone::Quiet),
            ]
        });
        out.table(&header, rows.collect::<Vec<_>>())?;
    }
    Ok(())
}
