//! `approvals`.

use clap::{Args, ValueEnum};
use kube::{ResourceExt as _, api::ListParams};

use super::{
    Context, Exit, Failure,
    output::{Format, Tone, age, left, one_line, or_none},
    shown,
};
use crate::{
    api::{ApprovalRequest, approval_request::ApprovalPhase},
    ops::{approval, list::Scope},
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep approvals --pending -n shop
  kubectl backstep approvals --mine -A
  kubectl backstep approvals --type emergency -o wide

--mine lists what waits for you: you hold the verb on the stage that is open, the stage lists you, and you are not the one who asked. The \
operator counts more strictly: it knows who is one person under two names.")]
pub struct Options {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only what waits for a decision or a review
    #[arg(long)]
    pending: bool,
    /// Only what waits for you
    #[arg(long)]
    mine: bool,
    /// Only of this type
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    type_: Option<Type>,
    /// How to write them
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Type {
    /// Rollbacks that wait until they are approved
    Rollback,
    /// Rollbacks that run first and are reviewed afterwards
    Emergency,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let scope = if options.all_namespaces {
        Scope::All
    } else {
        Scope::Namespace
    };
    let mut approvals = approval::list(&session, scope, &ListParams::default()).await?;
    approvals.retain(|a| {
        let emergency = a.spec.emergency == Some(true);
        let typed = options.type_.is_none_or(|t| emergency == (t == Type::Emergency));
        typed && (!options.pending || approval::waits(approval::phase(a)))
    });
    if options.mine {
        let user = session.whoami().await?;
        let mut mine = Vec::new();
        for approval in approvals {
            if approval::not_mine(&approval, &user).is_none()
                && approval::may_decide(&session, &approval, &user).await?
            {
                mine.push(approval);
            }
        }
        approvals = mine;
    }
    match options.output {
        Format::Json | Format::Yaml => context.out.objects(options.output, &approvals, true)?,
        Format::Name => {
            for approval in &approvals {
                context
                    .out
                    .line(format_args!("approvalrequest.backstep.dev/{}", approval.name_any()))?;
            }
        }
        Format::Table | Format::Wide if approvals.is_empty() => {
            let place = if options.all_namespaces {
                "any namespace".to_owned()
            } else {
                format!("namespace {}", session.namespace)
            };
            let what = match (options.mine, options.pending) {
                (true, _) => "Nothing waits for you",
                (false, true) => "Nothing waits for approval",
                (false, false) => "No approvals found",
            };
            context.out.note(format_args!("{what} in {place}."))?;
        }
        Format::Table | Format::Wide => {
            let wide = options.output == Format::Wide;
            let rows: Vec<_> = approvals.iter().map(|a| row(a, options.all_namespaces, wide)).collect();
            context.out.table(&header(options.all_namespaces, wide), rows)?;
        }
    }
    Ok(Exit::Ok)
}

fn header(namespaced: bool, wide: bool) -> Vec<&'static str> {
    let mut header = if namespaced { vec!["NAMESPACE"] } else { Vec::new() };
    header.extend([
        "REQUEST",
        "PHASE",
        "STAGE",
        "APPROVED",
        "RISK",
        "REQUESTER",
        "EXPIRES",
        "AGE",
    ]);
    if wide {
        header.extend(["NAME", "POLICY", "NEEDS", "REASON"]);
    }
    header
}

fn row(approval: &ApprovalRequest, namespaced: bool, wide: bool) -> Vec<(String, Tone)> {
    let plain = |text: String| (text, Tone::Plain);
    let spec = &approval.spec;
    let phase = approval::phase(approval);
    let tone = match phase {
        ApprovalPhase::Approved | ApprovalPhase::Consumed | ApprovalPhase::Reviewed => Tone::Good,
        ApprovalPhase::Pending | ApprovalPhase::BreakGlass | ApprovalPhase::AwaitingReview => Tone::Notice,
        ApprovalPhase::Rejected | ApprovalPhase::Expired | ApprovalPhase::Revoked | ApprovalPhase::ReviewOverdue => {
            Tone::Bad
        }
        ApprovalPhase::Cancelled | ApprovalPhase::Superseded => Tone::Quiet,
    };
    let stage = approval::current_stage(approval).filter(|_| phase == ApprovalPhase::Pending);
    let mut row = Vec::new();
    if namespaced {
        row.push(plain(approval.namespace().unwrap_or_default()));
    }
    let progress = stage.map(|s| format!("{} of {}", approval::approved(approval, &s.name), s.required));
    row.extend([
        plain(spec.request_ref.name.clone()),
        (format!("{phase:?}"), tone),
        plain(stage.map_or_else(|| "-".into(), |s| s.name.clone())),
        plain(progress.unwrap_or_else(|| "-".into())),
        shown::level(spec.risk),
        plain(spec.requester.username.clone()),
        plain(if phase == ApprovalPhase::Pending {
            left(spec.expires_at.0)
        } else {
            "-".into()
        }),
        plain(age(approval.creation_timestamp().map(|t| t.0))),
    ]);
    if wide {
        row.extend([
            plain(approval.name_any()),
            plain(spec.policy.name.clone()),
            plain(stage.map_or_else(|| "-".into(), |s| approval::who(approval, s))),
            plain(or_none(spec.reason.as_deref().map(one_line))),
        ]);
    }
    row
}
