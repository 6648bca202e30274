//! `plan`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use kube::ResourceExt as _;

use super::{Context, Exit, Failure, args, output::Format, scope::Scope, shown};
use crate::{
    api::{RollbackPlan, RollbackRequest},
    ops::{
        Class, Error, Session, delete,
        report::{self, Whole},
        rollback,
    },
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep plan before-1-9 -n shop
  kubectl backstep plan --lineage shop --previous --prune created
  kubectl backstep plan shop@7 --component Configuration,Images --diffs=none
  kubectl backstep plan --of undo-1-9 -o yaml
  kubectl backstep plan --of undo-1-9 --full

A plan above 256 KiB is cut in its object, which says so; the store keeps all of it, and --full reads it there, also of requests that are \
gone. That is for administrators, as is all reading of the store. As a table it is read and written in parts of some MiB; as JSON or YAML \
it is held whole.

Nothing is written but a RollbackRequest with dryRun: true, which is deleted once its plan was printed; --keep leaves it. The plan is made \
with your own rights: what you may not read is not shown, what you may not write is a failed check. The exit code is 9 when the rollback \
would not be carried out.")]
pub struct Options {
    #[command(flatten)]
    scope: Scope,
    /// Show the plan of this rollback request instead of making one
    #[arg(long, value_name = "REQUEST", conflicts_with_all = ["snapshot", "version", "tag", "previous", "as_of", "keep"])]
    of: Option<String>,
    /// All of it, from the store where its object was cut
    #[arg(long, requires = "of")]
    full: bool,
    /// Leave the request and its plan
    #[arg(long)]
    keep: bool,
    /// How long the plan may take
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = args::time)]
    timeout: Duration,
    /// How much of the diffs to show
    #[arg(long, value_enum, value_name = "WHICH", default_value = "all")]
    diffs: Diffs,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Diffs {
    /// All of them
    All,
    /// Only what is done to which object
    None,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    if let (Some(of), true) = (&options.of, options.full) {
        return whole(options, context, &session, of).await;
    }
    if let Some(of) = &options.of {
        let request = rollback::find(&session, of).await?;
        let name = request.name_any();
        let plan = rollback::plan(&session, &request).await?.ok_or_else(|| {
            let doing = rollback::progress(&request).unwrap_or_else(|| "no operator has looked at it".to_owned());
            Error::not_found(format!("rollbackrequest {name} has no plan"))
                .because(format!("it is {:?}: {doing}", rollback::phase(&request)))
                .fix(format!("follow it: kubectl backstep watch {name}"))
        })?;
        print(options, context, &plan)?;
        return Ok(Exit::Ok);
    }
    let mut spec = options.scope.spec(&session).await?;
    spec.dry_run = true;
    let request = rollback::Request {
        name: None,
        prefix: "plan".into(),
        spec,
    };
    let made = rollback::create(&session, &request, false).await?;
    let outcome = shown_plan(options, context, &session, &made).await;
    if options.keep {
        context
            .out
            .note(format_args!("rollbackrequest.backstep.dev/{} is kept", made.name_any()))?;
    } else if let Err(error) = delete::delete(&session, &made).await
        && error.class != Class::NotFound
    {
        // What was asked for is there; the remainder is said, not failed for.
        let name = made.name_any();
        context.out.note(format_args!(
            "rollbackrequest {name} could not be deleted again: {error}"
        ))?;
    }
    outcome
}

async fn whole(options: &Options, context: &mut Context, session: &Session, of: &str) -> Result<Exit, Failure> {
    let spinner = context.out.spinner("reading");
    let found = Box::pin(report::whole(session, context.store.as_ref(), of)).await;
    spinner.finish_and_clear();
    let stored = match found? {
        Whole::Object(plan) => {
            print(options, context, &plan)?;
            return Ok(Exit::Ok);
        }
        Whole::Stored(stored) => stored,
    };
    let mut plan = stored.plan();
    if !matches!(options.output, Format::Table | Format::Wide) {
        for part in 0..stored.parts() {
            plan.spec.items.extend(stored.items(part).await?);
        }
        print(options, context, &plan)?;
        return Ok(Exit::Ok);
    }
    let out = &mut context.out;
    shown::head(out, &plan)?;
    // What is done comes first, what stays as it is last.
    for stays in [false, true] {
        for part in 0..stored.parts() {
            let mut items = stored.items(part).await?;
            items.retain(|item| shown::stays(item) == stays);
            shown::items(out, &items, options.diffs.into())?;
        }
    }
    shown::tail(out, &plan)?;
    Ok(Exit::Ok)
}

impl From<Diffs> for shown::Diffs {
    fn from(diffs: Diffs) -> Self {
        match diffs {
            Diffs::All => Self::All,
            Diffs::None => Self::None,
        }
    }
}

async fn shown_plan(
    options: &Options,
    context: &mut Context,
    session: &Session,
    made: &RollbackRequest,
) -> Result<Exit, Failure> {
    let name = made.name_any();
    let spinner = context.out.spinner("planning");
    let ended = rollback::follow(
        session,
        &name,
        options.timeout,
        |state| {
            let doing = rollback::progress(state).unwrap_or_else(|| "no operator has looked at it yet".to_owned());
            spinner.set_message(format!("planning: {doing}"));
        },
        |_| false,
    )
    .await;
    spinner.finish_and_clear();
    let ended = ended?;
    let plan = rollback::plan(session, &ended).await?;
    if let Some(plan) = &plan {
        print(options, context, plan)?;
    }
    let told = rollback::outcome(&ended).map_err(|error| {
        let what = if plan.is_some() {
            "this rollback would not be carried out"
        } else {
            "there is no plan"
        };
        Error {
            what: what.into(),
            fix: None,
            ..error
        }
    });
    told?;
    if plan.is_none() {
        return Err(Error::internal(format!("rollbackrequest {name} ended without a plan"))
            .because(format!("it is {:?}", rollback::phase(&ended)))
            .into());
    }
    Ok(Exit::Ok)
}

fn print(options: &Options, context: &mut Context, plan: &RollbackPlan) -> Result<(), Failure> {
    match options.output {
        Format::Json | Format::Yaml => context.out.objects(options.output, std::slice::from_ref(plan), false),
        Format::Name => context
            .out
            .line(format_args!("rollbackplan.backstep.dev/{}", plan.name_any())),
        Format::Table | Format::Wide => shown::plan(&mut context.out, plan, options.diffs.into()),
    }
}
