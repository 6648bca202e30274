//! `snapshot diff`.

use clap::{Args, ValueEnum};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{
    super::output::{Format, Tone, counted},
    Context, Exit, Failure,
};
use crate::{
    api::Snapshot,
    domain::object::diff::{ChangeKind, FieldChange},
    ops::{
        Class, Error, Reference, Session,
        contents::Contents,
        diff::{self, Change, Report},
        live, reference, resolve,
    },
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep snapshot diff shop@6 shop@7 -n shop
  kubectl backstep snapshot diff before-1-9 --against live
  kubectl backstep snapshot diff tag:stable --against live --summary
  kubectl backstep snapshot diff shop@3 shop@7 --retained

The exit code is 0 when nothing differs and 1 when something does. The order of maps, sets and keyed lists is no difference. The values of \
Secrets are never shown: equal or changed is all that is told.")]
pub struct Options {
    /// The first snapshot: NAME, LINEAGE@VERSION or tag:NAME
    #[arg(value_name = "SNAPSHOT", value_parser = super::reference)]
    old: Reference,
    /// The second snapshot; or pass `--against live`
    #[arg(value_name = "OTHER", value_parser = super::reference)]
    new: Option<Reference>,
    /// What to compare with when no second snapshot is named
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "new")]
    against: Option<Against>,
    /// Look for snapshots that do not exist any more among contents that were retained; for administrators
    #[arg(long)]
    retained: bool,
    /// Only which objects differ, and how many
    #[arg(short, long)]
    summary: bool,
    /// How to write it; wide shows each object as a unified diff
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    /// The namespace as it is now
    Live,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    if options.new.is_none() && options.against.is_none() {
        return Err(Error::usage("it is not said what to compare with")
            .fix("name a second snapshot, or pass --against live")
            .into());
    }
    let old = find(&session, context, &options.old, options.retained).await?;
    let new = match &options.new {
        Some(new) => Some(find(&session, context, new, options.retained).await?),
        None => None,
    };
    let contents = Contents::open(&session, context.store.as_ref()).await?;
    let before = contents.manifest(&old).await?;
    let spinner = context.out.spinner("comparing");
    let report = match &new {
        Some(new) => {
            let after = contents.manifest(new).await?;
            let mut compared = 0_u64;
            diff::snapshots(&session, &contents, &before, &after, |_| {
                compared += 1;
                spinner.set_message(format!("comparing, {compared} objects"));
            })
            .await
        }
        None => live::against_live(&session, &contents, &before).await,
    };
    spinner.finish_and_clear();
    let report = report?;
    let names = (label(&old), new.as_ref().map_or_else(|| "live".to_owned(), label));
    print(options, &names, &report, context)?;
    Ok(if report.is_empty() { Exit::Ok } else { Exit::Differs })
}

/// A snapshot, or with `or_gone` retained contents where no snapshot goes by that name.
async fn find(session: &Session, context: &Context, name: &Reference, or_gone: bool) -> Result<Snapshot, Error> {
    match resolve(session, name).await {
        Err(error) if or_gone && error.class == Class::NotFound => super::find(session, context, name, true).await,
        found => found,
    }
}

fn label(snapshot: &Snapshot) -> String {
    reference::versioned(snapshot).unwrap_or_else(|| snapshot.name_any())
}

fn print(
    options: &Options,
    (old, new): &(String, String),
    report: &Report,
    context: &mut Context,
) -> Result<(), Failure> {
    let out = &mut context.out;
    match options.output {
        Format::Json | Format::Yaml => {
            let mut value = json!({"from": old, "to": new, "differs": !report.is_empty()});
            let details = serde_json::to_value(report).map_err(|e| Error::internal(e.to_string()))?;
            if let (Some(value), serde_json::Value::Object(details)) = (value.as_object_mut(), details) {
                value.extend(details);
            }
            return out.structured(options.output, &value);
        }
        Format::Name => {
            for object in &report.objects {
                out.line(&object.id)?;
            }
            return Ok(());
        }
        Format::Table | Format::Wide => {}
    }
    for object in &report.objects {
        let (sign, tone) = match object.change {
            Change::Added => ("+", Tone::Good),
            Change::Removed => ("-", Tone::Bad),
            Change::Changed => ("~", Tone::Notice),
        };
        let title = out.tone(tone, format_args!("{sign} {}", object.id));
        out.line(title)?;
        if options.summary {
            continue;
        }
        if options.output == Format::Wide {
            for line in object.text.lines() {
                let tone = match line.as_bytes().first() {
                    Some(b'+') => Tone::Good,
                    Some(b'-') => Tone::Bad,
                    _ => Tone::Plain,
                };
                let line = out.tone(tone, line);
                out.line(format_args!("    {line}"))?;
            }
        } else {
            for field in &object.fields {
                for (tone, line) in lines(field) {
                    let line = out.tone(tone, line);
                    out.line(format_args!("    {line}"))?;
                }
            }
        }
    }
    for image in &report.images {
        let title = out.tone(
            Tone::Notice,
            format_args!("~ image of {} container {}", image.workload, image.container),
        );
        out.line(title)?;
        if !options.summary {
            let (old, new) = (
                out.tone(Tone::Bad, format_args!("- {}", image.old)),
                out.tone(Tone::Good, format_args!("+ {}", image.new)),
            );
            out.line(format_args!("    {old}"))?;
            out.line(format_args!("    {new}"))?;
        }
    }
    let images = if report.images.is_empty() {
        String::new()
    } else {
        format!(", {} moved", counted(report.images.len(), "image"))
    };
    out.line(format_args!(
        "{old} → {new}: {} added, {} removed, {} changed, {} unchanged{images}",
        report.added, report.removed, report.changed, report.unchanged
    ))
}

/// Where `kubectl apply` keeps a copy of the whole object that it was given.
const LAST_APPLIED: &str = r#"metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"]"#;

/// `path: old → new` for short values, a line for each side for longer ones.
fn lines(field: &FieldChange) -> Vec<(Tone, String)> {
    let path = if field.path.is_empty() { "." } else { &field.path };
    let show = |value: &Option<Value>| value.as_ref().map(Value::to_string).unwrap_or_default();
    let (old, new) = (show(&field.old), show(&field.new));
    if field.hidden {
        let what = match field.kind {
            ChangeKind::Added => "added",
            ChangeKind::Removed => "removed",
            ChangeKind::Changed => "changed",
        };
        return vec![(Tone::Notice, format!("{path}: {what} (Secret value, hidden)"))];
    }
    if field.path == LAST_APPLIED && field.kind == ChangeKind::Changed {
        let text = format!("~ {path}: changed (what kubectl apply remembers; -o wide shows it)");
        return vec![(Tone::Notice, text)];
    }
    match field.kind {
        ChangeKind::Added => vec![(Tone::Good, format!("+ {path}: {new}"))],
        ChangeKind::Removed => vec![(Tone::Bad, format!("- {path}: {old}"))],
        ChangeKind::Changed if old.len() + new.len() <= 80 => vec![(Tone::Notice, format!("~ {path}: {old} → {new}"))],
        ChangeKind::Changed => vec![
            (Tone::Bad, format!("- {path}: {old}")),
            (Tone::Good, format!("+ {path}: {new}")),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ChangeKind, old: Option<&str>, new: Option<&str>, hidden: bool) -> FieldChange {
        FieldChange {
            path: "data.a".into(),
            kind,
            old: old.map(Into::into),
            new: new.map(Into::into),
            hidden,
        }
    }

    #[test]
    fn short_changes_take_one_line_and_long_ones_two() {
        let short = lines(&change(ChangeKind::Changed, Some("v1"), Some("v2"), false));
        assert_eq!(short, [(Tone::Notice, "~ data.a: \"v1\" → \"v2\"".to_owned())]);
        let long = "x".repeat(80);
        assert_eq!(
            lines(&change(ChangeKind::Changed, Some(&long), Some("v2"), false)).len(),
            2
        );
    }

    #[test]
    fn what_kubectl_apply_remembers_takes_one_line_unless_it_is_a_secret() {
        let states = ["v1", "v2"].map(|mode| {
            serde_json::json!({"kind": "ConfigMap", "data": {"mode": mode}, "metadata": {"annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": format!("{{\"data\":{{\"mode\":\"{mode}\"}}}}"),
            }}})
        });
        let [old, new] = &states;
        let key = crate::domain::object::FingerprintKey::new([7; 32]);
        let shape = crate::domain::object::ListShape::atomic();
        let changes = crate::domain::object::diff::diff(Some(old), Some(new), &shape, &key).changes;
        let text: Vec<String> = changes.iter().flat_map(lines).map(|(_, line)| line).collect();
        let remembered = format!("~ {LAST_APPLIED}: changed (what kubectl apply remembers; -o wide shows it)");
        assert_eq!(text, [r#"~ data.mode: "v1" → "v2""#.to_owned(), remembered]);
        let hidden = FieldChange {
            path: LAST_APPLIED.into(),
            ..change(ChangeKind::Changed, Some("a"), Some("b"), true)
        };
        assert!(lines(&hidden)[0].1.ends_with("changed (Secret value, hidden)"));
    }

    #[test]
    fn hidden_fields_tell_only_what_happened() {
        let text = &lines(&change(ChangeKind::Changed, Some("canary"), Some("canary2"), true))[0].1;
        assert_eq!(text, "data.a: changed (Secret value, hidden)");
    }
}
