//! `watch`.

use std::{cell::RefCell, time::Duration};

use clap::Args;
use kube::ResourceExt as _;

use super::{Context, Exit, Failure, args, output::Format, shown};
use crate::{
    api::RollbackRequest,
    ops::{Session, rollback},
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep watch undo-1-9 -n shop
  kubectl backstep watch undo-1-9 --timeout 5m -o json

A line is written for each change: plan, approval, phase, steps, failures, tests. The exit code tells the outcome: 0 completed or planned; 9 \
failed, undone or partial; 8 rejected, cancelled or superseded; 5 not approved in time, or not over when the wait was.")]
pub struct Options {
    /// The rollback request
    #[arg(value_name = "REQUEST")]
    request: String,
    /// How long to watch
    #[arg(long, value_name = "DURATION", default_value = "25h", value_parser = args::time)]
    timeout: Duration,
    /// How to write it; json and yaml are written at the end
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let name = rollback::find(&session, &options.request).await?.name_any();
    let lines = matches!(options.output, Format::Table | Format::Wide);
    let ended = live(&session, &name, options.timeout, lines, context).await?;
    match options.output {
        Format::Json | Format::Yaml => context.out.objects(options.output, &[&ended], false)?,
        Format::Name => context.out.line(format_args!(
            "rollbackrequest.backstep.dev/{name} {:?}",
            rollback::phase(&ended)
        ))?,
        Format::Table | Format::Wide => {}
    }
    rollback::outcome(&ended)?;
    Ok(Exit::Ok)
}

/// Writes a line for each change of the request `name` until it is over, where `lines` says so; what is under way moves below.
pub async fn live(
    session: &Session,
    name: &str,
    deadline: Duration,
    lines: bool,
    context: &mut Context,
) -> Result<RollbackRequest, Failure> {
    let spinner = context.out.spinner(format!("rollbackrequest {name}"));
    // A reader that went away ends the watch at the next state.
    let broken: RefCell<Option<Failure>> = RefCell::new(None);
    let mut last: Option<RollbackRequest> = None;
    let out = &mut context.out;
    let ended = rollback::follow(
        session,
        name,
        deadline,
        |state| {
            if lines {
                for (tone, line) in shown::news(last.as_ref(), state) {
                    let line = out.tone(tone, line);
                    let told = spinner.suspend(|| out.line(line).and_then(|()| out.finish()));
                    if let Err(failure) = told {
                        broken.borrow_mut().get_or_insert(failure);
                    }
                }
            }
            spinner.set_message(under_way(state));
            last = Some(state.clone());
        },
        |_| broken.borrow().is_some(),
    )
    .await;
    spinner.finish_and_clear();
    match broken.into_inner() {
        Some(failure) => Err(failure),
        None => Ok(ended?),
    }
}

fn under_way(state: &RollbackRequest) -> String {
    let status = state.status.clone().unwrap_or_default();
    let running = status
        .steps
        .iter()
        .find(|s| s.state == crate::api::rollback_request::StepState::Running)
        .map(|s| format!(", {}", s.name));
    let items = status
        .items
        .map(|i| format!(", {} of {} items", i.done, i.done + i.failed + i.untouched));
    let phase = rollback::phase(state);
    format!("{phase:?}{}{}", running.unwrap_or_default(), items.unwrap_or_default())
}
