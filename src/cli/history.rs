//! `history`.

use clap::Args;
use serde_json::json;

use super::{
    Context, Exit, Failure,
    output::{Format, Tone, age, one_line, short},
    shown,
};
use crate::ops::{
    Error, Session,
    history::{self, Cursor, Query, Record},
    list::Scope,
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep history -n shop
  kubectl backstep history --limit 20 -o wide
  kubectl backstep history -A -o json
  kubectl backstep history undo-1-9
  kubectl backstep history undo-1-9 -o yaml

Newest first, by when they were asked for. A finished RollbackRequest is its own record; of those that are gone the operator's store keeps one, \
which is listed where you may read the store (administrators). `kubectl backstep history REQUEST` shows one record whole, with every failure, also of a request that is gone; `kubectl backstep plan --of \
REQUEST` shows what was to be done object by object.")]
pub struct Options {
    /// Show the record of this request, whole
    #[arg(conflicts_with_all = ["all_namespaces", "dry_runs", "limit", "continue_token"])]
    request: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Dry runs, too
    #[arg(long)]
    dry_runs: bool,
    /// At most this many, and a token to go on is printed; without it everything is read
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on where the last page ended
    #[arg(long = "continue", value_name = "TOKEN", requires = "limit", value_parser = cursor)]
    continue_token: Option<Cursor>,
    /// How to write it
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    output: Format,
}

fn cursor(text: &str) -> Result<Cursor, Error> {
    text.parse()
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    if let Some(request) = &options.request {
        return one(options, context, &session, request).await;
    }
    let query = Query {
        scope: if options.all_namespaces {
            Scope::All
        } else {
            Scope::Namespace
        },
        dry_runs: options.dry_runs,
        limit: options.limit.and_then(|limit| usize::try_from(limit).ok()),
        after: options.continue_token.clone(),
    };
    let spinner = context.out.spinner("reading");
    let page = Box::pin(history::history(&session, context.store.as_ref(), &query)).await;
    spinner.finish_and_clear();
    let page = page?;
    let next = page.next.as_ref().map(ToString::to_string);
    match options.output {
        Format::Json | Format::Yaml => {
            context.out.structured(
                options.output,
                &json!({"records": page.records, "continue": next, "withoutArchive": page.without_archive}),
            )?;
        }
        Format::Name => {
            for record in &page.records {
                context
                    .out
                    .line(format_args!("rollbackrequest.backstep.dev/{}", record.name))?;
            }
        }
        Format::Table | Format::Wide if page.records.is_empty() => {
            let place = if options.all_namespaces {
                "any namespace".to_owned()
            } else {
                format!("namespace {}", session.namespace)
            };
            context
                .out
                .note(format_args!("No finished rollbacks found in {place}."))?;
        }
        Format::Table | Format::Wide => {
            let wide = options.output == Format::Wide;
            let rows: Vec<_> = page
                .records
                .iter()
                .map(|r| row(r, options.all_namespaces, wide))
                .collect();
            context.out.table(&header(options.all_namespaces, wide), rows)?;
        }
    }
    if let (Some(why), Format::Wide) = (&page.without_archive, options.output) {
        context
            .out
            .note(format_args!("Requests that are gone are not listed: {why}"))?;
    }
    if let (Some(token), Some(limit)) = (next, options.limit) {
        context.out.note(format_args!(
            "More are left; go on with: --limit {limit} --continue {token}"
        ))?;
    }
    Ok(Exit::Ok)
}

async fn one(options: &Options, context: &mut Context, session: &Session, request: &str) -> Result<Exit, Failure> {
    let spinner = context.out.spinner("reading");
    let kept = Box::pin(history::one(session, context.store.as_ref(), request)).await;
    spinner.finish_and_clear();
    let kept = kept?;
    let out = &mut context.out;
    match options.output {
        Format::Json | Format::Yaml => out.structured(options.output, &kept.record)?,
        Format::Name => out.line(format_args!("rollbackrequest.backstep.dev/{}", kept.record.name))?,
        Format::Table | Format::Wide => {
            for (tone, line) in shown::record(&kept.record) {
                let line = out.tone(tone, line);
                out.line(line)?;
            }
        }
    }
    if let Some(why) = &kept.without_archive {
        let omitted = kept
            .record
            .status
            .items
            .as_ref()
            .and_then(|items| items.failures_omitted);
        let omitted = omitted.map_or_else(String::new, |more| {
            format!(", and {more} more failures are only in the store")
        });
        context
            .out
            .note(format_args!("This is what the request itself tells{omitted}: {why}"))?;
    }
    Ok(Exit::Ok)
}

fn header(namespaced: bool, wide: bool) -> Vec<&'static str> {
    let mut header = if namespaced { vec!["NAMESPACE"] } else { Vec::new() };
    header.extend([
        "NAME",
        "PHASE",
        "TARGET",
        "BY",
        "APPROVED BY",
        "CHANGES",
        "TOOK",
        "AGE",
        "REASON",
    ]);
    if wide {
        header.extend(["END", "SAFETY SNAPSHOT", "PLAN"]);
    }
    header
}

fn row(record: &Record, namespaced: bool, wide: bool) -> Vec<(String, Tone)> {
    let plain = |text: String| (text, Tone::Plain);
    let dash = |text: Option<String>| plain(text.filter(|t| !t.is_empty()).unwrap_or_else(|| "-".into()));
    let mut row = Vec::new();
    if namespaced {
        row.push(plain(record.namespace.clone()));
    }
    let target = record.target.as_ref().map(|target| {
        record
            .version
            .map_or_else(|| target.clone(), |version| format!("{target} ({version})"))
    });
    let reason = match (&record.message, record.emergency) {
        (message, true) => format!("emergency: {}", message.as_deref().map(one_line).unwrap_or_default()),
        (Some(message), false) => one_line(message),
        (None, false) => format!("{:?}", record.reason),
    };
    row.extend([
        (
            record.name.clone(),
            if record.archived { Tone::Quiet } else { Tone::Plain },
        ),
        (format!("{:?}", record.phase), shown::phase_tone(record.phase)),
        dash(target),
        dash(record.by.clone()),
        dash(record.approvers.as_ref().map(|a| a.join(","))),
        dash(record.changes.map(|c| c.to_string())),
        dash(record.duration_seconds.map(short)),
        plain(age(Some(record.at))),
        plain(reason),
    ]);
    if wide {
        row.extend([
            dash(record.end.clone()),
            dash(record.safety_snapshot.clone()),
            dash(record.plan_digest.clone()),
        ]);
    }
    row
}
