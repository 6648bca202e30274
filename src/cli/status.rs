//! `status`: how Backstep is doing.

use clap::Args;

use super::{
    Context, Exit, Failure,
    output::{Format, Tone, bytes, counted},
};
use crate::ops::status::{self, Seen, Status};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep status
  kubectl backstep status -o json

What you may not see is told as not known, never as absent.")]
pub struct Options {
    /// How to write it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let status = Box::pin(status::status(&session, context.store.as_ref())).await?;
    match options.output {
        Format::Json | Format::Yaml => context.out.structured(options.output, &status)?,
        Format::Table | Format::Wide | Format::Name => context.out.table(&[], rows(&status))?,
    }
    let down = matches!(&status.operator, Seen::Known(operator) if !operator.running);
    Ok(if down { Exit::Differs } else { Exit::Ok })
}

fn rows(status: &Status) -> Vec<Vec<(String, Tone)>> {
    fn row<T>(name: &str, seen: &Seen<T>, show: impl Fn(&T) -> (String, Tone)) -> Vec<(String, Tone)> {
        let value = match seen {
            Seen::Known(value) => show(value),
            Seen::Unknown(why) => (format!("not known: {why}"), Tone::Quiet),
        };
        vec![(format!("{name}:"), Tone::Plain), value]
    }
    let listed = |names: &Vec<String>| {
        if names.is_empty() {
            (
                "none; is the chart installed? see `kubectl backstep doctor`".to_owned(),
                Tone::Bad,
            )
        } else {
            (names.join(", "), Tone::Plain)
        }
    };
    vec![
        row("Server", &status.server, |version| (version.clone(), Tone::Plain)),
        row("Operator", &status.operator, |operator| {
            match (&operator.holder, operator.renewed_seconds_ago) {
                (Some(holder), Some(age)) if operator.running => {
                    (format!("{holder} leads, renewed {} s ago", age.max(0)), Tone::Good)
                }
                (Some(holder), Some(age)) => (
                    format!("not running: {holder} renewed its Lease {age} s ago"),
                    Tone::Bad,
                ),
                _ => (
                    format!(
                        "not running in namespace {}: nobody holds its Lease",
                        status.operator_namespace
                    ),
                    Tone::Bad,
                ),
            }
        }),
        row("Kinds", &status.kinds, listed),
        row("Policies", &status.policies, listed),
        row("Snapshots", &status.snapshots, |snapshots| {
            let phases: Vec<String> = snapshots
                .phases
                .iter()
                .map(|(phase, count)| format!("{count} {phase}"))
                .collect();
            let place = snapshots
                .namespace
                .as_ref()
                .map_or_else(|| "all namespaces".to_owned(), |n| format!("namespace {n}"));
            let phases = if phases.is_empty() {
                String::new()
            } else {
                format!(": {}", phases.join(", "))
            };
            (format!("{} in {place}{phases}", snapshots.total), Tone::Plain)
        }),
        row("Repository", &status.repository, |repository| {
            let quota = repository
                .quota_bytes
                .filter(|q| *q > 0)
                .map_or_else(String::new, |q| format!(" of {}", bytes(q)));
            let text = format!(
                "{}: {}{quota} in {}, {}",
                repository.store,
                bytes(repository.stored_bytes),
                counted(repository.packs, "pack"),
                counted(repository.snapshots, "snapshot")
            );
            (text, Tone::Plain)
        }),
    ]
}
